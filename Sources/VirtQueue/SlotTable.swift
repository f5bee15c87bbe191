// The slots of one queue and the room for their segments: allocated when the queue starts, bounded whatever the driver
// sends. Owned by a ring, on the queue's thread.

import Glibc

/// Slots by head, segment arrays in size classes, and the memory maps that live chains still need.
@safe @usableFromInline struct SlotTable: ~Copyable {
  /// Segments in each slot's own array: header, a few data pages and a status need no other.
  @usableFromInline static var ownSegments: Int { 8 }
  /// The most segments of one chain, after splitting at region borders.
  @usableFromInline static var mostSegments: Int { 4096 }
  /// Room for longer chains, in segments, shared by all slots of a queue: 1 MiB. A driver that needs more at once waits.
  @usableFromInline static var sharedSegments: Int { 65536 }

  @usableFromInline let size: UInt16
  // SAFETY: both allocations hold `size` slots (times `ownSegments`), live as long as the table; every index is a head
  // checked against `size`.
  @usableFromInline let slots: UnsafeMutablePointer<Slot>
  @usableFromInline let own: UnsafeMutablePointer<iovec>
  /// Longer arrays: free ones by class, and how many segments are in use. Cold: only chains of many segments come here.
  private var pool = SegmentPool()

  @usableFromInline var map: GuestMemoryMap
  @usableFromInline var generation: UInt32
  @usableFromInline var view: MemoryView
  @usableFromInline var hint = 0
  @usableFromInline var liveCount = 0
  /// Older maps, each with the number of chains that were read under it and are still out.
  private var retired: [(map: GuestMemoryMap, live: Int)] = []
  private var liveOnRetired = 0

  init(size: UInt16, map: GuestMemoryMap) {
    self.size = size
    self.map = map
    generation = map.generation
    view = map.guestView
    // SAFETY: initialised here, in bounds by construction.
    unsafe slots = .allocate(capacity: Int(size))
    unsafe own = .allocate(capacity: Int(size) * Self.ownSegments)
    for i in 0..<Int(size) {
      unsafe (slots + i).initialize(
        to: Slot(
          segments: own + i * Self.ownSegments, capacity: UInt32(Self.ownSegments), readableCount: 0,
          writableCount: 0, readableBytes: 0, writableBytes: 0, generation: 0, descriptorCount: 0,
          state: .free, hasHole: false))
    }
  }

  deinit {
    // SAFETY: no chain is out any more (Chain.slot), and long arrays go with the pool's own deinit below.
    for i in 0..<Int(size) where unsafe slots[i].capacity != UInt32(Self.ownSegments) {
      unsafe slots[i].segments.deallocate()
    }
    unsafe slots.deallocate()
    unsafe own.deallocate()
  }

  /// Whether a chain of any length would find room now. False: wait for a completion.
  @inlinable var hasRoom: Bool { poolHasRoom || liveCount == 0 }
  @usableFromInline var poolHasRoom: Bool = true

  /// Makes a slot ready for a walk.
  @inlinable @inline(__always)
  mutating func open(_ slot: UnsafeMutablePointer<Slot>) {
    unsafe slot.pointee.readableCount = 0
    unsafe slot.pointee.writableCount = 0
    unsafe slot.pointee.readableBytes = 0
    unsafe slot.pointee.writableBytes = 0
    unsafe slot.pointee.hasHole = false
    unsafe slot.pointee.generation = generation
  }

  /// Counts a walked chain as given out.
  @inlinable @inline(__always)
  mutating func give(_ slot: UnsafeMutablePointer<Slot>, descriptors: UInt16) {
    unsafe slot.pointee.descriptorCount = descriptors
    unsafe slot.pointee.state = .live
    liveCount &+= 1
  }

