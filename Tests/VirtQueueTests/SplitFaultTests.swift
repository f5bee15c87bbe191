// What a split ring does about a driver that breaks the rules. The ids are those of the list of hostile cases.

import CLinux
import Testing
import VirtQueue

@Suite("Split ring, hostile driver")
struct SplitFaultTests {
  @Test("SR01: a chain that points at itself breaks the ring", arguments: [1, 2, 8, 256])
  func selfLoop(size: Int) throws {
    let rig = try SplitRig(size: size)
    rig.driver.put(0, Place.read, 1, Bits.next, next: 0)
    rig.driver.offer(0)
    #expect(rig.faultOfNext() == .chainTooLong(limit: UInt32(size)))
  }

  @Test(
    "SR01: loops of two, of all, and of empty descriptors break the ring",
    arguments: [Bits.next, Bits.next | Bits.write])
  func loops(flags: UInt16) throws {
    for (length, cycle) in [(UInt32(1), 2), (1, 8), (0, 2), (0, 8), (1, 3)] {
      let rig = try SplitRig(size: 8)
      for i in 0..<cycle { rig.driver.put(i, Place.write, length, flags, next: UInt16((i + 1) % cycle)) }
      rig.driver.offer(0)
      #expect(rig.faultOfNext() == .chainTooLong(limit: 8))
    }
  }

  @Test("A chain of as many descriptors as the ring has is no loop")
  func wholeRing() throws {
    for size in [1, 2, 8, 64] {
      let rig = try SplitRig(size: size)
      for i in 0..<size {
        rig.driver.put(i, Place.read, 1, i + 1 < size ? Bits.next : 0, next: UInt16(i + 1))
      }
      rig.driver.offer(0)
      #expect(rig.faultOfNext() == nil)
      #expect(rig.ring.publish() == .call)
    }
  }

  @Test(
    "SR02: a `next` that is not below the size breaks the ring", arguments: [UInt16(8), 9, 0x7fff, 0xffff])
  func nextOutOfRange(next: UInt16) throws {
    let rig = try SplitRig(size: 8)
    rig.driver.put(3, Place.read, 1, Bits.next, next: next)
    rig.driver.offer(3)
    #expect(rig.faultOfNext() == .nextOutOfRange(next, table: 8))
  }

  @Test("`next` means nothing where NEXT is not set")
  func nextIgnored() throws {
    let rig = try SplitRig(size: 8)
    rig.driver.put(3, Place.read, 1, 0, next: 0xffff)
    rig.driver.offer(3)
    #expect(rig.faultOfNext() == nil)
  }

  @Test("Flags that mean nothing are ignored", arguments: [UInt16(0xfff8), 0x80, 0x8000, 0x8080])
  func undefinedDescriptorFlags(flags: UInt16) throws {
    let rig = try SplitRig(size: 8)
    rig.driver.put(0, Place.read, 1, flags | Bits.next, next: 1)
    rig.driver.put(1, Place.write, 1, flags | Bits.write)
    rig.driver.offer(0)
    let chain = try rig.ring.chain()
    #expect(chain.readable.byteCount == 1)
    #expect(chain.writable.byteCount == 1)
    rig.ring.complete(chain, written: 1)
    #expect(rig.ring.fault == nil)
  }

  @Test(
    "SR03: a head that is not below the size breaks the ring",
    arguments: [UInt16(8), 9, 0x7fff, 0x8000, 0xffff])
  func headOutOfRange(head: UInt16) throws {
    let rig = try SplitRig(size: 8)
    rig.driver.offer(head)
    #expect(rig.faultOfNext() == .headOutOfRange(head, size: 8))
  }

