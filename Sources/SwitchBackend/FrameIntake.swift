// What a frame is before it is given to the switch, from a guest or from the uplink: decided on a copy of its head, in which
// nothing changes any more. On the queue thread of all ports.

import Glibc
import NetBackend

struct FrameIntake {
  let hub: Switch
  let port: Int
  let rules: HeaderRules
  /// Bytes of the virtio header.
  let headerBytes: Int

  /// Whether so many bytes, header included, may be a frame.
  @inline(__always)
  func isFrame(_ bytes: Int) -> Bool {
    let frameBytes = bytes &- headerBytes
    return frameBytes >= LinkHeader.byteCount && frameBytes <= NetTerms.longestFrame
  }

  /// How much of so many bytes the head is: up to the type behind a tag.
  @inline(__always)
  func headBytes(of bytes: Int) -> Int {
    min(bytes, headerBytes &+ LinkHeader.byteCount &+ NetworkTag.byteCount)
  }

  /// Makes a frame of `bytes` bytes in `count` segments, and gives it to the switch.
  // SAFETY: `head` has `FrameHead.capacity` bytes, of which the first `headBytes(of:)` are the frame's, copied; the segments
  // stay for the length of the call.
  @unsafe @inline(__always)
  func admit(
    head: UnsafeRawPointer, segments: UnsafePointer<iovec>, count: Int, bytes: Int
  ) -> Verdict {
    let frameBytes = bytes &- headerBytes
    // SAFETY (all of the body): at most 8 bytes at offsets below 40.
    var header = unsafe NetHeader(
      low: Self.load(head, 0, UInt64.self), high: UInt32(Self.load(head, 8, UInt16.self)))
    if rules.fault(in: header, frameLength: frameBytes) != nil { return Verdict(counter: .badHeader) }
    header.flags.formIntersection(.needsChecksum)
    // A checksum over the addresses or a tag is none, and making it would change where the frame belongs.
    if header.flags.contains(.needsChecksum), header.checksumStart < UInt16(LinkHeader.byteCount) {
      return Verdict(counter: .badHeader)
    }
    header.bufferCount = 0

    var link = LinkHeader()
    unsafe link.low = Self.load(head, headerBytes, UInt64.self)
    unsafe link.high = Self.load(head, headerBytes &+ 8, UInt32.self)
    unsafe link.type = Self.load(head, headerBytes &+ 12, UInt16.self)
    var control: UInt16 = 0
    var tag: UInt16?
    if link.type == NetworkTag.type, frameBytes >= LinkHeader.byteCount + NetworkTag.byteCount {
      control = unsafe Self.load(head, headerBytes &+ 14, UInt16.self).byteSwapped
      tag = control & 0xfff
    }
    guard let (network, strips) = hub.network(of: port, tag: tag) else {
      return Verdict(counter: .wrongNetwork)
    }
    var start = LinkHeader.byteCount
    if strips, tag != nil {
      guard header.shrink(by: NetworkTag.byteCount) else { return Verdict(counter: .badHeader) }
      unsafe link.type = Self.load(head, headerBytes &+ 16, UInt16.self)
      start &+= NetworkTag.byteCount
    }
    // A second tag would be the first one where the frame leaves a trunk without one: a way into another network.
    if strips, NetworkTag.isTag(link.type) { return Verdict(counter: .wrongNetwork) }
    let frame = unsafe Frame(
      segments: segments, count: count, payloadStart: headerBytes &+ start, payload: frameBytes &- start,
      link: link, header: header, network: network, priority: strips ? control & 0xf000 : 0)
    return hub.forward(frame, from: port)
  }

  @inline(__always)
  private static func load<T: FixedWidthInteger & BitwiseCopyable>(
    _ head: UnsafeRawPointer, _ offset: Int, _ type: T.Type
  ) -> T {
    // SAFETY: as in `admit`.
    unsafe T(littleEndian: head.loadUnaligned(fromByteOffset: offset, as: T.self))
  }
}
