// Indirect tables of a split ring: the right ones, and every wrong one.

import Testing
import VirtQueue

@Suite("Split ring, indirect tables")
struct SplitIndirectTests {
  /// A ring whose head 0 is an indirect descriptor.
  private func rig(
    _ address: UInt64, _ length: UInt32, _ flags: UInt16 = Bits.indirect, size: Int = 8, indirect: Bool = true
  ) throws -> SplitRig {
    let rig = try SplitRig(size: size, indirect: indirect)
    rig.driver.put(0, address, length, flags)
    rig.driver.offer(0)
    return rig
  }

  @Test(
    "SR05: a table of no length, or of a length that is no multiple of 16, or too long, breaks the ring",
    arguments: [0, 1, 15, 17, 31, 0xffff_ffff, 32769 * 16, 0xffff_fff0] as [UInt32])
  func length(bytes: UInt32) throws {
    #expect(try rig(Place.tables, bytes).faultOfNext() == .indirectLength(bytes))
  }

  @Test(
    "SR05: a table that is not in guest memory breaks the ring",
    arguments: [0, Place.hole, Place.tables - 16, Place.tablesEnd, .max - 15, .max] as [UInt64])
  func unmapped(address: UInt64) throws {
    #expect(try rig(address, 16).faultOfNext() == .indirectUnmapped(address))
  }

  @Test(
    "SR05: a table that runs into a hole breaks the ring, also where the chain in it ends before",
    arguments: [UInt64(16), 8, 24, 32, 1])
  func intoHole(before: UInt64) throws {
    let address = Place.tablesEnd - before
    let rig = try rig(address, 48)
    if before >= 16 { rig.driver.put(0, Place.read, 1, table: address) }
    #expect(rig.faultOfNext() == .indirectUnmapped(address))
    #expect(rig.memory.canariesIntact)
    // The same where addresses end.
    let top = try self.rig(Place.topEnd - 16, 0x8000)
    top.driver.put(0, Place.read, 1, table: Place.topEnd - 16)
    #expect(top.faultOfNext() == .indirectUnmapped(Place.topEnd - 16))
  }

  @Test(
    "SR06: INDIRECT inside a table breaks the ring", arguments: [Bits.indirect, Bits.indirect | Bits.write])
  func nested(flags: UInt16) throws {
    let rig = try rig(Place.tables, 32)
    rig.driver.put(0, Place.read, 1, Bits.next, next: 1, table: Place.tables)
    rig.driver.put(1, Place.tables, 32, flags, table: Place.tables)
    #expect(rig.faultOfNext() == .indirectNested)
  }

  @Test("SR06: INDIRECT with NEXT breaks the ring")
  func withNext() throws {
    let rig = try rig(Place.tables, 16, Bits.indirect | Bits.next)
    rig.driver.put(0, Place.read, 1, table: Place.tables)
    #expect(rig.faultOfNext() == .indirectWithNext)
  }

  @Test("INDIRECT without the feature breaks the ring")
  func notNegotiated() throws {
    let rig = try rig(Place.tables, 16, indirect: false)
    rig.driver.put(0, Place.read, 1, table: Place.tables)
    #expect(rig.faultOfNext() == .indirectNotNegotiated)
  }

  @Test("SR07: a loop in a table breaks the ring", arguments: [1, 2, 64])
  func loop(cycle: Int) throws {
    let rig = try rig(Place.tables, UInt32(16 * cycle))
    for i in 0..<cycle {
      rig.driver.put(i, Place.read, 1, Bits.next, next: UInt16((i + 1) % cycle), table: Place.tables)
    }
    #expect(rig.faultOfNext() == .chainTooLong(limit: 1024))
  }

  @Test("SR07: a `next` that is not in the table breaks the ring", arguments: [UInt16(4), 5, 0xffff])
  func nextOutOfRange(next: UInt16) throws {
    let rig = try rig(Place.tables, 64)
    rig.driver.put(0, Place.read, 1, Bits.next, next: next, table: Place.tables)
    #expect(rig.faultOfNext() == .nextOutOfRange(next, table: 4))
  }

  @Test("WRITE on the descriptor that names the table means nothing")
  func writeIgnored() throws {
    let rig = try rig(Place.tables, 32, Bits.indirect | Bits.write)
    rig.driver.put(0, Place.read, 3, Bits.next, next: 1, table: Place.tables)
    rig.driver.put(1, Place.write, 2, Bits.write, table: Place.tables)
    let chain = try rig.ring.chain()
    #expect(chain.readable.contents == TestMemory.pattern(at: Place.read, 3))
    #expect(chain.writable.byteCount == 2)
    rig.ring.complete(chain, written: 0)
  }