  /// Takes a completed (or unfinished) chain's slot back.
  @inlinable @inline(__always)
  mutating func close(_ slot: UnsafeMutablePointer<Slot>) {
    if unsafe slot.pointee.state != .free {
      liveCount &-= 1
      if unsafe slot.pointee.generation != generation { unsafe leave(generation: slot.pointee.generation) }
    }
    unsafe slot.pointee.state = .free
    if unsafe slot.pointee.capacity != UInt32(Self.ownSegments) { unsafe shrink(slot) }
  }

  /// Gives a slot an array of at least twice its present one. False where a chain may not grow further.
  @usableFromInline @inline(never)
  mutating func grow(_ slot: UnsafeMutablePointer<Slot>, used: Int) -> Bool {
    let before = unsafe Int(slot.pointee.capacity)
    guard before < Self.mostSegments else { return false }
    let capacity = before * (before == Self.ownSegments ? 8 : 4)
    // SAFETY: `used` segments were written to the old array; the new one is longer.
    let longer = unsafe pool.take(capacity: capacity)
    unsafe longer.update(from: slot.pointee.segments, count: used)
    unsafe shrink(slot)
    unsafe slot.pointee.segments = unsafe longer
    unsafe slot.pointee.capacity = UInt32(capacity)
    poolHasRoom = pool.inUse + Self.mostSegments <= Self.sharedSegments
    return true
  }

  @usableFromInline @inline(never)
  mutating func shrink(_ slot: UnsafeMutablePointer<Slot>) {
    let capacity = unsafe Int(slot.pointee.capacity)
    guard capacity != Self.ownSegments else { return }
    // SAFETY: the array came from the pool with that capacity; the slot's own array has a fixed place.
    unsafe pool.give(slot.pointee.segments, capacity: capacity)
    let index = unsafe slots.distance(to: slot)
    unsafe slot.pointee.segments = own + index * Self.ownSegments
    unsafe slot.pointee.capacity = UInt32(Self.ownSegments)
    poolHasRoom = pool.inUse + Self.mostSegments <= Self.sharedSegments
  }

  /// From now on chains are read under `map`; the old one is kept until its last chain is back.
  mutating func adopt(_ newMap: GuestMemoryMap) {
    let live = liveCount - liveOnRetired
    if live > 0 {
      retired.append((map, live))
      liveOnRetired += live
    }
    map = newMap
    generation = newMap.generation
    view = newMap.guestView
    hint = 0
  }

  @usableFromInline @inline(never)
  mutating func leave(generation old: UInt32) {
    for i in retired.indices where retired[i].map.generation == old {
      retired[i].live -= 1
      liveOnRetired -= 1
      if retired[i].live == 0 { retired.remove(at: i) }
      return
    }
  }
}

/// Long segment arrays, kept for the next chain that needs one. Three classes: 64, 256, 1024 and 4096 segments.
@safe struct SegmentPool: ~Copyable {
  private static let kept = 4
  // SAFETY: each pointer is an allocation of its class's capacity that no slot uses.
  private var free: [[UnsafeMutablePointer<iovec>]] = unsafe [[], [], [], []]
  /// Segments of the arrays that slots hold now.
  private(set) var inUse = 0

  deinit {
    for i in unsafe free.indices { for j in unsafe free[i].indices { unsafe free[i][j].deallocate() } }
  }

  private func index(_ capacity: Int) -> Int {
    capacity <= 64 ? 0 : capacity <= 256 ? 1 : capacity <= 1024 ? 2 : 3
  }

  mutating func take(capacity: Int) -> UnsafeMutablePointer<iovec> {
    inUse += capacity
    if let array = unsafe free[index(capacity)].popLast() { return unsafe array }
    return .allocate(capacity: capacity)
  }

  mutating func give(_ array: UnsafeMutablePointer<iovec>, capacity: Int) {
    inUse -= capacity
    // The longest arrays are rare: few are kept. Of the shortest, enough for a queue of large requests.
    let limit = capacity <= 256 ? 256 : Self.kept
    if unsafe free[index(capacity)].count < limit {
      unsafe free[index(capacity)].append(array)
    } else {
      unsafe array.deallocate()
    }
  }
}