  @Test("SR04: an available index that cannot be breaks the ring at once, wherever it goes")
  func indexJumps() throws {
    for base: UInt16 in [0, 5, 0x7fff, 0xfffe, 0xffff] {
      for jump: UInt16 in [9, 10, 0x7fff, 0x8000, 0xfff8, 0xffff] {
        let rig = try SplitRig(size: 8, base: base)
        rig.driver.setAvailableIndex(base &+ jump)
        #expect(rig.ring.givesNothing())
        #expect(rig.ring.fault == .availableIndexJumped(from: base, to: base &+ jump, size: 8))
        // And found by whoever asks for kicks first.
        let parked = try SplitRig(size: 8, base: base)
        parked.driver.setAvailableIndex(base &+ jump)
        #expect(parked.ring.park(), "a fault just found wants to be told: the caller must not sleep yet")
        #expect(parked.ring.fault == .availableIndexJumped(from: base, to: base &+ jump, size: 8))
        #expect(!parked.ring.park(), "an old one lets it sleep")
        #expect(!rig.ring.park())
      }
    }
  }

  @Test("SR04: an index that goes back after it was seen breaks the ring once the seen entries are taken")
  func indexGoesBack() throws {
    let rig = try SplitRig(size: 8)
    for head: UInt16 in 0..<4 {
      rig.driver.put(Int(head), Place.read, 1)
      rig.driver.offer(head)
    }
    #expect(rig.ring.hold() == 0)
    rig.driver.setAvailableIndex(2)
    #expect(rig.ring.hold() == 1)
    #expect(rig.ring.hold() == 2)
    #expect(rig.ring.hold() == 3)
    #expect(rig.ring.givesNothing())
    #expect(rig.ring.fault == .availableIndexJumped(from: 4, to: 2, size: 8))
  }

  @Test("SR04: in the largest ring an index may be 32768 ahead, and not one more")
  func largestJump() throws {
    let rig = try SplitRig(size: 32768)
    rig.driver.setAvailableIndex(32768)
    #expect(rig.ring.hold() == 0)
    #expect(rig.ring.fault == nil)
    let other = try SplitRig(size: 32768)
    other.driver.setAvailableIndex(32769)
    #expect(other.ring.givesNothing())
    #expect(other.ring.fault == .availableIndexJumped(from: 0, to: 32769, size: 32768))
  }

  @Test("A head that is made available twice breaks the ring, held or not, while its chain is out")
  func headInFlight() throws {
    for isHeld in [true, false] {
      let rig = try SplitRig(size: 8)
      rig.driver.put(5, Place.read, 1)
      rig.driver.offer(5)
      rig.driver.offer(5)
      let chain = try rig.ring.chain()
      if isHeld {
        #expect(chain.surrender()?.hold() == 5)
        #expect(rig.ring.givesNothing())
        #expect(rig.ring.finish(5))
      } else {
        #expect(rig.ring.givesNothing())
        rig.ring.complete(chain, written: 0)
      }
      #expect(rig.ring.fault == .headInFlight(5))
      #expect(rig.ring.liveCount == 0)
      #expect(rig.ring.publish() == .none)
    }
  }

  @Test("A head may come again in the batch after its completion")
  func headAgain() throws {
    let rig = try SplitRig(size: 8)
    rig.driver.put(5, Place.read, 1)
    for _ in 0..<100 {
      rig.driver.offer(5)
      #expect(rig.ring.serveAll() == [5])
    }
    #expect(rig.ring.fault == nil)
  }

  @Test("SR11: two chains may share their tail")
  func sharedTail() throws {
    let rig = try SplitRig(size: 8)
    rig.driver.put(0, Place.read, 1, Bits.next, next: 2)
    rig.driver.put(1, Place.read + 1, 1, Bits.next, next: 2)
    rig.driver.put(2, Place.write, 4, Bits.write)
    rig.driver.offer(0)
    rig.driver.offer(1)
    let first = try rig.ring.chain()
    let second = try rig.ring.chain()
    #expect(first.writable.runs[0].baseAddress == second.writable.runs[0].baseAddress)
    #expect(first.readable.runs[0].baseAddress != second.readable.runs[0].baseAddress)
    rig.ring.complete(second, written: 4)
    rig.ring.complete(first, written: 4)
    _ = rig.ring.publish()
    #expect(rig.driver.usedIndex == 2)
    #expect(rig.driver.usedElement(0).id == 1)
    #expect(rig.driver.usedElement(1).id == 0)
    #expect(rig.ring.fault == nil)
  }

