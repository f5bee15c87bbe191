// The slots of one queue as the hot path uses them: allocated when the queue starts, bounded whatever the driver sends.
// Owned by a ring, on the queue's thread.

import Glibc

/// What makes a chain's coming or going unlike the usual. With none of them, a ring asks no further.
@usableFromInline struct RingNotes: OptionSet {
  @usableFromInline var rawValue: UInt8
  @inlinable init(rawValue: UInt8) { self.rawValue = rawValue }
  /// The queue has a fault.
  @usableFromInline static var broken: Self { Self(rawValue: 1) }
  /// Requests are noted in an inflight log.
  @usableFromInline static var logged: Self { Self(rawValue: 2) }
  /// There may be no room for a long chain.
  @usableFromInline static var crowded: Self { Self(rawValue: 4) }
  /// The ring is no longer than a usual chain may be.
  @usableFromInline static var tiny: Self { Self(rawValue: 8) }
}

/// Slots by head. The struct is what a turn touches; what it rarely needs is in `SlotStorage`.
@safe @usableFromInline struct SlotTable: ~Copyable {
  /// Segments in each slot's own array: header, a few data pages and a status need no other.
  @usableFromInline static var ownSegments: Int { 8 }
  /// The most segments of one chain, after splitting at region borders.
  @usableFromInline static var mostSegments: Int { 4096 }
  /// Room for longer chains, in segments, shared by all slots of a queue: 1 MiB. A driver that needs more at once waits.
  @usableFromInline static var sharedSegments: Int { 65536 }

  private let storage: SlotStorage
  @usableFromInline let size: UInt16
  // SAFETY: `storage`'s slots, alive with it; every index is a head checked against `size`, or one of the two beside.
  @usableFromInline let slots: UnsafeMutablePointer<Slot>
  /// Counts the maps taken up. Not the maps' own generations: those are their makers', who may start again.
  @usableFromInline var generation: UInt32 { UInt32(truncatingIfNeeded: usualLease >> 32) }
  /// The lease of a slot that has its own array, under this map.
  @usableFromInline var usualLease = unsafe Slot.lease(0, UInt32(ownSegments))
  @usableFromInline var view: MemoryView
  // SAFETY: an entry of `view`, of which there is always one.
  /// The region that the last translation hit.
  @usableFromInline var near: UnsafeMutablePointer<MapEntry>
  /// Chains given out, and taken back, ever.
  @usableFromInline var given = 0
  @usableFromInline var taken = 0
  @usableFromInline var notes: RingNotes
  /// The next chain was put back: its addresses are to be translated first.
  @usableFromInline var isWaiting = false
  /// Behind an IOMMU: nothing is found in `view`, and this finds it.
  let translator: Translator?
  var userView: MemoryView
  var userHint = 0

  init(size: UInt16, map: GuestMemoryMap) {
    translator = map.iotlb.map { Translator($0, slots: Int(size) + 1) }
    userView = map.userView
    storage = SlotStorage(size: size, map: map)
    self.size = size
    unsafe slots = unsafe storage.slots
    view = map.guestView
    unsafe near = unsafe view.entries
    notes = unsafe UInt32(size) > QuickWalk.limit ? [] : .tiny
  }

  @inlinable var liveCount: Int { given &- taken }

  /// Whether a chain of any length would find room now. False: wait for a completion.
  @inlinable var hasRoom: Bool { !notes.contains(.crowded) || liveCount == 0 }

  /// Whether a device dropped chains since the last `settleDropped`.
  @inlinable var hasDropped: Bool { unsafe slots[-1].readableCount != 0 }

  /// Takes the slots of dropped chains back; returns one of their heads.
  @usableFromInline @inline(never)
  mutating func settleDropped() -> UInt16 {
    var head: UInt16 = 0
    for i in 0..<size where unsafe slots[Int(i)].state == .dropped {
      head = i
      unsafe close(slots + Int(i))
    }
    unsafe slots[-1].readableCount = 0
    return head
  }

  /// Begins a walk into a slot that is free.
  @inlinable @inline(__always)
  func open(_ slot: UnsafeMutablePointer<Slot>) -> Walk {
    unsafe Walk(segments: slot.pointee.segments, capacity: slot.pointee.capacity, near: near)
  }

  /// Ends a walk: its chain is in the slot, and counts as given out.
  @inlinable @inline(__always)
  mutating func give(
    _ slot: UnsafeMutablePointer<Slot>, _ walk: Walk, descriptors: UInt16
  ) -> QueueFault? {
    if unsafe walk.hasHole, awaitsTranslation() { return .translationPending }
    if unsafe walk.bytes > UInt64(UInt32.max) { return .chainTooLarge }
    let all = unsafe (walk.count, walk.bytes)
    unsafe fill(
      slot, readable: walk.sawWritable ? (walk.readableCount, walk.readableBytes) : all, all: all,
      lease: Slot.lease(generation, walk.capacity), descriptors: descriptors, hasHole: walk.hasHole)
    return nil
  }

