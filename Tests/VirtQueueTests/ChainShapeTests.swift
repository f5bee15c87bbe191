// Chains of every shape a driver may make, read through their segments, in both formats.

import Glibc
import Testing
import VirtQueue

@Suite("Chains")
struct ChainShapeTests {
  private static let read = Place.read
  private static let write = Place.write

  /// A format and where the descriptors are.
  struct Way: Sendable, CustomTestStringConvertible {
    let format: Format
    let shape: Shape
    var testDescription: String { "\(format), \(shape)" }
  }
  static let ways: [Way] = [
    Way(format: .split, shape: .direct), Way(format: .split, shape: .indirect),
    Way(format: .split, shape: .mixed(direct: 1)), Way(format: .split, shape: .mixed(direct: 2)),
    Way(format: .packed, shape: .direct), Way(format: .packed, shape: .indirect),
  ]

  static let chains: [[Piece]] = [
    [.read(read, 16), .write(write, 512), .write(write + 1000, 1)],
    [.read(read, 1), .read(read + 7, 3), .read(read + 5, 1)],
    [.write(write, 1), .write(write + 1, 1), .write(write + 2, 4096)],
    [.read(read + 3, 0x8000), .read(read, 1), .write(write, 0x1_0000)],
    // One byte each.
    (0..<16).map { .read(read + 3 * $0, 1) } + (0..<16).map { .write(write + 5 * $0, 1) },
    // More than a slot's own segments.
    (0..<40).map { .read(read + 100 * $0, 99) } + (0..<20).map { .write(write + 100 * $0, 100) },
    // Over the border of two regions whose host maps are apart (MM09).
    [.read(Place.readBorder - 1, 2), .read(Place.readBorder - 100, 300), .write(Place.writeBorder - 5, 10)],
    [.read(Place.read, 0x2_0000), .write(Place.write, 0x2_0000), .write(Place.write, 1)],
    // Empty ones anywhere, at addresses mapped and not (SR09).
    [.read(Place.hole, 0), .read(read, 5), .read(0, 0), .write(write, 0), .write(write, 7), .write(.max, 0)],
    [.read(read, 0), .read(read, 0), .read(read, 0)],
    [.write(write, 0), .write(Place.hole, 0), .write(.max, 0)],
  ]

