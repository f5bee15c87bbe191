// Where a split ring starts, how its indices wrap, and what it writes for the driver.

import Testing
import VirtQueue

@Suite("Split ring")
struct SplitRingTests {
  private func error(_ change: (inout RingLayout) -> Void, eventIndex: Bool = true) throws -> RingLayoutError?
  {
    let memory = try Place.memory()
    var layout = SplitDriver(memory: memory, size: 8, eventIndex: eventIndex).layout
    change(&layout)
    let fits = SplitRing.fits(layout, in: memory.map)
    do throws(RingLayoutError) {
      _ = try SplitRing(layout, map: memory.map)
      #expect(fits)
      return nil
    } catch {
      if case .badArea = error { #expect(!fits) }
      return error
    }
  }

  @Test(
    "A size is a power of two, at most 32768", arguments: [UInt16(0), 3, 5, 6, 7, 100, 32767, 32769, 65535])
  func badSizes(size: UInt16) throws {
    #expect(try error { $0.size = size } == .badSize(size))
  }

  @Test("SP14: areas are aligned to 16, 2 and 4 bytes")
  func alignment() throws {
    for offset: UInt64 in 1..<16 {
      let d = try error { $0.descriptorArea += offset }
      guard case .badArea("descriptor", _)? = d else {
        Issue.record("descriptor area at \(offset): \(String(describing: d))")
        continue
      }
      let a = try error { $0.driverArea += offset }
      #expect((a == nil) == (offset % 2 == 0))
      let u = try error { $0.deviceArea += offset }
      #expect((u == nil) == (offset % 4 == 0))
    }
  }

  @Test("Each area lies wholly in one region; the event fields only count where they are used")
  func ends() throws {
    let memory = try Place.memory()
    let end = memory.user(Place.ring) + 0x20_0000
    for eventIndex in [false, true] {
      let event: UInt64 = eventIndex ? 2 : 0
      #expect(try error({ $0.driverArea = end - (4 + 16 + event) }, eventIndex: eventIndex) == nil)
      #expect(
        try error({ $0.driverArea = end - (4 + 16 + event) + 2 }, eventIndex: eventIndex)
          == .badArea(name: "available", address: end - (4 + 16 + event) + 2))
      // The used area is aligned to 4, its end with the event field is not.
      #expect(
        try error({ $0.deviceArea = end - 68 }, eventIndex: eventIndex)
          == (eventIndex ? .badArea(name: "used", address: end - 68) : nil))
      #expect(try error({ $0.deviceArea = end - 72 }, eventIndex: eventIndex) == nil)
    }
    #expect(try error { $0.descriptorArea = end - 128 } == nil)
    #expect(try error { $0.descriptorArea = end - 112 } == .badArea(name: "descriptor", address: end - 112))
    for address: UInt64 in [0, Place.ring, .max - 15, end, 0x8000_0000_0000_0000] {
      #expect(try error { $0.descriptorArea = address } == .badArea(name: "descriptor", address: address))
      #expect(try error { $0.driverArea = address } == .badArea(name: "available", address: address))
      #expect(try error { $0.deviceArea = address } == .badArea(name: "used", address: address))
    }
  }

  @Test("SR12: rings of every size serve many times their size", arguments: (0...15).map { 1 << $0 })
  func sizes(size: Int) throws {
    let rig = try SplitRig(size: size)
    for i in 0..<min(size, 64) { rig.driver.put(i * (size / min(size, 64)), Place.write, 8, Bits.write) }
    let step = size / min(size, 64)
    var served = 0
    while served < 3 * min(size, 1000) {
      let batch = min(size, 64)
      let heads = (0..<batch).map { UInt16($0 * step) }
      for head in heads { rig.driver.offer(head) }
      #expect(rig.ring.serveAll(written: 8) == heads)
      served += batch
      #expect(rig.driver.usedIndex == UInt16(truncatingIfNeeded: served))
    }
    #expect(rig.ring.fault == nil)
    #expect(rig.ring.base == UInt32(UInt16(truncatingIfNeeded: served)))
    #expect(rig.memory.canariesIntact)
  }

  @Test("SR12: every head of the largest ring can be out at once")
  func largest() throws {
    let rig = try SplitRig(size: 32768)
    for i in 0..<32768 {
      rig.driver.put(i, Place.read + UInt64(i), 1)
      rig.driver.write(UInt16(32767 - i))
    }
    rig.driver.setAvailableIndex(32768)
    for i in 0..<32768 where rig.ring.hold() != UInt16(32767 - i) { Issue.record("not \(32767 - i)") }
    #expect(rig.ring.liveCount == 32768)
    #expect(rig.ring.givesNothing())
    #expect(rig.ring.fault == nil)
    for i in 0..<32768 where !rig.ring.finish(UInt16(i), written: i) { Issue.record("\(i) was not held") }
    #expect(rig.ring.publish() == .call)
    #expect(rig.driver.usedIndex == 32768)
    #expect((0..<32768).allSatisfy { rig.driver.usedElement($0) == (UInt32($0), UInt32($0)) })
    #expect(rig.memory.canariesIntact)
  }

  @Test("SR13: indices wrap from 65535 to 0 at every offset of a batch, and every chain is used once")
  func wrap() throws {
    for size in [1, 2, 8, 64] {
      for batch in 1...size {
        for before in 0...batch {
          let base = UInt16(truncatingIfNeeded: -before)
          let rig = try SplitRig(size: size, base: base)
          for i in 0..<size { rig.driver.put(i, Place.write, 4, Bits.write) }
          for head in 0..<batch { rig.driver.offer(UInt16(head)) }
          #expect(rig.ring.serveAll(written: 4) == (0..<batch).map { UInt16($0) })
          #expect(rig.driver.usedIndex == base &+ UInt16(batch))
          for i in 0..<batch {
            #expect(rig.driver.usedElement(Int(base) + i) == (UInt32(i), 4))
          }
          #expect(rig.ring.base == UInt32(base &+ UInt16(batch)))
          #expect(rig.ring.givesNothing())
          #expect(rig.ring.fault == nil)
        }
      }
    }
  }

  @Test("SR13: a hundred thousand chains go round exactly once each")
  func rounds() throws {
    let rig = try SplitRig(size: 64)
    var dice = Dice(13)
    var served = 0
    while served < 100_000 {
      let batch = Int.random(in: 1...20, using: &dice)
      var tokens: [UInt16] = []
      for _ in 0..<batch {
        let pieces: [Piece] = [.read(Place.read, 1), .write(Place.write, 2), .write(Place.write, 2)]
        guard let token = rig.driver.add(pieces, .direct) else { break }
        tokens.append(token)
      }
      guard rig.ring.serveAll(written: 4) == tokens else {
        Issue.record("after \(served)")
        return
      }
      for token in tokens {
        guard let used = rig.driver.collect(), used.token == token, used.length == 4 else {
          Issue.record("after \(served)")
          return
        }
      }
      guard rig.driver.collect() == nil else {
        Issue.record("one too many after \(served)")
        return
      }
      served += tokens.count
    }
    #expect(rig.ring.fault == nil)
  }

  @Test("SR18: a used element is the head and the length it was completed with")
  func usedElements() throws {
    let rig = try SplitRig(size: 8)
    for (i, length) in [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff].enumerated() {
      rig.driver.put(i, Place.write, 1, Bits.write)
      rig.driver.offer(UInt16(i))
      #expect(rig.ring.serveAll(written: length) == [UInt16(i)])
      #expect(rig.driver.usedElement(i) == (UInt32(i), UInt32(length)))
    }
  }

  @Test("Nothing is shown before it is published, and then all of it")
  func publication() throws {
    let rig = try SplitRig(size: 8)
    for i in 0..<4 {
      rig.driver.put(i, Place.write, 1, Bits.write)
      rig.driver.offer(UInt16(i))
    }
    for i in 0..<4 {
      try rig.ring.complete(rig.ring.chain(), written: i)
      #expect(rig.driver.usedIndex == 0)
    }
    #expect(rig.ring.publish() == .call)
    #expect(rig.driver.usedIndex == 4)
    #expect(rig.ring.publish() == .none, "there is nothing new")
    #expect((0..<4).map { rig.driver.usedElement($0).length } == [0, 1, 2, 3])
  }

  @Test(
    "The base is where to go on, whatever it was at the start",
    arguments: [UInt16(0), 1, 77, 0x7fff, 0x8000, 0xffff])
  func bases(base: UInt16) throws {
    let rig = try SplitRig(size: 8, base: base)
    #expect(rig.ring.base == UInt32(base))
    #expect(rig.ring.givesNothing())
    #expect(!rig.ring.park())
    for i in 0..<20 {
      rig.driver.put(i % 8, Place.read, 1)
      rig.driver.offer(UInt16(i % 8))
      rig.ring.serveAll()
    }
    #expect(rig.ring.base == UInt32(base &+ 20))
    // Stopped and started again.
    var layout = rig.driver.layout
    layout.base = rig.ring.base
    let again = RingBox(try SplitRing(layout, map: rig.memory.map))
    #expect(again.givesNothing())
    rig.driver.offer(3)
    #expect(again.serveAll() == [3])
    #expect(rig.driver.usedIndex == base &+ 21)
    #expect(rig.driver.usedElement(Int(base) + 20).id == 3)
  }
}
