// Where a packed ring starts, how it goes round, and what it writes for the driver.

import Testing
import VirtQueue

@Suite("Packed ring")
struct PackedRingTests {
  private func error(_ change: (inout RingLayout) -> Void) throws -> RingLayoutError? {
    let memory = try Place.memory()
    var layout = PackedDriver(memory: memory, size: 8).layout
    change(&layout)
    let fits = PackedRing.fits(layout, in: memory.map)
    do throws(RingLayoutError) {
      _ = try PackedRing(layout, map: memory.map)
      #expect(fits)
      return nil
    } catch {
      if case .badArea = error { #expect(!fits) }
      return error
    }
  }

  @Test("Any size from 1 to 32768 will do")
  func badSizes() throws {
    for size: UInt16 in [0, 32769, 40000, 65535] { #expect(try error { $0.size = size } == .badSize(size)) }
    for size: UInt16 in [1, 3, 7, 100, 32767, 32768] { #expect(try error { $0.size = size } == nil) }
  }

  @Test("Areas are aligned to 16, 4 and 4 bytes, each wholly in one region")
  func areas() throws {
    for offset: UInt64 in 1..<16 {
      #expect(try error { $0.descriptorArea += offset } != nil)
      #expect((try error { $0.driverArea += offset } == nil) == (offset % 4 == 0))
      #expect((try error { $0.deviceArea += offset } == nil) == (offset % 4 == 0))
    }
    let end = try Place.memory().user(Place.ring) + 0x20_0000
    #expect(try error { $0.descriptorArea = end - 128 } == nil)
    #expect(try error { $0.descriptorArea = end - 112 } == .badArea(name: "descriptor", address: end - 112))
    #expect(try error { $0.driverArea = end - 4 } == nil)
    #expect(try error { $0.deviceArea = end - 4 } == nil)
    for address: UInt64 in [0, end, Place.ring, .max - 15, .max - 3] {
      #expect(
        try error { $0.descriptorArea = address } == .badArea(name: "descriptor", address: address & ~0))
      #expect(try error { $0.driverArea = address } == .badArea(name: "driver event", address: address))
      #expect(try error { $0.deviceArea = address } == .badArea(name: "device event", address: address))
    }
  }

  @Test("PR09: a base holds two positions and their wrap counters; a position outside the ring is refused")
  func bases() throws {
    for base: UInt32 in [0x8000_8000, 0, 0x8007_8007, 0x0003_0003, 0x8003_0007, 0x0007_8001] {
      let memory = try Place.memory()
      let ring = RingBox(
        try PackedRing(PackedDriver(memory: memory, size: 8, base: base).layout, map: memory.map))
      #expect(ring.base == base)
    }
    for base: UInt32 in [0x8000_8008, 0x8008_8000, 0x0008_0008, 0x7fff_7fff, 0xffff_ffff, 0x8000_7fff] {
      #expect(try error { $0.base = base } == .badBase(base))
    }
    // Some front-ends give the fresh position once, in the low half.
    let memory = try Place.memory()
    let ring = RingBox(
      try PackedRing(PackedDriver(memory: memory, size: 8, base: 0x8000).layout, map: memory.map))
    #expect(ring.base == 0x8000_8000)
  }

  @Test(
    "PR09: a ring that was stopped goes on exactly where it was, from every position",
    arguments: [1, 2, 3, 7, 8])
  func resume(size: Int) throws {
    let memory = try Place.memory()
    let driver = PackedDriver(memory: memory, size: size)
    var layout = driver.layout
    for round in 0..<5 * size {
      let ring = RingBox(try PackedRing(layout, map: memory.map))
      #expect(ring.givesNothing(), "round \(round)")
      let token = try #require(driver.add([.read(Place.read, 1)], .direct))
      #expect(ring.serveAll() == [token])
      #expect(driver.collect()?.token == token)
      let at = UInt32(driver.offsetAndWrap(driver.added))
      #expect(ring.base == at | at << 16)
      layout.base = ring.base
    }
  }

  @Test(
    "SR12: rings of every size go round many times, in chains of every length",
    arguments: [1, 2, 3, 5, 7, 8, 100, 1000])
  func sizes(size: Int) throws {
    let rig = try PackedRig(size: size)
    for length in 1...min(size, 20) {
      // Long enough for the chains to begin at every position.
      for round in 0..<(2 * size / length + 3) {
        let pieces: [Piece] = (0..<length).map { .write(Place.write + UInt64($0), 1) }
        let token = try #require(rig.driver.add(pieces, .direct))
        #expect(rig.ring.serveAll(written: length) == [token], "length \(length), round \(round)")
        let used = try #require(rig.driver.collect())
        #expect(used.token == token)
        #expect(used.length == length)
        #expect(rig.driver.collect() == nil)
      }
    }
    // The whole ring in one chain.
    let whole: [Piece] = (0..<size).map { _ in .read(Place.read, 1) }
    for _ in 0..<5 {
      let token = try #require(rig.driver.add(whole, .direct))
      #expect(rig.driver.add([.read(0, 1)], .direct) == nil)
      #expect(rig.ring.serveAll() == [token])
      #expect(rig.driver.collect()?.token == token)
    }
    #expect(rig.ring.fault == nil)
    #expect(rig.memory.canariesIntact)
  }

  @Test("SR12: every buffer of the largest ring can be out at once")
  func largest() throws {
    let rig = try PackedRig(size: 32768)
    var tokens: [UInt16] = []
    for i in 0..<32768 {
      guard let token = rig.driver.add([.write(Place.write + UInt64(i), 1)], .direct) else { break }
      tokens.append(token)
    }
    #expect(tokens.count == 32768)
    for token in tokens where rig.ring.hold() != token { Issue.record("not \(token)") }
    #expect(rig.ring.givesNothing())
    #expect(rig.ring.liveCount == 32768)
    for token in tokens.reversed() where !rig.ring.finish(token, written: 1) {
      Issue.record("\(token) was not held")
    }
    #expect(!rig.driver.isUsed(0))
    #expect(rig.ring.publish() == .call)
    for token in tokens.reversed() {
      guard let used = rig.driver.collect(), used.token == token, used.length == 1 else {
        Issue.record("not \(token)")
        return
      }
    }
    #expect(rig.ring.base == 0)
    #expect(rig.memory.canariesIntact)
  }

  @Test(
    "PR10: nothing of a batch is shown before its first descriptor, which comes last", arguments: [3, 7, 8])
  func publication(size: Int) throws {
    let rig = try PackedRig(size: size)
    // Batches that begin at every position, some of them over the ring's end.
    for round in 0..<4 * size {
      let start = rig.driver.added
      let tokens = try (0..<3).map { _ in try #require(rig.driver.add([.write(Place.write, 4)], .direct)) }
      let before = (0..<3).map { rig.driver.word(start + $0).flags }
      for i in 0..<3 {
        #expect(rig.ring.hold() == tokens[i])
      }
      for (i, token) in tokens.reversed().enumerated() {
        #expect(rig.ring.finish(token, written: i))
        #expect(rig.driver.word(start).flags == before[0], "round \(round)")
        #expect(rig.driver.collect() == nil)
      }
      _ = rig.ring.publish()
      for (i, token) in tokens.reversed().enumerated() {
        let word = rig.driver.word(start + i)
        #expect(word.id == token)
        #expect(word.length == UInt32(i))
        let marks = rig.driver.wrap(start + i) ? Bits.available | Bits.used : 0
        #expect(word.flags == marks | (i > 0 ? Bits.write : 0), "WRITE only where something was written")
        #expect(rig.driver.collect()?.token == token)
      }
    }
    #expect(rig.ring.publish() == .none)
  }

  @Test("SR18: a used descriptor has the id and the length it was completed with")
  func usedDescriptors() throws {
    let rig = try PackedRig(size: 8)
    for length in [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff] {
      let position = rig.driver.added
      let token = try #require(rig.driver.add([.write(Place.write, 4)], .direct))
      #expect(rig.ring.serveAll(written: length) == [token])
      #expect(rig.driver.word(position).length == UInt32(length))
      #expect(rig.driver.collect()?.length == length)
    }
  }

  @Test("A used descriptor takes the place of its whole chain, and chains used out of order keep theirs")
  func skipping() throws {
    for seed: UInt64 in 0..<200 {
      var dice = Dice(seed &+ 77)
      let size = Int.random(in: 1...24, using: &dice)
      let rig = try PackedRig(size: size)
      var held: [UInt16] = []
      var expected: [UInt16] = []
      for _ in 0..<200 {
        switch Int.random(in: 0..<3, using: &dice) {
        case 0:
          let pieces = [Piece](repeating: .read(Place.read, 1), count: Int.random(in: 1...size, using: &dice))
          guard let token = rig.driver.add(pieces, .direct) else { break }
          #expect(rig.ring.hold() == token)
          held.append(token)
        case 1:
          guard !held.isEmpty else { break }
          let head = held.remove(at: Int.random(in: 0..<held.count, using: &dice))
          #expect(rig.ring.finish(head))
          expected.append(head)
        default:
          _ = rig.ring.publish()
          for head in expected { #expect(rig.driver.collect()?.token == head) }
          expected = []
          #expect(rig.driver.collect() == nil)
        }
      }
      #expect(rig.ring.fault == nil)
    }
  }

  @Test("PR13: memory of a split ring serves a packed one after a reset, and the other way round")
  func otherFormat() throws {
    let memory = try Place.memory()
    for round in 0..<4 {
      // What a driver does at a reset: its rings are zero.
      memset(Place.ring, 0x1000, in: memory)
      let format: Format = round % 2 == 0 ? .split : .packed
      let driver = makeDriver(format, size: 16, memory: memory)
      let ring = try makeRing(format, driver.layout, memory.map)
      #expect(ring.givesNothing())
      for _ in 0..<100 {
        let token = try #require(driver.add([.read(Place.read, 3), .write(Place.write, 1)], .direct))
        #expect(ring.serveAll(written: 1) == [token])
        #expect(driver.collect()?.token == token)
      }
    }
  }

  private func memset(_ guest: UInt64, _ count: Int, in memory: TestMemory) {
    memory.host(guest).initializeMemory(as: UInt8.self, repeating: 0, count: count)
  }
}
