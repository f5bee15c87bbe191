// The split ring's memory word by word, its faults, and its raw moves.

import Testing
import VhostFrontend

@Suite("Split driver ring") struct SplitDriverRingTests {
  func makeRing(_ options: DriverRingOptions = .init(size: 4)) throws -> (GuestArena, AnyDriverRing) {
    let arena = try GuestArena(bytes: 1 << 16)
    return (arena, try AnyDriverRing(options, packed: false, in: arena))
  }

  @Test("descriptors, available entries and the index lie where virtio 1.3 §2.7 has them")
  func layout() throws {
    let (arena, ring) = try makeRing()
    #expect(ring.areas.descriptors % 16 == 0)
    #expect(ring.areas.driver % 2 == 0)
    #expect(ring.areas.device % 4 == 0)
    let token = try #require(
      ring.add([
        DescriptorSpec(0x1122_3344_5566_7788, 0x10), DescriptorSpec(0x2000, 0x200, write: true),
      ]))
    #expect(token == 0)
    #expect(try arena.read(at: ring.areas.driver, count: 4) == [0, 0, 0, 0])
    ring.publish()
    #expect(
      try arena.read(at: ring.areas.descriptors, count: 32) == [
        0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x10, 0, 0, 0, 1, 0, 1, 0,
        0, 0x20, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 2, 0, 0, 0,
      ])
    #expect(try arena.read(at: ring.areas.driver, count: 6) == [0, 0, 1, 0, 0, 0])
    // used_event behind four entries; one used entry read back.
    _ = ring.arm(after: 2)
    #expect(try arena.read(at: ring.areas.driver + 12, count: 2) == [2, 0])
    try arena.write([0, 0, 0, 0, 9, 0, 0, 0], at: ring.areas.device + 4)
    try arena.write([1, 0], at: ring.areas.device + 2)
    #expect(ring.poll() == UsedChain(token: 0, length: 9))
  }

  @Test("an indirect descriptor names a table of its own, and tables do not overlap")
  func indirectLayout() throws {
    let (arena, ring) = try makeRing(.init(size: 2, indirectCapacity: 2))
    let chain = [DescriptorSpec(0x1000, 1), DescriptorSpec(0x2000, 2, write: true)]
    for _ in 0..<2 { _ = ring.add(chain, table: .indirect) }
    var tables: [UInt64] = []
    for index in 0..<2 {
      let bytes = try arena.read(at: ring.areas.descriptors + 16 * UInt64(index), count: 16)
      #expect(Array(bytes[8...]) == [32, 0, 0, 0, 4, 0, 0, 0])
      var reader = WireReader(bytes)
      let table: UInt64 = reader.take()
      tables.append(table)
      #expect(
        try arena.read(at: table, count: 32) == [
          0, 0x10, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0,
          0,
        ])
    }
    #expect(tables[1] >= tables[0] + 32 || tables[0] >= tables[1] + 32)
  }

  @Test("an id that is not in flight stops the ring: bogus, out of range, or given back twice")
  func unknownTokens() throws {
    for id in [2, 4, 0x1_0000, 0xffff_ffff] as [UInt32] {
      let (arena, ring) = try makeRing()
      _ = ring.add([DescriptorSpec(0x1000, 1), DescriptorSpec(0x1000, 1)])
      _ = ring.add([DescriptorSpec(0x1000, 1)].span)
      ring.publish()
      var writer = WireWriter()
      for word in [id, 0, 0, 0] { writer.put(word) }
      try arena.write(writer.bytes, at: ring.areas.device + 4)
      try arena.write([1, 0], at: ring.areas.device + 2)
      // Descriptor 2 heads the second chain; 1 would be the middle of the first.
      guard id != 2 else {
        #expect(ring.poll() == UsedChain(token: 2, length: 0))
        try arena.write([2, 0, 0, 0], at: ring.areas.device + 12)
        try arena.write([2, 0], at: ring.areas.device + 2)
        #expect(ring.poll() == nil)
        #expect(ring.fault == .unknownToken(2))
        continue
      }
      #expect(ring.poll() == nil)
      #expect(ring.fault == .unknownToken(id))
      #expect(ring.poll() == nil)
    }
  }

  @Test("the middle of a chain is no token")
  func middle() throws {
    let (arena, ring) = try makeRing()
    _ = ring.add([DescriptorSpec(0x1000, 1), DescriptorSpec(0x1000, 1)])
    ring.publish()
    try arena.write([1, 0, 0, 0], at: ring.areas.device + 4)
    try arena.write([1, 0], at: ring.areas.device + 2)
    #expect(ring.poll() == nil)
    #expect(ring.fault == .unknownToken(1))
  }

  @Test("a used index ahead of what is in flight stops the ring")
  func indexAhead() throws {
    let (arena, ring) = try makeRing()
    _ = ring.add([DescriptorSpec(0x1000, 1)])
    ring.publish()
    try arena.write([2, 0], at: ring.areas.device + 2)
    #expect(ring.poll() == nil)
    #expect(ring.fault == .usedIndexAhead(index: 2, expected: 0, inFlight: 1))
  }

  @Test("a device that scribbles over the descriptor table does not lead the driver astray")
  func scribble() throws {
    let pair = try RingPair(DriverRingOptions(size: 4), packed: false)
    for round in 0..<10 {
      let token = try #require(pair.ring.add(DriverRingTests.chain(3)))
      pair.ring.publish()
      let chain = try #require(pair.device.next())
      try pair.arena.write([UInt8](repeating: 0xff, count: 64), at: pair.ring.areas.descriptors)
      pair.device.complete(chain, written: UInt32(round))
      _ = pair.device.publish()
      #expect(pair.ring.poll() == UsedChain(token: token, length: UInt32(round)))
      #expect(pair.ring.freeDescriptors == 4)
    }
  }

  @Test("raw moves write the words they name")
  func rawMoves() throws {
    let (arena, ring) = try makeRing()
    ring.withSplit { ring in
      ring.rawSetDescriptor(3, address: 0x77, length: 5, flags: 0xffff, next: 9)
      ring.rawSetAvailableEntry(2, head: 0xabcd)
      ring.rawSetAvailableIndex(0x1234)
      ring.rawSetAvailableFlags(0xfffe)
      ring.rawSetUsedEvent(0x4321)
    }
    #expect(
      try arena.read(at: ring.areas.descriptors + 48, count: 16)
        == [0x77, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0xff, 0xff, 9, 0])
    #expect(
      try arena.read(at: ring.areas.driver, count: 14)
        == [0xfe, 0xff, 0x34, 0x12, 0, 0, 0, 0, 0xcd, 0xab, 0, 0, 0x21, 0x43])
    try arena.write([1, 0, 7, 0, 5, 0, 0, 0, 6, 0, 0, 0], at: ring.areas.device)
    try arena.write([8, 9], at: ring.areas.device + 4 + 32)
    let words = ring.withSplit {
      [$0.rawUsedFlags, $0.rawUsedIndex, $0.rawAvailableEvent, $0.rawAvailableIndex]
    }
    #expect(words == [1, 7, 0x0908, 0x1234])
    let entry = try #require(ring.withSplit { $0.rawUsedEntry(0) })
    #expect(entry == (5, 6))
    #expect(ring.withPacked { _ in 1 } == nil)
  }

  @Test("an adopted head is known, and is not given out twice")
  func adopt() throws {
    let pair = try RingPair(DriverRingOptions(size: 4), packed: false)
    let adopted = pair.ring.withSplit { ring in
      ring.rawSetDescriptor(2, address: 0x500, length: 7, flags: 2)
      return [ring.rawAdopt(head: 2), ring.rawAdopt(head: 2)]
    }
    #expect(adopted == [true, false])
    pair.ring.publish()
    let chain = try #require(pair.device.next())
    #expect(chain == DeviceChain(id: 2, slots: 1, buffers: [DescriptorSpec(0x500, 7, write: true)]))
    #expect(pair.ring.freeDescriptors == 3)
    for _ in 0..<3 { #expect(pair.ring.add(DriverRingTests.chain(1)) != 2) }
    #expect(pair.ring.add(DriverRingTests.chain(1)) == nil)
    pair.device.complete(chain, written: 7)
    _ = pair.device.publish()
    #expect(pair.ring.poll() == UsedChain(token: 2, length: 7))
    #expect(pair.ring.freeDescriptors == 1)
  }
}
