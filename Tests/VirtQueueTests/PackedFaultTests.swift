// What a packed ring does about a driver that breaks the rules. The ids are those of the list of hostile cases.

import CLinux
import Testing
import VirtQueue

@Suite("Packed ring, hostile driver")
struct PackedFaultTests {
  @Test("PR01: INDIRECT with NEXT breaks the ring, and it then asks for nothing")
  func indirectWithNext() throws {
    let rig = try PackedRig()
    rig.driver.putTable(0, Place.read, 1, 0, table: Place.tables)
    rig.driver.offer([(Place.tables, 16, 0, Bits.indirect | Bits.next), (Place.read, 1, 0, 0)])
    #expect(rig.faultOfNext() == .indirectWithNext)
    #expect(!rig.ring.park())
    #expect(rig.ring.publish() == .none)
  }

  @Test("PR01: INDIRECT anywhere but alone breaks the ring")
  func indirectNotAlone() throws {
    let rig = try PackedRig()
    rig.driver.putTable(0, Place.read, 1, 0, table: Place.tables)
    rig.driver.offer([(Place.read, 1, 0, Bits.next), (Place.tables, 16, 0, Bits.indirect)])
    #expect(rig.faultOfNext() == .indirectWithNext)
  }

  @Test("INDIRECT without the feature breaks the ring")
  func notNegotiated() throws {
    let rig = try PackedRig(indirect: false)
    rig.driver.offer([(Place.tables, 16, 0, Bits.indirect)])
    #expect(rig.faultOfNext() == .indirectNotNegotiated)
  }

  @Test(
    "PR02: a table of no length, or of a length that is no multiple of 16, or too long, breaks the ring",
    arguments: [0, 1, 15, 17, 0xffff_ffff, 32769 * 16, 0xffff_fff0] as [UInt32])
  func length(bytes: UInt32) throws {
    let rig = try PackedRig()
    rig.driver.offer([(Place.tables, bytes, 0, Bits.indirect)])
    #expect(rig.faultOfNext() == .indirectLength(bytes))
  }

  @Test(
    "PR02: a table that is not wholly in guest memory breaks the ring",
    arguments: [
      0, Place.hole, Place.tables - 16, Place.tablesEnd - 24, Place.tablesEnd - 32, .max - 15, .max,
    ] as [UInt64])
  func unmapped(address: UInt64) throws {
    let rig = try PackedRig()
    rig.driver.offer([(address, 48, 0, Bits.indirect)])
    #expect(rig.faultOfNext() == .indirectUnmapped(address))
  }

  @Test("A table has at most 1024 entries, or as many as a larger queue")
  func tableLimit() throws {
    for (size, entries, fits) in [(8, 1024, true), (8, 1025, false), (2000, 2000, true), (2000, 2001, false)]
    {
      let rig = try PackedRig(size: size)
      for i in 0..<entries { rig.driver.putTable(i, Place.read, 1, 0, table: Place.tables) }
      rig.driver.offer([(Place.tables, UInt32(16 * entries), 0, Bits.indirect)])
      #expect(rig.faultOfNext() == (fits ? nil : .chainTooLong(limit: UInt32(max(size, 1024)))))
    }
  }

  @Test("PR12: of a table's flags only WRITE counts, and its entries are taken in order")
  func tableFlags() throws {
    for noise: UInt16 in [0, Bits.available, Bits.used, Bits.next, Bits.indirect, 0xfffd] {
      let rig = try PackedRig()
      rig.driver.putTable(0, Place.read, 2, noise, table: Place.tables, id: 0xffff)
      rig.driver.putTable(1, Place.read + 9, 3, noise, table: Place.tables)
      rig.driver.putTable(2, Place.write, 4, noise | Bits.write, table: Place.tables, id: 1)
      rig.driver.offer([(Place.tables, 48, 5, Bits.indirect | Bits.write)])
      let chain = try rig.ring.chain()
      #expect(chain.head == 5)
      #expect(chain.readable.contents == expected([.read(Place.read, 2), .read(Place.read + 9, 3)]))
      #expect(chain.writable.byteCount == 4)
      rig.ring.complete(chain, written: 4)
      #expect(rig.ring.fault == nil)
    }
  }

