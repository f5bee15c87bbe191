// The slots of one queue as the hot path uses them: allocated when the queue starts, bounded whatever the driver sends.
// Owned by a ring, on the queue's thread.

import Glibc

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
  @usableFromInline var generation: UInt32 = 0
  @usableFromInline var view: MemoryView
  /// The region that the last translation hit.
  @usableFromInline var hint = 0
  @usableFromInline var liveCount = 0
  @usableFromInline var longArraysHaveRoom = true
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
  }

  /// Whether a chain of any length would find room now. False: wait for a completion.
  @inlinable var hasRoom: Bool { longArraysHaveRoom || liveCount == 0 }

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
    // SAFETY: `hint` is a region's place, or 0, where every map has an entry.
    unsafe Walk(
      segments: slot.pointee.segments, capacity: slot.pointee.capacity, near: view.entries + hint)
  }

  /// Ends a walk: its chain is in the slot, and counts as given out.
  @inlinable @inline(__always)
  mutating func give(
    _ slot: UnsafeMutablePointer<Slot>, _ walk: Walk, descriptors: UInt16
  ) -> QueueFault? {
    if unsafe walk.hasHole, awaitsTranslation() { return .translationPending }
    let total = unsafe walk.bytes
    if total > UInt64(UInt32.max) { return .chainTooLarge }
    let readable = unsafe walk.sawWritable ? walk.readableBytes : total
    let readableCount = unsafe walk.sawWritable ? walk.readableCount : walk.count
    unsafe slot.pointee.readableCount = readableCount
    unsafe slot.pointee.writableCount = walk.count &- readableCount
    unsafe slot.pointee.readableBytes = UInt32(truncatingIfNeeded: readable)
    unsafe slot.pointee.writableBytes = UInt32(truncatingIfNeeded: total &- readable)
    unsafe slot.pointee.generation = generation
    unsafe slot.pointee.descriptorCount = descriptors
    unsafe slot.pointee.state = .live
    unsafe slot.pointee.hasHole = walk.hasHole
    liveCount &+= 1
    return nil
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
      liveCount &-= 1
      if unsafe slot.pointee.generation != generation { unsafe leave(slot.pointee.generation) }
    }
    unsafe slot.pointee.state = .free
    if unsafe slot.pointee.capacity != UInt32(Self.ownSegments) { unsafe shrink(slot) }
  }

  /// A longer array for a walk that has filled its own.
  @usableFromInline @inline(never)
  mutating func grow(_ slot: UnsafeMutablePointer<Slot>, _ walk: inout Walk) -> Bool {
    let grown = unsafe storage.grow(slot, used: Int(walk.count))
    longArraysHaveRoom = storage.hasRoom
    unsafe walk.segments = slot.pointee.segments
    unsafe walk.capacity = slot.pointee.capacity
    return grown
  }

  /// Takes the slot of a chain that was given out back: `close` without its questions.
  @inlinable @inline(__always)
  mutating func finish(_ slot: UnsafeMutablePointer<Slot>) {
    liveCount &-= 1
    unsafe slot.pointee.state = .free
    if unsafe slot.pointee.generation != generation { unsafe leave(slot.pointee.generation) }
    if unsafe slot.pointee.capacity != UInt32(Self.ownSegments) { unsafe shrink(slot) }
  }

  @usableFromInline @inline(never)
  mutating func shrink(_ slot: UnsafeMutablePointer<Slot>) {
    unsafe storage.shrink(slot)
    longArraysHaveRoom = storage.hasRoom
  }

  @usableFromInline @inline(never)
  mutating func leave(_ old: UInt32) { storage.leave(generation: old) }

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
    generation &+= 1
    view = map.guestView
    hint = 0
    userView = map.userView
    userHint = 0
  }
}
