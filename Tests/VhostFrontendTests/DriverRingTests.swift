// Both kinds of ring against the models: chains arrive whole, come back once, and nobody misses a
// notification.

import Testing
import VhostFrontend

@Suite("Driver rings") struct DriverRingTests {
  /// A chain of `count` buffers nobody touches, different for each seed.
  static func chain(_ count: Int, seed: UInt64 = 0) -> [DescriptorSpec] {
    (0..<count).map {
      DescriptorSpec(seed << 20 | UInt64($0) << 4, UInt32(seed % 7) + UInt32($0) + 1, write: $0 > count / 2)
    }
  }

  @Test("a chain arrives as it was added, in the ring, in a table, or in both", arguments: [false, true])
  func chains(packed: Bool) throws {
    let pair = try RingPair(DriverRingOptions(size: 16, indirectCapacity: 20), packed: packed)
    var tables: [(DescriptorTable, slots: Int)] = [(.direct, 5), (.indirect, 1)]
    if !packed { tables += [(.mixed(direct: 1), 2), (.mixed(direct: 4), 5), (.mixed(direct: 5), 5)] }
    for (table, slots) in tables {
      let chain = Self.chain(5, seed: 3)
      let token = try #require(pair.ring.add(chain, table: table))
      #expect(pair.ring.freeDescriptors == 16 - slots)
      #expect(pair.device.next() == nil)
      pair.ring.publish()
      let arrived = try #require(pair.device.next())
      #expect(arrived == DeviceChain(id: token, slots: slots, buffers: chain))
      #expect(pair.ring.poll() == nil)
      pair.device.complete(arrived, written: 77)
      _ = pair.device.publish()
      #expect(pair.ring.poll() == UsedChain(token: token, length: 77))
      #expect(pair.ring.freeDescriptors == 16)
    }
    // Longer than the ring, but not than a table.
    let long = Self.chain(20)
    #expect(pair.ring.add(long) == nil)
    let token = try #require(pair.ring.add(long, table: .indirect))
    pair.ring.publish()
    #expect(pair.device.next() == DeviceChain(id: token, slots: 1, buffers: long))
    #expect(pair.ring.add(Self.chain(21), table: .indirect) == nil)
    #expect(pair.ring.add([]) == nil)
  }

  @Test("a packed ring refuses a mixed chain, which its format does not have")
  func packedMixed() throws {
    let pair = try RingPair(DriverRingOptions(size: 16, indirectCapacity: 8), packed: true)
    #expect(pair.ring.add(Self.chain(3), table: .mixed(direct: 1)) == nil)
    #expect(pair.ring.freeDescriptors == 16)
  }

