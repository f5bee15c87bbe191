// What a killed process had taken and not given back: the next one gets it first, in order, and nothing twice.

import CLinux
import Testing
import VhostFrontend
import VirtQueue

/// A deterministic source of numbers.
struct Dice: RandomNumberGenerator {
  private var state: UInt64
  init(_ seed: UInt64) { state = seed &* 0x9e37_79b9_7f4a_7c15 | 1 }
  mutating func next() -> UInt64 {
    state ^= state << 13
    state ^= state >> 7
    state ^= state << 17
    return state
  }
}

/// A driver, the memory it shares, and an inflight area: what outlives a device process.
final class Survivor {
  let arena: GuestArena
  let driver: AnyDriverRing
  let map: GuestMemoryMap
  let layout: RingLayout
  let area: InflightArea
  let logBytes: UnsafeMutableRawBufferPointer
  private let payload: UInt64
  /// Ids by token, of chains that the driver waits for.
  private(set) var waiting: [UInt16: UInt64] = [:]
  private var nextID: UInt64 = 1

  final class Keeper: Sendable {}

  init(packed: Bool, size: UInt16, logSize: UInt16? = nil) throws {
    let arena = try GuestArena(bytes: 4 << 20, at: 0x10_0000)
    self.arena = arena
    driver = try AnyDriverRing(
      DriverRingOptions(size: size, eventIndex: true, indirectCapacity: 4), packed: packed, in: arena)
    let regions = try arena.table.map { region in
      GuestRegion(
        guestAddress: region.guestAddress, size: region.size, userAddress: region.userAddress,
        host: try arena.pointer(to: region.guestAddress, bytes: 1), owner: Keeper())
    }
    map = try GuestMemoryMap(generation: 1, regions: regions)
    let areas = driver.areas
    layout = RingLayout(
      size: size, descriptorArea: arena.userAddress(of: areas.descriptors),
      driverArea: arena.userAddress(of: areas.driver), deviceArea: arena.userAddress(of: areas.device),
      base: driver.base | (packed ? driver.baseOfUsed << 16 : 0), indirect: true, eventIndex: true)
    let count = logSize ?? size
    let bytes = InflightArea.byteCount(size: count, packed: packed)
    logBytes = .allocate(byteCount: bytes, alignment: 64)
    logBytes.initializeMemory(as: UInt8.self, repeating: 0)
    area = InflightArea(
      base: logBytes.baseAddress!, byteCount: bytes, descriptorCount: count, owner: Keeper())
    payload = try arena.allocate(8 * 65536)
  }

  deinit { logBytes.deallocate() }

  /// Makes a chain of `pieces` descriptors available, the first of which holds a new id.
  func add(pieces: Int, indirect: Bool) throws -> Bool {
    let place = payload + 8 * (nextID % 65536)
    try arena.write(withUnsafeBytes(of: nextID) { Array($0) }, at: place)
    var chain = [DescriptorSpec(place, 8)]
    for _ in 1..<max(2, pieces) { chain.append(DescriptorSpec(place, 1, write: true)) }
    guard let token = driver.add(chain, table: indirect ? .indirect : .direct) else { return false }
    driver.publish()
    waiting[token] = nextID
    nextID += 1
    return true
  }

  /// Ids that have become used since the last call.
  func collect() -> [UInt64] {
    var ids: [UInt64] = []
    while let used = driver.poll() {
      guard let id = waiting.removeValue(forKey: used.token) else {
        Issue.record("token \(used.token) came back, which nobody waits for")
        continue
      }
      ids.append(id)
    }
    return ids
  }
}

@Suite("inflight logs")
struct InflightTests {
  private static func id(of chain: borrowing Chain) -> UInt64 { chain.readable.load(UInt64.self) ?? 0 }

  /// One life of a device: takes, completes and publishes as the dice say, then vanishes without a word.
  private func live<R: VirtRing & ~Copyable>(
    _ ring: consuming R, expecting: [UInt64], steps: Int, dice: inout Dice, finishAll: Bool,
    survivor: Survivor
  ) -> (unfinished: [UInt64], published: Int) {
    var ring = ring
    var held: [(head: UInt16, id: UInt64)] = []
    var order: [UInt64] = []
    var unpublished: [UInt64] = []
    var expected = expecting[...]
    var published = 0
    for _ in 0..<steps {
      switch Int.random(in: 0..<(finishAll ? 3 : 4), using: &dice) {
      case 0, 3:
        guard let chain = ring.next() else { break }
        let id = Self.id(of: chain)
        if let first = expected.popFirst() {
          #expect(id == first, "an unfinished request comes in its turn")
        }
        order.append(id)
        held.append((chain.hold(), id))
      case 1:
        guard !held.isEmpty else { break }
        let (head, id) = held.remove(at: Int.random(in: 0..<held.count, using: &dice))
        guard let chain = ring.take(head) else {
          Issue.record("head \(head) is not held")
          break
        }
        ring.complete(chain, written: 1)
        unpublished.append(id)
      default:
        _ = ring.publish()
        published += unpublished.count
        let done = Set(unpublished)
        order.removeAll { done.contains($0) }
        unpublished = []
      }
    }
    #expect(ring.fault == nil)
    // Held chains and what was completed without being published are lost with the process; those never taken again by
    // this life stay expected.
    return (order + Array(expected), published)
  }