  @Test("Direct descriptors and a table's are one chain: order and totals go on")
  func directThenTable() throws {
    let rig = try SplitRig(size: 8)
    rig.driver.put(0, Place.write, 1, Bits.write | Bits.next, next: 1)
    rig.driver.put(1, Place.tables, 16, Bits.indirect)
    rig.driver.put(0, Place.read, 1, table: Place.tables)
    rig.driver.offer(0)
    #expect(rig.faultOfNext() == .readableAfterWritable)

    let large = try SplitRig(size: 8)
    large.driver.put(0, Place.read, 0xffff_ffff, Bits.next, next: 1)
    large.driver.put(1, Place.tables, 16, Bits.indirect)
    large.driver.put(0, Place.read, 1, table: Place.tables)
    large.driver.offer(0)
    #expect(large.faultOfNext() == .chainTooLarge)
  }

  @Test("A chain has at most 1024 descriptors in all, or as many as a larger queue has")
  func descriptorLimit() throws {
    for (size, direct, inTable, fits) in [
      (8, 0, 1024, true), (8, 0, 1025, false), (8, 7, 1017, true), (8, 7, 1018, false), (8, 1, 1023, true),
      (8, 1, 1024, false), (4096, 0, 4096, true), (4096, 0, 4097, false), (4096, 4095, 1, true),
      (4096, 3000, 1097, false),
    ] {
      let rig = try SplitRig(size: size)
      for i in 0..<direct { rig.driver.put(i, Place.read, 1, Bits.next, next: UInt16(i + 1)) }
      rig.driver.put(direct, Place.tables, UInt32(16 * inTable), Bits.indirect)
      for i in 0..<inTable {
        rig.driver.put(
          i, Place.read, 1, i + 1 < inTable ? Bits.next : 0, next: UInt16(i + 1), table: Place.tables)
      }
      rig.driver.offer(0)
      let limit = UInt32(max(size, 1024))
      #expect(
        rig.faultOfNext() == (fits ? nil : .chainTooLong(limit: limit)), "\(size): \(direct) + \(inTable)")
    }
  }

  @Test("A table may be longer than the chain in it")
  func longTable() throws {
    let rig = try rig(Place.tables, 32768 * 16)
    rig.driver.put(0, Place.read, 2, Bits.next, next: 32767, table: Place.tables)
    rig.driver.put(32767, Place.read + 2, 2, table: Place.tables)
    let chain = try rig.ring.chain()
    #expect(chain.readable.contents == TestMemory.pattern(at: Place.read, 4))
    rig.ring.complete(chain, written: 0)
  }

  @Test("A table over two regions is read piece by piece, wherever the border cuts it")
  func overTwoRegions() throws {
    for before in 0...64 {
      let address = Place.tablesBorder - UInt64(before)
      let rig = try rig(address, 64)
      let links: [UInt16] = [2, 3, 1]
      rig.driver.put(0, Place.read, 3, Bits.next, next: links[0], table: address)
      rig.driver.put(2, Place.read + 100, 4, Bits.next, next: links[1], table: address)
      rig.driver.put(3, Place.readBorder - 1, 2, Bits.next, next: links[2], table: address)
      rig.driver.put(1, Place.write, 9, Bits.write, table: address)
      let chain = try rig.ring.chain()
      #expect(
        chain.readable.contents
          == expected([.read(Place.read, 3), .read(Place.read + 100, 4), .read(Place.readBorder - 1, 2)]))
      #expect(chain.writable.byteCount == 9)
      rig.ring.complete(chain, written: 9)
      #expect(rig.ring.fault == nil)
      #expect(rig.memory.canariesIntact)
    }
  }

  @Test("A table may begin at any address")
  func anyAlignment() throws {
    for offset in 0..<16 {
      let address = Place.tables + UInt64(offset)
      let rig = try rig(address, 32)
      rig.driver.put(0, Place.read, 3, Bits.next, next: 1, table: address)
      rig.driver.put(1, Place.write, 9, Bits.write, table: address)
      #expect(rig.faultOfNext() == nil)
    }
  }

  @Test("A table that fails half way leaves nothing behind, however long it was")
  func noLeftovers() throws {
    // Each failure has taken a long array; the pool has room for sixteen of them.
    for _ in 0..<3 {
      let rig = try rig(Place.tables, 16 * 1000)
      for i in 0..<1000 {
        rig.driver.put(i, Place.read, 1, Bits.next, next: UInt16(i + 1), table: Place.tables)
      }
      #expect(rig.faultOfNext() == .nextOutOfRange(1000, table: 1000))
      #expect(rig.ring.liveCount == 0)
    }
  }
}
