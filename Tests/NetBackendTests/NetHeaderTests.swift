// The virtio-net header's sizes and fields.

import NetBackend
import Testing

@Suite("net header")
struct NetHeaderTests {
  @Test("its size follows the negotiated features (virtio 1.3 §5.1.6)")
  func sizes() {
    #expect(NetHeaderLayout(modern: false, mergeable: false, hashReport: false).byteCount == 10)
    #expect(NetHeaderLayout(modern: true, mergeable: false, hashReport: false).byteCount == 12)
    #expect(NetHeaderLayout(modern: false, mergeable: true, hashReport: false).byteCount == 12)
    #expect(NetHeaderLayout(modern: true, mergeable: true, hashReport: true).byteCount == 20)
  }

  @Test("each field is at its place, little-endian")
  func fields() throws {
    let layout = NetHeaderLayout(modern: true, mergeable: true, hashReport: false)
    let bytes: [UInt8] = [1, 0x84, 0x36, 0, 0xa8, 5, 0x22, 1, 6, 0, 3, 0]
    let header = try #require(NetHeader(bytes, layout: layout))
    #expect(header.flags == .needsChecksum)
    #expect(header.segmentation == .tcp6)
    #expect(header.segmentationType & NetHeader.congestionBit != 0)
    #expect(header.headerLength == 54)
    #expect(header.segmentSize == 1448)
    #expect(header.checksumStart == 0x122)
    #expect(header.checksumOffset == 6)
    #expect(header.bufferCount == 3)
    #expect(header.bytes(layout: layout) == bytes)
  }

  @Test("a short header is none, and the legacy one counts no buffers")
  func short() throws {
    let modern = NetHeaderLayout(modern: true, mergeable: false, hashReport: false)
    #expect(NetHeader([UInt8](repeating: 0, count: 11), layout: modern) == nil)
    let legacy = NetHeaderLayout(modern: false, mergeable: false, hashReport: false)
    let header = try #require(NetHeader([UInt8](repeating: 0xff, count: 12), layout: legacy))
    #expect(header.bufferCount == 0)
    #expect(header.bytes(layout: legacy).count == 10)
    #expect(header.segmentation == nil)
  }

  @Test("with a hash report the rest of the header is zero")
  func hashReport() {
    let layout = NetHeaderLayout(modern: true, mergeable: true, hashReport: true)
    #expect(NetHeader().bytes(layout: layout) == [UInt8](repeating: 0, count: 20))
  }
}