  @Test(
    "every request is completed once, over many lives",
    arguments: [
      (false, UInt16(8)), (false, 64), (true, 8), (true, 7), (true, 64), (false, 1), (true, 1),
    ])
  func lives(packed: Bool, size: UInt16) throws {
    for seed in 0..<40 {
      var dice = Dice(UInt64(seed + 1) &* 7919)
      let survivor = try Survivor(packed: packed, size: size)
      var unfinished: [UInt64] = []
      var seen: [UInt64] = []
      for life in 0..<30 {
        for _ in 0..<Int.random(in: 0...12, using: &dice) {
          _ = try survivor.add(
            pieces: Int.random(in: 2...3, using: &dice), indirect: size < 4 || Bool.random(using: &dice))
        }
        let last = life == 29
        let steps = last ? 4000 : Int.random(in: 0...60, using: &dice)
        let result =
          packed
          ? live(
            try PackedRing(survivor.layout, map: survivor.map, inflight: survivor.area),
            expecting: unfinished,
            steps: steps, dice: &dice, finishAll: last, survivor: survivor)
          : live(
            try SplitRing(survivor.layout, map: survivor.map, inflight: survivor.area), expecting: unfinished,
            steps: steps, dice: &dice, finishAll: last, survivor: survivor)
        unfinished = result.unfinished
        let used = survivor.collect()
        #expect(used.count == result.published)
        seen += used
      }
      #expect(survivor.waiting.isEmpty, "nothing is lost")
      #expect(Set(seen).count == seen.count, "nothing comes twice")
      #expect(survivor.driver.fault == nil)
    }
  }

  @Test(
    "the log's own fields may hold anything: the ring starts, or is refused, and nothing traps",
    arguments: [false, true])
  func foreignContent(packed: Bool) throws {
    var refused = 0
    for seed in 0..<3000 {
      var dice = Dice(UInt64(seed + 1) &* 104_729)
      let survivor = try sharedSurvivor(packed)
      for i in 0..<survivor.logBytes.count where Int.random(in: 0..<3, using: &dice) == 0 {
        survivor.logBytes[i] = UInt8.random(in: 0...255, using: &dice)
      }
      // Mostly a version that is looked into.
      if seed % 10 != 0 {
        survivor.logBytes.storeBytes(of: 1, toByteOffset: 8, as: UInt16.self)
        survivor.logBytes.storeBytes(of: 16, toByteOffset: 10, as: UInt16.self)
      }
      do throws(RingLayoutError) {
        if packed {
          try serve(PackedRing(survivor.layout, map: survivor.map, inflight: survivor.area))
        } else {
          try serve(SplitRing(survivor.layout, map: survivor.map, inflight: survivor.area))
        }
      } catch {
        refused += 1
      }
    }
    #expect(refused > 0)
  }

  @Test("what was untaken is in no log: the next process finds it in the ring", arguments: [false, true])
  func untaken(packed: Bool) throws {
    let survivor = try sharedSurvivor(packed)
    for life in 0..<20 {
      let expected = survivor.waiting.count
      let heads =
        packed
        ? takeAndUntake(try PackedRing(survivor.layout, map: survivor.map, inflight: survivor.area))
        : takeAndUntake(try SplitRing(survivor.layout, map: survivor.map, inflight: survivor.area))
      #expect(heads.count == expected, "life \(life)")
      #expect(survivor.collect().count == 1)
      #expect(survivor.driver.fault == nil)
      _ = try survivor.add(pieces: 3, indirect: life % 2 == 0)
    }
  }

  /// Takes all there is, completes the first, gives the others back. Heads of what was there.
  private func takeAndUntake<R: VirtRing & ~Copyable>(_ ring: consuming R) -> [UInt16] {
    var ring = ring
    var heads: [UInt16] = []
    while let chain = ring.next() { heads.append(chain.hold()) }
    #expect(ring.fault == nil)
    for head in heads.dropFirst().reversed() {
      if let chain = ring.take(head) { ring.untake(chain) }
    }
    if let first = heads.first, let chain = ring.take(first) { ring.complete(chain, written: 0) }
    _ = ring.publish()
    #expect(ring.liveCount == 0)
    return heads
  }

  private func sharedSurvivor(_ packed: Bool) throws -> Survivor {
    let survivor = try Survivor(packed: packed, size: 16)
    for _ in 0..<4 { _ = try survivor.add(pieces: 3, indirect: false) }
    return survivor
  }

  private func serve<R: VirtRing & ~Copyable>(_ ring: consuming R) {
    var ring = ring
    for _ in 0..<64 {
      guard let chain = ring.next() else { break }
      ring.complete(chain, written: 0)
    }
    _ = ring.publish()
  }

  @Test("a log for fewer descriptors than the ring has is refused", arguments: [false, true])
  func tooSmall(packed: Bool) throws {
    let survivor = try Survivor(packed: packed, size: 16, logSize: 8)
    #expect(throws: RingLayoutError.self) {
      if packed {
        _ = try PackedRing(survivor.layout, map: survivor.map, inflight: survivor.area)
      } else {
        _ = try SplitRing(survivor.layout, map: survivor.map, inflight: survivor.area)
      }
    }
  }
}