  @Test("A table over two regions is read piece by piece, wherever the border cuts it")
  func overTwoRegions() throws {
    for before in 0...48 {
      let address = Place.tablesBorder - UInt64(before)
      let rig = try PackedRig()
      rig.driver.putTable(0, Place.read, 3, 0, table: address)
      rig.driver.putTable(1, Place.readBorder - 1, 2, 0, table: address)
      rig.driver.putTable(2, Place.write, 9, Bits.write, table: address)
      rig.driver.offer([(address, 48, 0, Bits.indirect)])
      let chain = try rig.ring.chain()
      #expect(chain.readable.contents == expected([.read(Place.read, 3), .read(Place.readBorder - 1, 2)]))
      #expect(chain.writable.byteCount == 9)
      rig.ring.complete(chain, written: 9)
      #expect(rig.memory.canariesIntact)
    }
  }

  @Test("PR03: a chain that never ends breaks the ring after one round", arguments: [1, 2, 3, 7, 8, 1000])
  func endless(size: Int) throws {
    for length: UInt32 in [0, 1] {
      let rig = try PackedRig(size: size)
      rig.driver.offer((0..<size).map { _ in (Place.read, length, 0, Bits.next) })
      #expect(rig.faultOfNext() == .chainTooLong(limit: UInt32(size)))
      #expect(rig.ring.liveCount == 0)
    }
  }

  @Test("PR03: NEXT leads into descriptors that nobody made available; the driver harms itself")
  func staleNext() throws {
    let rig = try PackedRig()
    rig.driver.put(1, Place.write, 7, id: 6, Bits.write)
    rig.driver.put(0, Place.read, 1, id: 2, Bits.next | Bits.available)
    let chain = try rig.ring.chain()
    #expect(chain.head == 6)
    rig.ring.complete(chain, written: 0)
    #expect(rig.ring.publish() == .call)
    #expect(rig.driver.word(0).id == 6)
  }

  @Test(
    "PR04: an id that is not below the size breaks the ring",
    arguments: [UInt16(8), 9, 0x7fff, 0x8000, 0xffff])
  func idOutOfRange(id: UInt16) throws {
    let rig = try PackedRig()
    rig.driver.offer([(Place.read, 1, id, 0)])
    #expect(rig.faultOfNext() == .headOutOfRange(id, size: 8))
  }

  @Test("PR04: only the last descriptor's id counts")
  func lastID() throws {
    let rig = try PackedRig()
    rig.driver.offer([
      (Place.read, 1, 0xffff, Bits.next), (Place.read, 1, 9, Bits.next), (Place.write, 1, 3, Bits.write),
    ])
    #expect(rig.ring.serveAll(written: 1) == [3])
    #expect(rig.driver.word(0).id == 3)
    #expect(rig.driver.isUsed(0))
  }

