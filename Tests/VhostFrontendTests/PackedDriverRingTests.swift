// The packed ring's memory word by word, its faults, and its raw moves.

import Testing
import VhostFrontend

@Suite("Packed driver ring") struct PackedDriverRingTests {
  func makeRing(_ options: DriverRingOptions = .init(size: 4)) throws -> (GuestArena, AnyDriverRing) {
    let arena = try GuestArena(bytes: 1 << 16)
    return (arena, try AnyDriverRing(options, packed: true, in: arena))
  }

  @Test("descriptors lie where virtio 1.3 §2.8 has them, the first head's flags last")
  func layout() throws {
    let (arena, ring) = try makeRing()
    #expect(ring.areas.descriptors % 16 == 0)
    #expect(ring.areas.driver % 4 == 0)
    #expect(ring.areas.device % 4 == 0)
    let chain = [DescriptorSpec(0x1122_3344_5566_7788, 0x10), DescriptorSpec(0x2000, 0x200, write: true)]
    #expect(ring.add(chain) == 0)
    #expect(ring.add([DescriptorSpec(0x3000, 1)]) == 1)
    #expect(try arena.read(at: ring.areas.descriptors + 14, count: 2) == [0, 0])
    ring.publish()
    #expect(
      try arena.read(at: ring.areas.descriptors, count: 64) == [
        0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x10, 0, 0, 0, 0, 0, 0x81, 0,
        0, 0x20, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0x82, 0,
        0, 0x30, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0x80, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
      ])
    // The device gives the first chain back, without a length; the second lap has the other marks.
    try arena.write([0, 0, 0, 0, 0, 0, 0x80, 0x80], at: ring.areas.descriptors + 8)
    #expect(ring.poll() == UsedChain(token: 0, length: 0, hasLength: false))
    #expect(ring.poll() == nil)
    #expect(ring.add(chain) == 0)
    ring.publish()
    #expect(try arena.read(at: ring.areas.descriptors + 48 + 12, count: 4) == [0, 0, 0x81, 0])
    #expect(try arena.read(at: ring.areas.descriptors + 12, count: 4) == [0, 0, 2, 0x80])
  }

  @Test("an indirect descriptor's table has nothing but WRITE in its flags")
  func indirectLayout() throws {
    let (arena, ring) = try makeRing(.init(size: 2, indirectCapacity: 2))
    _ = ring.add([DescriptorSpec(0x1000, 1), DescriptorSpec(0x2000, 2, write: true)], table: .indirect)
    ring.publish()
    let bytes = try arena.read(at: ring.areas.descriptors, count: 16)
    #expect(Array(bytes[8...]) == [32, 0, 0, 0, 0, 0, 0x84, 0])
    var reader = WireReader(bytes)
    let table: UInt64 = reader.take()
    #expect(
      try arena.read(at: table, count: 32) == [
        0, 0x10, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 2, 0,
      ])
  }

  @Test("events are written as offset, wrap counter and mode")
  func events() throws {
    let (arena, ring) = try makeRing(.init(size: 3))
    _ = ring.arm()
    #expect(try arena.read(at: ring.areas.driver, count: 4) == [0, 0x80, 2, 0])
    ring.disarm()
    #expect(try arena.read(at: ring.areas.driver + 2, count: 2) == [1, 0])
    for _ in 0..<3 { _ = ring.add([DescriptorSpec(0x1000, 1)]) }
    ring.publish()
    // Ids 0, 1 and 2 come back: the used position is at 0 again, in the other lap.
    for slot in 0..<3 as Range<UInt64> {
      try arena.write([0, 0, 0, 0, UInt8(slot), 0, 0x80, 0x80], at: ring.areas.descriptors + 16 * slot + 8)
      _ = ring.poll()
    }
    #expect(!ring.arm())
    #expect(try arena.read(at: ring.areas.driver, count: 4) == [0, 0, 2, 0])
    // Reserved mode 3 counts as enabled.
    for (mode, wanted) in [(0, true), (1, false), (3, true)] as [(UInt8, Bool)] {
      try arena.write([0, 0, mode, 0], at: ring.areas.device)
      _ = ring.add([DescriptorSpec(0x1000, 1)])
      ring.publish()
      #expect(ring.needsKick() == wanted)
    }
  }

  @Test("an id that is not in flight stops the ring: bogus, out of range, or given back twice")
  func unknownTokens() throws {
    for id in [1, 4, 0xffff] as [UInt16] {
      let (arena, ring) = try makeRing()
      _ = ring.add([DescriptorSpec(0x1000, 1)])
      ring.publish()
      let bytes = [0, 0, 0, 0, UInt8(id & 0xff), UInt8(id >> 8), 0x80, 0x80]
      try arena.write(bytes, at: ring.areas.descriptors + 8)
      #expect(ring.poll() == nil)
      #expect(ring.fault == .unknownToken(UInt32(id)))
    }
    let (arena, ring) = try makeRing()
    for _ in 0..<2 { _ = ring.add([DescriptorSpec(0x1000, 1)]) }
    ring.publish()
    for slot in 0..<2 as Range<UInt64> {
      try arena.write([0, 0, 0, 0, 0, 0, 0x80, 0x80], at: ring.areas.descriptors + 16 * slot + 8)
    }
    #expect(ring.poll() != nil)
    #expect(ring.poll() == nil)
    #expect(ring.fault == .unknownToken(0))
  }

  @Test("a device that scribbles over the ring does not lead the driver astray")
  func scribble() throws {
    let (arena, ring) = try makeRing()
    for _ in 0..<10 {
      let (slot, wrap) = try #require(ring.withPacked { $0.rawPosition })
      let token = try #require(ring.add(DriverRingTests.chain(3)))
      ring.publish()
      try arena.write([UInt8](repeating: 0, count: 64), at: ring.areas.descriptors)
      ring.withPacked { ring in
        // All but the used descriptor looks available and not used, whatever the lap.
        for other in 0..<4 as Range<UInt16> { ring.rawSetFlags(other, 0x0080) }
        ring.rawSetDescriptor(
          slot, address: .max, length: 5, id: token, flags: PackedDriverRing.usedBits(wrap: wrap) | 2)
      }
      #expect(ring.poll() == UsedChain(token: token, length: 5))
      #expect(ring.freeDescriptors == 4)
    }
  }

  @Test("raw moves write the words they name")
  func rawMoves() throws {
    let (arena, ring) = try makeRing()
    let descriptor = try #require(
      ring.withPacked { ring in
        ring.rawSetDescriptor(1, address: 0x77, length: 5, id: 9, flags: 0x8083)
        ring.rawSetDriverEvent(offsetWrap: 0x8123, flags: 3)
        return ring.rawDescriptor(1)
      })
    #expect(descriptor == (0x77, 5, 9, 0x8083))
    #expect(
      try arena.read(at: ring.areas.descriptors + 16, count: 16)
        == [0x77, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 9, 0, 0x83, 0x80])
    #expect(try arena.read(at: ring.areas.driver, count: 4) == [0x23, 0x81, 3, 0])
    try arena.write([1, 0x80, 2, 0], at: ring.areas.device)
    let event = try #require(ring.withPacked { $0.rawDeviceEvent })
    #expect(event == (0x8001, 2))
    #expect(ring.withSplit { _ in 1 } == nil)
  }

  @Test("adopted descriptors are known, and are passed over")
  func adopt() throws {
    let pair = try RingPair(DriverRingOptions(size: 4), packed: true)
    let token = try #require(
      pair.ring.withPacked { ring -> UInt16? in
        let (slot, wrap) = ring.rawPosition
        guard let id = ring.rawAdopt(slots: 2) else { return nil }
        let bits = PackedDriverRing.availableBits(wrap: wrap)
        ring.rawSetDescriptor(
          slot + 1, address: 0x600, length: 8, id: id, flags: bits | PackedDriverRing.write)
        ring.rawSetDescriptor(slot, address: 0x500, length: 7, id: id, flags: bits | PackedDriverRing.next)
        return id
      })
    #expect(pair.ring.needsKick())
    let chain = try #require(pair.device.next())
    #expect(
      chain
        == DeviceChain(
          id: token ?? 99, slots: 2,
          buffers: [DescriptorSpec(0x500, 7), DescriptorSpec(0x600, 8, write: true)]))
    #expect(pair.ring.freeDescriptors == 2)
    pair.device.complete(chain, written: 8)
    #expect(pair.ring.poll() == UsedChain(token: token ?? 99, length: 8))
  }
}
