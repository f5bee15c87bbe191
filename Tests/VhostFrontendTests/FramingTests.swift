// How a request is cut: the descriptors of each framing, seen by a device model.

import Testing
import VhostFrontend

@Suite("Framing") struct FramingTests {
  /// The descriptor lengths of a request, `-` before those the device writes, as a device sees them.
  func lengths(_ request: DiskRequest, _ framing: Framing) throws -> [Int] {
    let arena = try GuestArena(bytes: 1 << 20)
    let options = DriverRingOptions(size: 64, indirectCapacity: 64)
    let queue = try QueueDriver(index: 0, options, packed: false, in: arena)
    let disk = try BlockQueue(queue, depth: 2, dataBytes: 8192, arena: arena)
    let device = try SplitDevice(queue.ring.areas, size: 64, eventIndex: true, in: arena)
    _ = try disk.submit(request, framing)
    let chain = try #require(device.next())
    // Whatever the cut, the readable stream is the same.
    let readable = try chain.buffers.filter { !$0.write }.flatMap {
      try arena.read(at: $0.address, count: Int($0.length))
    }
    #expect(readable == request.header + request.output)
    #expect(chain.buffers.filter(\.write).reduce(0) { $0 + Int($1.length) } == request.inputBytes + 1)
    return chain.buffers.map { $0.write ? -Int($0.length) : Int($0.length) }
  }

  @Test("a write's descriptors")
  func write() throws {
    let request = DiskRequest.write(sector: 0x0102_0304_0506, BytePattern(seed: 2).bytes(count: 1024))
    let expected: [(Framing, [Int])] = [
      (.classic, [16, 1024, -1]), (.headerSplit(7), [7, 7, 2, 1024, -1]), (.headerWithData, [1040, -1]),
      (.statusWithData, [16, 1024, -1]), (.joined, [1040, -1]), (.dataPieces(3), [16, 342, 342, 340, -1]),
      (.dataCuts([1, 510]), [16, 1, 510, 513, -1]),
      (.with { ($0.joinsHeader, $0.pieces) = (true, 2) }, [528, 512, -1]),
      (.crumbs, [Int](repeating: 1, count: 16) + [1, 3, 511, 1, 508, -1]),
    ]
    for (framing, lengths) in expected {
      for variant in [framing, framing.indirect, framing.mixed(direct: 1)] {
        #expect(try self.lengths(request, variant) == lengths)
      }
    }
  }

  @Test("a read's descriptors")
  func read() throws {
    let request = DiskRequest.read(sector: 7, bytes: 512)
    let expected: [(Framing, [Int])] = [
      (.classic, [16, -512, -1]), (.headerWithData, [16, -512, -1]), (.statusWithData, [16, -513]),
      (.with { ($0.joinsStatus, $0.cuts) = (true, [500, 11]) }, [16, -500, -11, -2]),
    ]
    for (framing, lengths) in expected {
      for variant in [framing, framing.indirect, framing.mixed(direct: 1)] {
        #expect(try self.lengths(request, variant) == lengths)
      }
    }
  }

  @Test("requests without data, and with data both ways")
  func others() throws {
    #expect(try lengths(.flush, .joined) == [16, -1])
    #expect(try lengths(.discard([DiskSegment(sector: 1, sectors: 2)]), .classic) == [16, 16, -1])
    let both = DiskRequest(type: 99, output: [1, 2, 3], inputBytes: 5)
    #expect(try lengths(both, .classic) == [16, 3, -5, -1])
    #expect(try lengths(both, .joined) == [19, -6])
  }

  @Test("what cannot be joined, or does not fit, is refused")
  func refused() throws {
    let arena = try GuestArena(bytes: 1 << 20)
    let queue = try QueueDriver(index: 0, .init(size: 4), packed: false, in: arena)
    let disk = try BlockQueue(queue, depth: 1, dataBytes: 1024, arena: arena)
    #expect(throws: FrontendError.impossibleRequest(reason: "1025 bytes in a slot for 1024")) {
      try disk.submit(.read(sector: 0, bytes: 1025))
    }
    var elsewhere = DiskRequest.write(sector: 0, [1, 2, 3])
    elsewhere.dataAddress = try arena.allocate(16)
    #expect(throws: FrontendError.impossibleRequest(reason: "parts to be joined do not lie side by side")) {
      try disk.submit(elsewhere, .headerWithData)
    }
    #expect(throws: FrontendError.ringFull(descriptors: 17)) { try disk.submit(.flush, .headerSplit(1)) }
    _ = try disk.submit(elsewhere)
    #expect(throws: FrontendError.ringFull(descriptors: 0)) { try disk.submit(.flush) }
  }

  @Test("a discard segment is sector, count and flags")
  func segment() {
    #expect(
      DiskSegment(sector: 0x0102, sectors: 3, flags: 1).bytes == [
        2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0,
      ])
  }
}
