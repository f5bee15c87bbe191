// What holds for chains of either format between `next` and `complete`: set aside, dropped, on an older memory map, in
// want of room.

import Glibc
import Testing
import VirtQueue

@Suite("Chains that are out")
struct RingLifeTests {
  /// A chain of `pieces` single bytes.
  private func pieces(_ count: Int) -> [Piece] {
    (0..<count).map { .read(Place.read + UInt64($0 % 0x8000), 1) }
  }

  @Test("A chain that was set aside comes back by its head, once", arguments: Format.allCases)
  func hold(format: Format) throws {
    let rig = try Rig(format)
    let token = try #require(rig.driver.add([.read(Place.read, 5), .write(Place.write, 3)], .direct))
    #expect(rig.ring.hold() == token)
    #expect(rig.ring.liveCount == 1)
    for other: UInt16 in 0..<20 where other != token { #expect(!rig.ring.finish(other), "\(other)") }
    for other: UInt16 in [0x7fff, 0x8000, 0xffff] { #expect(!rig.ring.finish(other)) }
    let taken = try take(rig, token)
    #expect(!rig.ring.finish(token), "it is with us now")
    #expect(taken.head == token)
    #expect(taken.readable.contents == TestMemory.pattern(at: Place.read, 5))
    #expect(taken.writable.byteCount == 3)
    #expect(taken.surrender()?.hold() == token)
    #expect(rig.ring.finish(token, written: 3))
    #expect(!rig.ring.finish(token))
    #expect(rig.ring.liveCount == 0)
    #expect(rig.ring.publish() == .call)
    #expect(rig.driver.collect().map { [Int($0.token), $0.length] } == [Int(token), 3])
  }

  private func take(_ rig: Rig, _ head: UInt16) throws -> GivenChain {
    guard let chain = rig.ring.take(head) else { throw NoChain() }
    return GivenChain(chain)
  }

  @Test(
    "Chains that are untaken, the last one first, are given out again, over the end of the ring too",
    arguments: Format.allCases)
  func untaken(format: Format) throws {
    let rig = try Rig(format, size: 8)
    for round in 0..<20 {
      let base = rig.ring.base
      let tokens = try (1...3).map { try #require(rig.driver.add(pieces($0 % 2 + 1), .direct)) }
      var heads: [UInt16] = []
      for _ in tokens { heads.append(try #require(rig.ring.hold())) }
      #expect(heads == tokens)
      #expect(rig.ring.base != base)
      for head in heads.reversed() { rig.ring.untakeHeld(head) }
      #expect(rig.ring.liveCount == 0)
      #expect(rig.ring.base == base, "round \(round)")
      for token in tokens {
        #expect(rig.ring.hold() == token)
        #expect(rig.ring.finish(token, written: round))
      }
      _ = rig.ring.publish()
      for token in tokens {
        let used = try #require(rig.driver.collect())
        #expect(used.token == token)
        #expect(used.length == round)
      }
    }
    #expect(rig.ring.fault == nil)
  }

  @Test("Chains come back in any order", arguments: Format.allCases)
  func anyOrder(format: Format) throws {
    for seed: UInt64 in 0..<50 {
      var dice = Dice(seed)
      let rig = try Rig(format, size: 32)
      let tokens = try (1...8).map { try #require(rig.driver.add(pieces($0 % 4 + 1), .direct)) }
      let heads = tokens.map { _ in rig.ring.hold() }
      #expect(heads == tokens)
      #expect(rig.ring.liveCount == 8)
      let order = tokens.shuffled(using: &dice)
      for (i, head) in order.enumerated() { #expect(rig.ring.finish(head, written: i)) }
      _ = rig.ring.publish()
      for (i, head) in order.enumerated() {
        let used = try #require(rig.driver.collect())
        #expect(used.token == head)
        #expect(used.length == i)
      }
    }
  }

  @Test(
    "A dropped chain breaks the ring at the next publication, and is no longer out",
    arguments: Format.allCases)
  func dropped(format: Format) throws {
    let rig = try Rig(format)
    let token = try #require(rig.driver.add(pieces(1), .direct))
    _ = rig.driver.add(pieces(1), .direct)
    do { _ = try rig.ring.chain() }
    #expect(rig.ring.fault == nil)
    #expect(rig.ring.publish() == .none)
    #expect(rig.ring.fault == .chainDropped(token))
    #expect(rig.ring.liveCount == 0)
    #expect(rig.ring.givesNothing())
  }

  @Test(
    "Dropped chains with long arrays give them back, and completions beside them are not shown",
    arguments: Format.allCases)
  func droppedMany(format: Format) throws {
    let rig = try Rig(format, size: 4096)
    for _ in 0..<8 { _ = rig.driver.add(pieces(100), .direct) }
    try rig.ring.complete(rig.ring.chain(), written: 0)
    for _ in 0..<3 { _ = try rig.ring.chain() }
    let held = try #require(rig.ring.hold())
    #expect(rig.ring.publish() == .none)
    guard case .chainDropped? = rig.ring.fault else {
      Issue.record("\(String(describing: rig.ring.fault))")
      return
    }
    #expect(rig.ring.liveCount == 1)
    #expect(rig.ring.finish(held))
    #expect(rig.ring.liveCount == 0)
    #expect(rig.driver.collect() == nil)
  }

  @Test("A head that comes again after its chain was dropped breaks the ring", arguments: Format.allCases)
  func droppedThenAgain(format: Format) throws {
    let memory = try Place.memory()
    let driver = makeDriver(format, size: 1, memory: memory)
    let ring = try makeRing(format, driver.layout, memory.map)
    _ = driver.add(pieces(1), .direct)
    do { _ = try ring.chain() }
    // The driver does not know; another ring of its makes the same head available.
    if let split = driver as? SplitDriver { split.offer(0) }
    if let packed = driver as? PackedDriver { packed.offer([(Place.read, 1, 0, 0)]) }
    #expect(ring.givesNothing())
    #expect(ring.fault == .chainDropped(0))
    #expect(ring.publish() == .none)
    #expect(ring.liveCount == 0)
  }

  @Test("A chain that outlives its ring does no harm", arguments: Format.allCases)
  func outlives(format: Format) throws {
    let memory = try Place.memory()
    let driver = makeDriver(format, size: 4, memory: memory)
    _ = driver.add(pieces(1), .direct)
    var ring: (any TestRing)? = try makeRing(format, driver.layout, memory.map)
    let chain = try #require(try ring?.chain())
    ring = nil
    // What the ring gave back is taken by others, who would notice.
    let mine = (0..<512).map { UnsafeMutableRawPointer.allocate(byteCount: 8 * ($0 + 1), alignment: 8) }
    for (i, block) in mine.enumerated() { memset(block, 0x5a, 8 * (i + 1)) }
    _ = chain.surrender()
    for (i, block) in mine.enumerated() {
      let bytes = UnsafeRawBufferPointer(start: block, count: 8 * (i + 1))
      #expect(bytes.allSatisfy { $0 == 0x5a })
      block.deallocate()
    }
  }

  // MARK: Memory maps

  /// A ring that is the only holder of its map.
  private func lonely(_ format: Format) throws -> (rig: Rig, gone: Flag) {
    let rig = try Rig(format, size: 16)
    let (map, gone) = try rig.memory.newMap(generation: 2)
    #expect(rig.ring.move(to: map))
    return (rig, gone)
  }

  @Test("MM: an old map goes exactly with its last chain", arguments: Format.allCases, [false, true])
  func lastChain(format: Format, sameGeneration: Bool) throws {
    let (rig, gone) = try lonely(format)
    let tokens = try (0..<4).map { _ in try #require(rig.driver.add([.read(Place.read, 4)], .direct)) }
    for token in tokens { #expect(rig.ring.hold() == token) }
    #expect(!gone.isSet)
    var nextGone = Flag()
    do {
      let (map, flag) = try rig.memory.newMap(generation: sameGeneration ? 2 : 3)
      #expect(rig.ring.move(to: map))
      nextGone = flag
    }
    #expect(!gone.isSet)
    let newer = try #require(rig.driver.add([.read(Place.read, 4)], .direct))
    #expect(rig.ring.hold() == newer)
    #expect(rig.ring.finish(tokens[2]))
    #expect(rig.ring.finish(newer), "one on the new map does not count")
    #expect(rig.ring.finish(tokens[0]))
    #expect(rig.ring.finish(tokens[3]))
    #expect(!gone.isSet, "one is still out")
    let last = try take(rig, tokens[1])
    #expect(last.readable.contents == TestMemory.pattern(at: Place.read, 4))
    rig.ring.complete(last, written: 0)
    #expect(gone.isSet)
    #expect(!nextGone.isSet)
    #expect(rig.ring.liveCount == 0)
  }

  @Test("Without a chain on it, an old map goes at once", arguments: Format.allCases)
  func idleMove(format: Format) throws {
    let (rig, gone) = try lonely(format)
    let (map, _) = try rig.memory.newMap(generation: 3)
    #expect(rig.ring.move(to: map))
    #expect(gone.isSet)
  }

  @Test("Chains on several old maps keep each its own", arguments: Format.allCases, [false, true])
  func severalMaps(format: Format, sameGeneration: Bool) throws {
    let rig = try Rig(format, size: 64)
    var held: [[UInt16]] = []
    var gone: [Flag] = []
    for i in 0..<6 {
      let (map, flag) = try rig.memory.newMap(generation: sameGeneration ? 1 : UInt32(2 + i))
      #expect(rig.ring.move(to: map))
      gone.append(flag)
      held.append(
        try (0..<i).map { _ in
          let token = try #require(rig.driver.add([.read(Place.read, 4)], .direct))
          #expect(rig.ring.hold() == token)
          return token
        })
    }
    #expect(gone.map(\.isSet) == [true, false, false, false, false, false])
    var dice = Dice(6)
    var order = held.enumerated().flatMap { map, heads in heads.map { (map, $0) } }
    order.shuffle(using: &dice)
    var left = held.map(\.count)
    for (map, head) in order {
      #expect(rig.ring.finish(head))
      left[map] -= 1
      for i in 0..<5 { #expect(gone[i].isSet == (left[i] == 0), "map \(i)") }
    }
    #expect(!gone[5].isSet, "the current one stays")
  }

  @Test("Moving to the map that is already there changes nothing", arguments: Format.allCases)
  func sameMap(format: Format) throws {
    let rig = try Rig(format, size: 16)
    let token = try #require(rig.driver.add([.read(Place.read, 4)], .direct))
    #expect(rig.ring.hold() == token)
    for _ in 0..<3 { #expect(rig.ring.move(to: rig.memory.map)) }
    #expect(rig.ring.finish(token))
    // Counts are right afterwards: the next map stays as long as its chains.
    var gone = Flag()
    do {
      let (map, flag) = try rig.memory.newMap(generation: 9)
      gone = flag
      #expect(rig.ring.move(to: map))
    }
    let next = try #require(rig.driver.add([.read(Place.read, 4)], .direct))
    #expect(rig.ring.hold() == next)
    #expect(rig.ring.move(to: rig.memory.map))
    #expect(!gone.isSet)
    #expect(rig.ring.finish(next))
    #expect(gone.isSet)
  }

  @Test("A dropped chain lets its old map go when it is noticed", arguments: Format.allCases)
  func droppedOnOldMap(format: Format) throws {
    let (rig, gone) = try lonely(format)
    _ = rig.driver.add([.read(Place.read, 4)], .direct)
    let chain = try rig.ring.chain()
    #expect(rig.ring.move(to: rig.memory.map))
    _ = chain.surrender()
    #expect(!gone.isSet)
    _ = rig.ring.publish()
    #expect(gone.isSet)
  }

  @Test("A ring lets its maps go with itself", arguments: Format.allCases)
  func ringGone(format: Format) throws {
    let memory = try Place.memory()
    let driver = makeDriver(format, size: 8, memory: memory)
    var gone: [Flag] = []
    do {
      let (first, flag) = try memory.newMap(generation: 1)
      let ring = try makeRing(format, driver.layout, first)
      let (second, other) = try memory.newMap(generation: 2)
      gone = [flag, other]
      _ = driver.add([.read(Place.read, 4)], .direct)
      #expect(ring.hold() != nil)
      #expect(ring.move(to: second))
    }
    #expect(gone.allSatisfy { $0.isSet })
  }

  @Test(
    "A map without the ring's areas breaks the ring, which does not touch them again",
    arguments: Format.allCases)
  func unmapped(format: Format) throws {
    let rig = try Rig(format)
    let token = try #require(rig.driver.add([.read(Place.read, 4)], .direct))
    #expect(rig.ring.hold() == token)
    let (map, _) = try rig.memory.newMap(generation: 2, without: Place.ring)
    #expect(!rig.ring.move(to: map))
    #expect(rig.ring.fault == .ringUnmapped)
    let before = rig.memory.bytes(at: Place.ring, 1024)
    #expect(rig.ring.finish(token, written: 1))
    #expect(rig.ring.publish() == .none)
    #expect(rig.ring.givesNothing())
    #expect(!rig.ring.park())
    rig.ring.unpark()
    #expect(rig.memory.bytes(at: Place.ring, 1024) == before)
  }

  @Test("What a new map leaves out is a hole for new chains", arguments: Format.allCases)
  func regionGone(format: Format) throws {
    let rig = try Rig(format, size: 16)
    _ = rig.driver.add([.read(Place.read, 4)], .direct)
    _ = rig.driver.add([.read(Place.read, 4)], .direct)
    let old = try rig.ring.chain()
    let (map, _) = try rig.memory.newMap(generation: 2, without: Place.read)
    #expect(rig.ring.move(to: map))
    let new = try rig.ring.chain()
    #expect(!old.hasHole)
    #expect(new.hasHole)
    #expect(old.readable.contents == TestMemory.pattern(at: Place.read, 4))
    rig.ring.complete(old, written: 0)
    rig.ring.complete(new, written: 0)
    #expect(rig.ring.publish() == .call)
  }

  // MARK: Room for segments

  @Test(
    "RS07: long chains wait for room, which a completion makes", arguments: Format.allCases,
    [65, 257, 1025, 4096])
  func room(format: Format, length: Int) throws {
    let rig = try Rig(format, size: 32768)
    let perChain = length <= 64 ? 64 : length <= 256 ? 256 : length <= 1024 ? 1024 : 4096
    var added = 0
    while rig.driver.add(pieces(length), .direct) != nil { added += 1 }
    var held: [UInt16] = []
    while let head = rig.ring.hold() { held.append(head) }
    // As many as leave room for one of any length in 65536 segments.
    #expect(held.count == min(added, (65536 - 4096) / perChain + 1))
    #expect(rig.ring.fault == nil)
    var done = 0
    while done < added {
      if held.count < min(added - done, (65536 - 4096) / perChain + 1) {
        Issue.record("stalls after \(done)")
        return
      }
      if done + held.count < added { #expect(!rig.ring.park(), "more is there, but no room for it") }
      #expect(rig.ring.finish(held.removeFirst()))
      done += 1
      while let head = rig.ring.hold() { held.append(head) }
    }
    #expect(rig.ring.liveCount == 0)
    #expect(rig.ring.publish() == .call)
    for _ in 0..<added { #expect(rig.driver.collect() != nil) }
    #expect(rig.driver.collect() == nil)
  }

  @Test("Chains that break off while they grow leave all the room there was", arguments: Format.allCases)
  func roomAfterFaults(format: Format) throws {
    // A ring breaks with its first bad chain; its slots must not be counted as used for it.
    let rig = try Rig(format, size: 8192)
    _ = rig.driver.add(pieces(4000) + [.write(Place.write, 1), .read(Place.read, 1)], .direct)
    #expect(rig.ring.givesNothing())
    #expect(rig.ring.fault == .readableAfterWritable)
    #expect(rig.ring.liveCount == 0)
  }
}