  @Test("SR17: what was made available before the ring started is there at its start")
  func beforeStart() throws {
    let memory = try Place.memory()
    let driver = SplitDriver(memory: memory, size: 8, base: 3)
    for head: UInt16 in 0..<8 {
      driver.put(Int(head), Place.read, 1)
      driver.offer(head)
    }
    let ring = RingBox(try SplitRing(driver.layout, map: memory.map))
    #expect(ring.serveAll() == [0, 1, 2, 3, 4, 5, 6, 7])
    #expect(driver.usedIndex == 11)
  }

  @Test("SR19: undefined bits of the available flags are ignored", arguments: [UInt16(0), 1])
  func undefinedFlags(noInterrupt: UInt16) throws {
    let rig = try SplitRig(size: 8, eventIndex: false)
    rig.driver.setAvailableFlags(0xfffe | noInterrupt)
    rig.driver.put(0, Place.read, 1)
    for _ in 0..<3 {
      rig.driver.offer(0)
      let chain = try rig.ring.chain()
      rig.ring.complete(chain, written: 0)
      #expect(rig.ring.publish() == (noInterrupt == 1 ? .none : .call))
    }
  }

  @Test("SR20: two rings at the same addresses harm only themselves")
  func twins() throws {
    let memory = try Place.memory()
    let driver = SplitDriver(memory: memory, size: 8)
    let one = RingBox(try SplitRing(driver.layout, map: memory.map))
    let two = RingBox(try SplitRing(driver.layout, map: memory.map))
    for head: UInt16 in 0..<8 { driver.put(Int(head), Place.write, 4, Bits.write) }
    for round in 0..<1000 {
      driver.offer(UInt16(round % 8))
      #expect(one.serveAll(written: 4) == [UInt16(round % 8)])
      #expect(two.serveAll(written: 4) == [UInt16(round % 8)])
    }
    #expect(one.fault == nil && two.fault == nil)
    #expect(memory.canariesIntact)
  }

  @Test("SR21: areas that lie over each other harm only the ring")
  func overlappingAreas() throws {
    let memory = try Place.memory()
    var dice = Dice(21)
    for _ in 0..<2000 {
      let area = { UInt64.random(in: 0..<16, using: &dice) * 16 }
      let layout = RingLayout(
        size: 8, descriptorArea: memory.user(Place.ring + area()),
        driverArea: memory.user(Place.ring + area()),
        deviceArea: memory.user(Place.ring + area()), base: 0, indirect: true, eventIndex: true)
      for i in stride(from: 0, to: 512, by: 2) {
        let value = UInt16.random(in: 0..<16, using: &dice)
        memory.host(Place.ring + UInt64(i)).storeBytes(of: value, as: UInt16.self)
      }
      let ring = RingBox(try SplitRing(layout, map: memory.map))
      for _ in 0..<20 {
        ring.serveAll()
        if !ring.park() { break }
      }
      #expect(ring.liveCount == 0)
    }
    #expect(memory.canariesIntact)
  }

  @Test("A broken ring takes nothing, publishes nothing, and asks for nothing")
  func afterFault() throws {
    let rig = try SplitRig(size: 8, eventIndex: false)
    for head: UInt16 in 0..<3 {
      rig.driver.put(Int(head), Place.read, 1)
      rig.driver.offer(head)
    }
    let first = try rig.ring.chain()
    rig.ring.complete(first, written: 0)
    let held = try #require(rig.ring.hold())
    rig.ring.fail(.chainTooLarge)
    rig.ring.fail(.indirectNested)
    #expect(rig.ring.fault == .chainTooLarge, "the first fault stays")
    #expect(rig.ring.givesNothing())
    #expect(rig.ring.publish() == .none)
    #expect(rig.driver.usedIndex == 0)
    #expect(rig.ring.finish(held), "chains that are out still come back")
    #expect(rig.ring.liveCount == 0)
    #expect(!rig.ring.park())
    rig.ring.unpark()
    #expect(rig.driver.usedFlags == 0)
    #expect(rig.ring.publish() == .none)
    // Set up again, it goes on from where the driver says.
    let again = RingBox(try SplitRing(rig.driver.layout, map: rig.memory.map))
    #expect(again.serveAll() == [0, 1, 2])
  }
}