  /// Puts a chain into its slot: segments and bytes, of which the readable come first.
  @inlinable @inline(__always)
  mutating func fill(
    _ slot: UnsafeMutablePointer<Slot>, readable: (count: UInt32, bytes: UInt64),
    all: (count: UInt32, bytes: UInt64),
    lease: UInt64, descriptors: UInt16, hasHole: Bool
  ) {
    unsafe slot.pointee.readableCount = readable.count
    unsafe slot.pointee.writableCount = all.count &- readable.count
    unsafe slot.pointee.readableBytes = UInt32(truncatingIfNeeded: readable.bytes)
    unsafe slot.pointee.writableBytes = UInt32(truncatingIfNeeded: all.bytes &- readable.bytes)
    unsafe slot.pointee.lease = lease
    unsafe slot.pointee.descriptorCount = descriptors
    unsafe slot.pointee.state = .live
    unsafe slot.pointee.hasHole = hasHole
    given &+= 1
  }

  /// The slot for a walk that learns its head last (packed: the buffer id).
  @inlinable var scratch: UnsafeMutablePointer<Slot> { unsafe slots + Int(size) }

  /// Moves a walked chain to its own slot, which is free.
  @usableFromInline @inline(never)
  mutating func settle(_ slot: UnsafeMutablePointer<Slot>, into own: UnsafeMutablePointer<Slot>) {
    // Their arrays change places, so each slot keeps one.
    unsafe swap(&own.pointee, &slot.pointee)
    if let translator { unsafe translator.move(from: slot - slots, to: own - slots) }
  }

  /// Takes a completed (or unfinished) chain's slot back.
  @inlinable @inline(__always)
  mutating func close(_ slot: UnsafeMutablePointer<Slot>) {
    if unsafe slot.pointee.state != .free {
      unsafe finish(slot)
    } else if unsafe slot.pointee.capacity != UInt32(Self.ownSegments) {
      unsafe shrink(slot)
    }
  }

  /// A longer array for a walk that has filled its own.
  @usableFromInline @inline(never)
  mutating func grow(_ slot: UnsafeMutablePointer<Slot>, _ walk: inout Walk) -> Bool {
    let grown = unsafe storage.grow(slot, used: Int(walk.count))
    noteRoom()
    unsafe walk.segments = slot.pointee.segments
    unsafe walk.capacity = slot.pointee.capacity
    return grown
  }

  /// Takes the slot of a chain that was given out back: `close` without its questions.
  @inlinable @inline(__always)
  mutating func finish(_ slot: UnsafeMutablePointer<Slot>) {
    taken &+= 1
    unsafe slot.pointee.state = .free
    if unsafe slot.pointee.lease != usualLease { unsafe settleUp(slot) }
  }

  /// What a slot took that is not the usual goes back.
  @usableFromInline @inline(never)
  mutating func settleUp(_ slot: UnsafeMutablePointer<Slot>) {
    if unsafe slot.pointee.generation != generation { leave(unsafe slot.pointee.generation) }
    if unsafe slot.pointee.capacity != UInt32(Self.ownSegments) { unsafe shrink(slot) }
  }

  private mutating func noteRoom() {
    if storage.hasRoom { notes.remove(.crowded) } else { notes.insert(.crowded) }
  }

  @usableFromInline @inline(never)
  mutating func shrink(_ slot: UnsafeMutablePointer<Slot>) {
    unsafe storage.shrink(slot)
    noteRoom()
  }

  private mutating func leave(_ old: UInt32) { storage.leave(generation: old) }

  /// The map that new chains are read under.
  var map: GuestMemoryMap { storage.map }

  /// The map that a slot's chain was read under.
  func map(of slot: UnsafeMutablePointer<Slot>) -> GuestMemoryMap {
    unsafe slot.pointee.generation == generation
      ? storage.map : storage.retired(generation: slot.pointee.generation)
  }

  /// From now on chains are read under `map`.
  mutating func adopt(_ map: GuestMemoryMap) {
    storage.adopt(map, after: generation, live: liveCount)
    usualLease = unsafe Slot.lease(generation &+ 1, UInt32(Self.ownSegments))
    view = map.guestView
    unsafe near = unsafe view.entries
    userView = map.userView
    userHint = 0
  }
}