  @Test("a full ring takes no more, and all of it again once it is used", arguments: [false, true])
  func full(packed: Bool) throws {
    for size in (packed ? [1, 2, 3, 7, 256, 32768] : [1, 2, 4, 256, 32768]) as [UInt16] {
      let pair = try RingPair(DriverRingOptions(size: size), packed: packed)
      for _ in 0..<3 {
        for _ in 0..<size { #expect(pair.ring.add(Self.chain(1)) != nil) }
        #expect(pair.ring.freeDescriptors == 0)
        #expect(pair.ring.add(Self.chain(1)) == nil)
        pair.ring.publish()
        while let chain = pair.device.next() { pair.device.complete(chain, written: 0) }
        _ = pair.device.publish()
        var count = 0
        while pair.ring.poll() != nil { count += 1 }
        #expect(count == Int(size))
        #expect(pair.ring.inFlight == 0)
      }
      #expect(pair.ring.fault == nil)
    }
  }

  @Test("a size the format does not have is refused")
  func badSizes() throws {
    let arena = try GuestArena(bytes: 1 << 20)
    for size in [0, 3, 32769] as [UInt16] {
      #expect(throws: FrontendError.badRingSize(size)) {
        try AnyDriverRing(.init(size: size), packed: false, in: arena)
      }
    }
    for size in [0, 32769] as [UInt16] {
      #expect(throws: FrontendError.badRingSize(size)) {
        try AnyDriverRing(.init(size: size), packed: true, in: arena)
      }
    }
  }

  @Test(
    "chains of all lengths, completed in any order, each come back once with their length",
    arguments: [false, true], [0, 1, 2])
  func randomOrder(packed: Bool, seed: Int) throws {
    var dice = Dice(seed: UInt64(seed) + 5)
    let starts: [UInt16] = packed ? [0x8000, 0x0005, 0x8003] : [0, 65500, 32767]
    let pair = try RingPair(
      DriverRingOptions(size: 8, indirectCapacity: 6, start: starts[seed]), packed: packed)
    var added: [UInt16: [DescriptorSpec]] = [:]
    var written: [UInt16: UInt32] = [:]
    var held: [DeviceChain] = []
    var back = 0
    for step in 0..<60_000 {
      switch Int.random(in: 0..<4, using: &dice) {
      case 0, 1:
        let chain = Self.chain(Int.random(in: 1...5, using: &dice), seed: UInt64(step))
        let table: DescriptorTable = Bool.random(using: &dice) ? .indirect : .direct
        guard let token = pair.ring.add(chain, table: table) else {
          pair.ring.publish()
          continue
        }
        #expect(added.updateValue(chain, forKey: token).map { _ in false } ?? true)
        if Bool.random(using: &dice) { pair.ring.publish() }
      case 2:
        while let chain = pair.device.next() {
          #expect(added[chain.id] == chain.buffers)
          held.append(chain)
        }
        held.shuffle(using: &dice)
        for _ in 0..<Int.random(in: 0...held.count, using: &dice) {
          let chain = held.removeLast()
          written[chain.id] = UInt32(step) + 1
          pair.device.complete(chain, written: UInt32(step) + 1)
        }
        _ = pair.device.publish()
      default:
        while let used = pair.ring.poll() {
          back += 1
          #expect(added.removeValue(forKey: used.token) != nil)
          #expect(written.removeValue(forKey: used.token) == used.length)
        }
      }
    }
    #expect(back > 10_000)
    #expect(pair.ring.fault == nil)
    #expect(Int(pair.ring.counters.used) == back)
    #expect(pair.ring.inFlight == added.count)
  }

  @Test(
    "without EVENT_IDX the device's flag decides about kicks, the driver's about calls",
    arguments: [false, true])
  func flags(packed: Bool) throws {
    let pair = try RingPair(DriverRingOptions(size: 8, eventIndex: false), packed: packed)
    func offer() -> Bool {
      _ = pair.ring.add(Self.chain(1))
      pair.ring.publish()
      return pair.ring.needsKick()
    }
    func serve() -> Bool {
      while let chain = pair.device.next() { pair.device.complete(chain, written: 1) }
      return pair.device.publish()
    }
    #expect(!pair.ring.needsKick())
    #expect(offer())
    #expect(!pair.ring.needsKick())
    pair.device.declineKicks()
    #expect(!offer())
    #expect(pair.device.askForKicks())
    #expect(offer())
    #expect(pair.ring.counters.kicks == 2)
    #expect(pair.ring.counters.kicksSuppressed == 1)

    pair.ring.disarm()
    #expect(!serve())
    #expect(pair.ring.arm())
    while pair.ring.poll() != nil {}
    #expect(!pair.ring.arm())
    _ = offer()
    #expect(serve())
  }

  @Test("with EVENT_IDX one kick and one call answer each request for one", arguments: [false, true])
  func eventIndex(packed: Bool) throws {
    let pair = try RingPair(DriverRingOptions(size: 8), packed: packed)
    for _ in 0..<100 {
      #expect(!pair.device.askForKicks())
      _ = pair.ring.add(Self.chain(2))
      _ = pair.ring.add(Self.chain(1))
      pair.ring.publish()
      #expect(pair.ring.needsKick())
      _ = pair.ring.add(Self.chain(1))
      pair.ring.publish()
      #expect(!pair.ring.needsKick())

      #expect(!pair.ring.arm())
      for (index, wanted) in [true, false, false].enumerated() {
        let chain = try #require(pair.device.next())
        pair.device.complete(chain, written: 1)
        #expect(pair.device.publish() == wanted, "chain \(index)")
      }
      #expect(pair.ring.arm())
      while pair.ring.poll() != nil {}
    }
    #expect(pair.ring.counters.kicks == 100)
    #expect(pair.ring.counters.kicksSuppressed == 100)
  }

  @Test("a later interrupt comes when that many more are back", arguments: [false, true])
  func delayedInterrupt(packed: Bool) throws {
    let pair = try RingPair(DriverRingOptions(size: 16), packed: packed)
    for _ in 0..<20 {
      for _ in 0..<5 { _ = pair.ring.add(Self.chain(2)) }
      pair.ring.publish()
      #expect(!pair.ring.arm(after: 3))
      var told: [Bool] = []
      while let chain = pair.device.next() {
        pair.device.complete(chain, written: 1)
        told.append(pair.device.publish())
      }
      #expect(told == [false, false, false, true, false])
      while pair.ring.poll() != nil {}
    }
  }

  @Test("disarmed, EVENT_IDX or not, there are no calls", arguments: [false, true], [false, true])
  func disarmed(packed: Bool, eventIndex: Bool) throws {
    let pair = try RingPair(DriverRingOptions(size: 8, eventIndex: eventIndex), packed: packed)
    for _ in 0..<50 {
      pair.ring.disarm()
      _ = pair.ring.add(Self.chain(1))
      pair.ring.publish()
      let chain = try #require(pair.device.next())
      pair.device.complete(chain, written: 1)
      #expect(!pair.device.publish())
      #expect(pair.ring.poll() != nil)
    }
  }

  @Test("a ring that is reset begins anew", arguments: [false, true])
  func reset(packed: Bool) throws {
    let pair = try RingPair(DriverRingOptions(size: 8), packed: packed)
    let fresh = pair.ring.base
    for _ in 0..<5 { _ = pair.ring.add(Self.chain(1)) }
    pair.ring.publish()
    #expect(pair.ring.base != fresh)
    pair.ring.reset()
    #expect(pair.ring.base == fresh)
    #expect(pair.ring.freeDescriptors == 8)
    #expect(pair.ring.poll() == nil)
    #expect(pair.device.next() == nil)
  }

  @Test("bases name the place as SET_VRING_BASE does")
  func bases() throws {
    let split = try RingPair(DriverRingOptions(size: 8, start: 65535), packed: false)
    #expect(split.ring.base == 65535)
    _ = split.ring.add(Self.chain(3))
    #expect(split.ring.base == 65535)
    split.ring.publish()
    #expect(split.ring.base == 0)
    #expect(split.ring.baseOfUsed == 65535)

    let packed = try RingPair(DriverRingOptions(size: 5), packed: true)
    #expect(packed.ring.base == 0x8000_8000)
    _ = packed.ring.add(Self.chain(3))
    packed.ring.publish()
    #expect(packed.ring.base == 0x8000_8003)
    packed.device.complete(try #require(packed.device.next()), written: 1)
    _ = packed.ring.poll()
    _ = packed.ring.add(Self.chain(3))
    packed.ring.publish()
    #expect(packed.ring.base == 0x8003_0001)
    #expect(packed.ring.baseOfUsed == 0x8003_8003)
  }
}