  @Test("PR04: an id that comes twice breaks the ring, held or not, while its chain is out")
  func idTwice() throws {
    for isHeld in [false, true] {
      let rig = try PackedRig()
      rig.driver.offer([(Place.read, 1, 5, 0)])
      rig.driver.offer([(Place.read, 1, 5, 0)])
      let chain = try rig.ring.chain()
      if isHeld { #expect(chain.surrender()?.hold() == 5) }
      #expect(rig.ring.givesNothing())
      #expect(rig.ring.fault == .headInFlight(5))
      #expect(rig.ring.liveCount == 1)
      if isHeld { #expect(rig.ring.finish(5)) } else { rig.ring.complete(chain, written: 0) }
      #expect(rig.ring.liveCount == 0)
      #expect(rig.ring.publish() == .none)
    }
  }

  @Test("PR05, PR06: only AVAIL equal to the wrap counter and USED unequal is available")
  func marks() throws {
    for lap in 0..<3 {
      for marks in [0, Bits.available, Bits.used, Bits.available | Bits.used] {
        let rig = try PackedRig(size: 4)
        for _ in 0..<4 * lap {
          let token = try #require(rig.driver.add([.read(Place.read, 1)], .direct))
          #expect(rig.ring.serveAll() == [token])
          #expect(rig.driver.collect()?.token == token)
        }
        rig.driver.put(4 * lap, Place.read, 1, id: 0, marks)
        let isAvailable = marks == rig.driver.marks(4 * lap)
        #expect(rig.ring.park() == isAvailable)
        #expect(rig.ring.givesNothing() == !isAvailable)
        #expect(rig.ring.fault == nil)
      }
    }
  }

  @Test("PR07: a ring of one takes no chain of two")
  func sizeOne() throws {
    let rig = try PackedRig(size: 1)
    for _ in 0..<5 {
      let token = try #require(rig.driver.add([.read(Place.read, 1)], .direct))
      #expect(rig.ring.serveAll() == [token])
      #expect(rig.driver.collect()?.token == 0)
    }
    rig.driver.offer([(Place.read, 1, 0, Bits.next)])
    #expect(rig.faultOfNext() == .chainTooLong(limit: 1))
  }

  @Test("Flags that mean nothing are ignored", arguments: [UInt16(0x8), 0x70, 0x7f00, 0x7f78])
  func undefinedFlags(flags: UInt16) throws {
    let rig = try PackedRig()
    rig.driver.offer([(Place.read, 1, 0, flags | Bits.next), (Place.write, 1, 1, flags | Bits.write)])
    let chain = try rig.ring.chain()
    #expect(chain.readable.byteCount == 1)
    #expect(chain.writable.byteCount == 1)
    rig.ring.complete(chain, written: 1)
    _ = rig.ring.publish()
    #expect(rig.driver.isUsed(0))
  }

  @Test("More descriptors than the ring has, made available over those that are out, harm only the driver")
  func overrun() throws {
    let rig = try PackedRig(size: 4)
    // Four laps of one-descriptor chains with ids of their own would be needed; ids run out first.
    for id: UInt16 in 0..<4 {
      rig.driver.offer([(Place.write, 1, id, Bits.write | Bits.next), (Place.write, 1, id, Bits.write)])
      #expect(rig.ring.hold() == id)
    }
    rig.driver.offer([(Place.write, 1, 0, Bits.write)])
    for id: UInt16 in 0..<4 { #expect(rig.ring.finish(id, written: 2)) }
    _ = rig.ring.publish()
    for _ in 0..<100 { rig.ring.serveAll() }
    #expect(rig.ring.liveCount == 0)
    #expect(rig.memory.canariesIntact)
  }

  @Test("SR20: two rings at the same addresses harm only themselves")
  func twins() throws {
    let memory = try Place.memory()
    let driver = PackedDriver(memory: memory, size: 8)
    let one = RingBox(try PackedRing(driver.layout, map: memory.map))
    let two = RingBox(try PackedRing(driver.layout, map: memory.map))
    for _ in 0..<1000 {
      _ = driver.add([.write(Place.write, 4)], .direct)
      one.serveAll(written: 4)
      two.serveAll(written: 4)
      while driver.collect() != nil {}
    }
    #expect(one.liveCount == 0 && two.liveCount == 0)
    #expect(memory.canariesIntact)
  }

  @Test("SR21: areas that lie over each other, and any content, harm only the ring")
  func overlappingAreas() throws {
    let memory = try Place.memory()
    var dice = Dice(22)
    for _ in 0..<2000 {
      let area = { UInt64.random(in: 0..<12, using: &dice) * 16 }
      let layout = RingLayout(
        size: UInt16.random(in: 1...9, using: &dice), descriptorArea: memory.user(Place.ring + area()),
        driverArea: memory.user(Place.ring + area()), deviceArea: memory.user(Place.ring + area()),
        base: 0x8000_8000, indirect: Bool.random(using: &dice), eventIndex: Bool.random(using: &dice))
      for i in stride(from: 0, to: 512, by: 2) {
        let value = UInt16.random(in: 0..<16, using: &dice) | (Bool.random(using: &dice) ? 0x80 : 0)
        memory.host(Place.ring + UInt64(i)).storeBytes(of: value, as: UInt16.self)
      }
      let ring = RingBox(try PackedRing(layout, map: memory.map))
      for _ in 0..<20 {
        for _ in 0..<20 {
          guard let chain = ring.next() else { break }
          ring.complete(chain, written: 4)
        }
        _ = ring.publish()
        if !ring.park() { break }
      }
      #expect(ring.liveCount == 0)
    }
    #expect(memory.canariesIntact)
  }

  @Test("A broken ring takes nothing, publishes nothing, and asks for nothing")
  func afterFault() throws {
    let rig = try PackedRig()
    for _ in 0..<3 { _ = rig.driver.add([.read(Place.read, 1)], .direct) }
    try rig.ring.complete(rig.ring.chain(), written: 0)
    let held = try #require(rig.ring.hold())
    rig.ring.fail(.chainTooLarge)
    rig.ring.fail(.indirectNested)
    #expect(rig.ring.fault == .chainTooLarge, "the first fault stays")
    let before = rig.memory.bytes(at: Place.ring, 256)
    #expect(rig.ring.givesNothing())
    #expect(rig.ring.publish() == .none)
    #expect(rig.ring.finish(held), "chains that are out still come back")
    #expect(rig.ring.liveCount == 0)
    #expect(!rig.ring.park())
    rig.ring.unpark()
    #expect(rig.ring.publish() == .none)
    #expect(rig.memory.bytes(at: Place.ring, 256) == before)
    let again = RingBox(try PackedRing(rig.driver.layout, map: rig.memory.map))
    #expect(again.serveAll().count == 3)
  }
}