  @Test(
    "Every shape of chain gives the driver's bytes and takes the device's", arguments: ways, chains.indices)
  func shapes(way: Way, which: Int) throws {
    let pieces = Self.chains[which]
    let rig = try Rig(way.format, size: 64)
    let token = try #require(rig.driver.add(pieces, way.shape))
    let chain = try rig.ring.chain()
    #expect(chain.head == token)
    #expect(!chain.hasHole)
    let readable = expected(pieces)
    #expect(chain.readable.byteCount == readable.count)
    #expect(chain.readable.contents == readable)
    let room = pieces.filter(\.writable).reduce(0) { $0 + $1.length }
    #expect(chain.writable.byteCount == room)
    #expect(chain.writable.contents.count == room)
    let answer = (0..<room).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ 7) }
    #expect(chain.writable.copyIn(answer) == room)
    rig.ring.complete(chain, written: room)
    #expect(rig.ring.publish() == .call)
    let used = try #require(rig.driver.collect())
    #expect(used.token == token)
    #expect(used.length == room)
    #expect(rig.driver.collect() == nil)
    // What was written last where pieces lie over each other.
    var model: [UInt64: UInt8] = [:]
    var place = 0
    for piece in pieces where piece.writable {
      for offset in 0..<UInt64(piece.length) {
        model[piece.address + offset] = answer[place]
        place += 1
      }
    }
    for piece in pieces where piece.writable && piece.length > 0 {
      let seen = rig.memory.bytes(at: piece.address, piece.length)
      #expect(seen == (0..<UInt64(piece.length)).map { model[piece.address + $0] ?? 0 })
    }
    #expect(rig.ring.fault == nil)
    #expect(rig.ring.liveCount == 0)
    #expect(rig.memory.canariesIntact)
  }

  @Test("A piece in one region is one segment; empty pieces are none", arguments: Format.allCases)
  func segmentCounts(format: Format) throws {
    let rig = try Rig(format, size: 16)
    _ = rig.driver.add(
      [
        .read(Self.read, 4), .read(0, 0), .read(Place.readBorder - 2, 4), .write(Self.write, 0),
        .write(Self.write, 8),
      ],
      .direct)
    let chain = try rig.ring.chain()
    #expect(chain.readable.count == 3)
    #expect(chain.writable.count == 1)
    #expect(chain.readable.runs.map(\.count) == [4, 2, 2])
    #expect(chain.readable.runs[1].baseAddress == rig.memory.host(Place.readBorder - 2))
    #expect(chain.readable.runs[2].baseAddress == rig.memory.host(Place.readBorder))
    #expect(chain.writable.vectors[0].iov_len == 8)
    rig.ring.complete(chain, written: 8)
  }

  @Test("Bytes are copied from any offset, byte by byte, over every border", arguments: Format.allCases)
  func offsets(format: Format) throws {
    let rig = try Rig(format, size: 16)
    let pieces: [Piece] = [
      .read(Self.read, 1), .read(Self.read + 9, 2), .read(Place.readBorder - 3, 6), .read(Self.read, 0),
      .write(Self.write, 3), .write(Place.writeBorder - 1, 2),
    ]
    _ = rig.driver.add(pieces, .direct)
    let chain = try rig.ring.chain()
    let all = expected(pieces)
    for offset in 0...all.count + 2 {
      for length in 0...all.count + 2 {
        #expect(chain.readable.copyOut(length, from: offset) == Array(all.dropFirst(offset).prefix(length)))
      }
      #expect(chain.readable.load(UInt8.self, at: offset) == (offset < all.count ? all[offset] : nil))
      #expect((chain.readable.load(UInt32.self, at: offset) != nil) == (offset + 4 <= all.count))
    }
    for offset in [-1, .max, .min] {
      #expect(chain.readable.copyOut(1, from: offset) == [])
      #expect(chain.readable.load(UInt8.self, at: offset) == nil)
    }
    #expect((0..<5).allSatisfy { chain.writable.store(UInt8($0) + 1, at: $0) })
    #expect(!chain.writable.store(9, at: 5))
    #expect(!chain.writable.store(9, at: -1))
    #expect(rig.memory.bytes(at: Self.write, 4) == [1, 2, 3, 0])
    #expect(rig.memory.bytes(at: Place.writeBorder - 1, 3) == [4, 5, 0])
    rig.ring.complete(chain, written: 5)
    #expect(rig.memory.canariesIntact)
  }

  @Test("Runs are filled in order, until one is refused", arguments: Format.allCases)
  func filling(format: Format) throws {
    let rig = try Rig(format, size: 16)
    _ = rig.driver.add([.write(Self.write, 3), .write(Place.hole, 2), .write(Self.write + 8, 4)], .direct)
    let chain = try rig.ring.chain()
    #expect(chain.hasHole)
    var runs: [Int] = []
    let written = chain.writable.fill { span in
      runs.append(span.byteCount)
      for i in 0..<span.byteCount { span.storeBytes(of: UInt8(0x40 + i), toByteOffset: i, as: UInt8.self) }
      return true
    }
    #expect(written == 7, "a hole is passed over")
    #expect(runs == [3, 4])
    #expect(
      rig.memory.bytes(at: Self.write, 12) == [0x40, 0x41, 0x42, 0, 0, 0, 0, 0, 0x40, 0x41, 0x42, 0x43])
    let refused = chain.writable.fill { $0.byteCount == 3 }
    #expect(refused == 3)
    rig.ring.complete(chain, written: 0)
  }

  /// Where the hole begins, and what of the buffer is before it.
  static let holes: [(address: UInt64, length: Int, before: Int)] = [
    (Place.readEnd - 4, 8, 4), (Place.readEnd, 1, 0), (Place.hole, 0x7fff_ffff, 0), (Place.read - 1, 2, 0),
    (Place.readBorder - 4, 0x1_0005, 0x1_0004), (0, 16, 0), (.max, 1, 0), (.max - 3, 1000, 0),
    (Place.topEnd - 8, 16, 8), (Place.topEnd - 8, 0x7fff_ffff, 8), (Place.top, 0x10_0000, 0xf000),
  ]

  @Test(
    "MM10: a buffer that runs into a hole is known as such, and its bytes are not touched",
    arguments: Format.allCases, holes.indices)
  func hole(format: Format, which: Int) throws {
    let (address, length, before) = Self.holes[which]
    let rig = try Rig(format, size: 8)
    _ = rig.driver.add([.read(Place.read, 16), .write(address, length), .write(Place.write, 1)], .direct)
    let chain = try rig.ring.chain()
    #expect(chain.hasHole)
    #expect(chain.writable.byteCount == length + 1)
    let answer = [UInt8](repeating: 0xab, count: min(length, 0x2_0000))
    #expect(chain.writable.copyIn(answer) == before)
    // The status byte behind it can still be reached.
    let last = chain.writable.count - 1
    #expect(chain.writable.runs[last].baseAddress == rig.memory.host(Place.write))
    let holes = (0...last).filter { chain.writable.runs[$0].baseAddress == nil }
    #expect(holes.count == 1)
    #expect(chain.writable.runs[holes[0]].count == 0, "a hole is no run of bytes")
    #expect(chain.writable.vectors[holes[0]].iov_len == length - before)
    rig.ring.complete(chain, written: 0)
    #expect(rig.ring.fault == nil)
    #expect(rig.memory.canariesIntact)
    if before > 0 {
      #expect(rig.memory.bytes(at: address, before) == [UInt8](repeating: 0xab, count: before))
    }
  }

  @Test("A buffer past 2^64 does not go on at address 0", arguments: Format.allCases)
  func wrapAround(format: Format) throws {
    let memory = try TestMemory([(Place.ring, 0x10_0000), (0, 0x1000), (.max - 0xfff, 0xfff)])
    let driver = makeDriver(format, size: 8, memory: memory)
    let ring = try makeRing(format, driver.layout, memory.map)
    _ = driver.add([.write(.max - 0xf, 0x100), .write(.max - 0xfff, 0xfff + 1)], .direct)
    let chain = try ring.chain()
    #expect(chain.hasHole)
    #expect(chain.writable.count == 4)
    #expect(chain.writable.vectors.map(\.iov_len) == [0xf, 0xf1, 0xfff, 1])
    #expect(chain.writable.vectors.map { $0.iov_base == nil } == [false, true, false, true])
    ring.complete(chain, written: 0)
  }

  @Test("MM14: the ring's own memory may be a buffer; the driver harms itself", arguments: Format.allCases)
  func ringAsBuffer(format: Format) throws {
    let rig = try Rig(format, size: 8)
    _ = rig.driver.add([.write(Place.ring, 0x1000)], .direct)
    let chain = try rig.ring.chain()
    let poison = [UInt8](repeating: 0xff, count: 0x1000)
    #expect(chain.writable.copyIn(poison) == 0x1000)
    rig.ring.complete(chain, written: 0x1000)
    _ = rig.ring.publish()
    for _ in 0..<100 {
      rig.ring.serveAll()
      if rig.ring.park() == false { break }
    }
    #expect(rig.ring.liveCount == 0)
    #expect(rig.memory.canariesIntact)
  }

  @Test(
    "SR08: readable and writable parts may come to 2^32 - 1 bytes, and not to more",
    arguments: Format.allCases)
  func total(format: Format) throws {
    for (lengths, isFault) in [
      ([0xffff_ffff], false), ([0xffff_fffe, 1], false), ([0xffff_ffff, 0], false), ([0xffff_ffff, 1], true),
      ([0x8000_0000, 0x8000_0000], true), ([0x8000_0000, 0x7fff_ffff], false),
      ([0x7fff_ffff, 0x7fff_ffff, 1], false), ([0x7fff_ffff, 0x7fff_ffff, 2], true),
    ] {
      for writable in [false, true] {
        let rig = try Rig(format, size: 8)
        var pieces = lengths.map { Piece(address: Place.read, length: $0, writable: writable) }
        // The limit is for both parts together.
        if writable { pieces[0].writable = false }
        _ = rig.driver.add(pieces, .direct)
        if let chain = try? rig.ring.chain() {
          let bytes = chain.readable.byteCount + chain.writable.byteCount
          #expect(bytes == lengths.reduce(0, +))
          rig.ring.complete(chain, written: 0)
        }
        #expect(rig.ring.fault == (isFault ? .chainTooLarge : nil), "\(lengths)")
      }
    }
  }

  @Test("SR10: a readable buffer after a writable one breaks the ring", arguments: ways)
  func order(way: Way) throws {
    let rig = try Rig(way.format, size: 8)
    _ = rig.driver.add(
      [.read(Place.read, 1), .write(Place.write, 1), .write(Place.write, 1), .read(Place.read, 1)], way.shape)
    #expect(rig.ring.givesNothing())
    #expect(rig.ring.fault == .readableAfterWritable)
    #expect(rig.ring.liveCount == 0)
  }

  @Test("A chain has room for 4096 segments; one more breaks the ring", arguments: Format.allCases)
  func mostSegments(format: Format) throws {
    for (count, fits) in [
      (8, true), (9, true), (64, true), (65, true), (257, true), (1025, true), (4096, true), (4097, false),
    ] {
      let rig = try Rig(format, size: 8192, eventIndex: true)
      let pieces = (0..<UInt64(count)).map { Piece.read(Place.read + $0 % 0x8000, 1) }
      _ = rig.driver.add(pieces, .direct)
      if let chain = try? rig.ring.chain() {
        #expect(chain.readable.count == count)
        #expect(chain.readable.contents == expected(pieces))
        rig.ring.complete(chain, written: 0)
        #expect(rig.ring.publish() == .call)
        #expect(rig.driver.collect() != nil)
      }
      #expect(rig.ring.fault == (fits ? nil : .chainTooLong(limit: 4096)))
      #expect(rig.ring.liveCount == 0)
    }
  }

  @Test("A buffer over a border counts twice towards the most segments", arguments: Format.allCases)
  func mostSegmentsSplit(format: Format) throws {
    for (count, fits) in [(2048, true), (2049, false)] {
      let rig = try Rig(format, size: 4096)
      _ = rig.driver.add((0..<count).map { _ in .read(Place.readBorder - 1, 2) }, .direct)
      if let chain = try? rig.ring.chain() {
        #expect(chain.readable.count == 2 * count)
        rig.ring.complete(chain, written: 0)
      }
      #expect(rig.ring.fault == (fits ? nil : .chainTooLong(limit: 4096)))
    }
  }
}
