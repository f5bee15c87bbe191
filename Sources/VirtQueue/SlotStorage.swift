// The memory behind a queue's slots, and what only rare chains need: long segment arrays, and memory maps that are no
// longer current. Owned by a `SlotTable`, on the queue's thread.

import Glibc

/// Slots by head, segment arrays in size classes, and the maps that live chains still need.
@safe @usableFromInline final class SlotStorage {
  let size: UInt16
  // SAFETY: `slots` has `size` slots; before the first one more, that counts drops (Chain.deinit finds it from its head),
  // and after the last one more, in which a chain is walked whose head is not known yet. `arrays` has `ownSegments` for
  // each. Both are released in `deinit`, where no chain is out any more.
  let slots: UnsafeMutablePointer<Slot>
  private let arrays: UnsafeMutablePointer<iovec>
  // SAFETY: each pointer is an allocation of its class's capacity (64, 256, 1024, 4096 segments) that no slot uses.
  private var spare: [[UnsafeMutablePointer<iovec>]] = unsafe [[], [], [], []]
  /// Segments of the long arrays that slots hold now.
  private(set) var inUse = 0

  private(set) var map: GuestMemoryMap
  /// Older maps, each with the number of chains that were read under it and are still out.
  private var retired: [(generation: UInt32, map: GuestMemoryMap, live: Int)] = []
  private var liveOnRetired = 0

  init(size: UInt16, map: GuestMemoryMap) {
    self.size = size
    self.map = map
    // SAFETY: initialised here, in bounds by construction.
    unsafe slots = UnsafeMutablePointer<Slot>.allocate(capacity: Int(size) + 2) + 1
    unsafe arrays = .allocate(capacity: (Int(size) + 2) * SlotTable.ownSegments)
    for i in -1...Int(size) {
      let own = unsafe arrays + (i + 1) * SlotTable.ownSegments
      unsafe (slots + i).initialize(
        to: Slot(
          segments: own, own: own, lease: Slot.lease(0, UInt32(SlotTable.ownSegments)), readableCount: 0,
          writableCount: 0, readableBytes: 0, writableBytes: 0, descriptorCount: 0,
          state: .free, hasHole: false))
    }
  }

  deinit {
    // A chain that its device kept beyond its queue marks its slot when it goes: better a leak than a stray write.
    for i in 0..<Int(size) where unsafe slots[i].state == .live { return }
    // SAFETY: no chain is out any more.
    for i in 0...Int(size) where unsafe slots[i].capacity != UInt32(SlotTable.ownSegments) {
      unsafe slots[i].segments.deallocate()
    }
    for i in unsafe spare.indices {
      while let array = unsafe spare[i].popLast() { unsafe array.deallocate() }
    }
    unsafe (slots - 1).deallocate()
    unsafe arrays.deallocate()
  }

  // MARK: Long arrays

  /// Whether a chain of any length would find room.
  var hasRoom: Bool { inUse + SlotTable.mostSegments <= SlotTable.sharedSegments }

  private static func sizeClass(_ capacity: Int) -> Int {
    capacity <= 64 ? 0 : capacity <= 256 ? 1 : capacity <= 1024 ? 2 : 3
  }

  /// Gives a slot a longer array, with its first `used` segments. False where a chain may not grow further.
  func grow(_ slot: UnsafeMutablePointer<Slot>, used: Int) -> Bool {
    let before = unsafe Int(slot.pointee.capacity)
    guard before < SlotTable.mostSegments else { return false }
    let capacity = before * (before == SlotTable.ownSegments ? 8 : 4)
    inUse += capacity
    let longer = unsafe spare[Self.sizeClass(capacity)].popLast() ?? .allocate(capacity: capacity)
    // SAFETY: `used` segments were written to the old array; the new one is longer.
    unsafe longer.update(from: slot.pointee.segments, count: used)
    unsafe shrink(slot)
    unsafe slot.pointee.segments = unsafe longer
    unsafe slot.pointee.capacity = UInt32(capacity)
    return true
  }

  /// Takes a slot's long array back, where it has one.
  func shrink(_ slot: UnsafeMutablePointer<Slot>) {
    let capacity = unsafe Int(slot.pointee.capacity)
    guard capacity != SlotTable.ownSegments else { return }
    inUse -= capacity
    let array = unsafe slot.pointee.segments
    // The longest arrays are rare: few are kept. Of the shorter ones, enough for a queue of large requests.
    let kept = capacity <= 256 ? 256 : 4
    if unsafe spare[Self.sizeClass(capacity)].count < kept {
      unsafe spare[Self.sizeClass(capacity)].append(array)
    } else {
      unsafe array.deallocate()
    }
    unsafe slot.pointee.segments = unsafe slot.pointee.own
    unsafe slot.pointee.capacity = UInt32(SlotTable.ownSegments)
  }

  // MARK: Maps

  /// From now on chains are read under `newMap`; the old one is kept until the last of the `live` chains is back.
  func adopt(_ newMap: GuestMemoryMap, after generation: UInt32, live: Int) {
    let current = live - liveOnRetired
    if current > 0 {
      retired.append((generation, map, current))
      liveOnRetired += current
    }
    map = newMap
  }

  /// An older map that chains still need.
  func retired(generation: UInt32) -> GuestMemoryMap {
    retired.first { $0.generation == generation }?.map ?? map
  }

  /// A chain that was read under an older map is back.
  func leave(generation: UInt32) {
    guard let i = retired.firstIndex(where: { $0.generation == generation }) else { return }
    retired[i].live -= 1
    liveOnRetired -= 1
    if retired[i].live == 0 { retired.remove(at: i) }
  }
}
