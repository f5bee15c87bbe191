// The words of a split ring, one by one: moves no honest driver makes. Tests of a back-end's nerves; the
// ring's thread, or another where the test is about races.

import CLinux

extension SplitDriverRing {
  /// Flags of a descriptor.
  public static let next: UInt16 = 1
  public static let write: UInt16 = 2
  public static let indirect: UInt16 = 4

  /// Any descriptor in the ring's table; the index is taken modulo the ring's size.
  public func rawSetDescriptor(
    _ index: UInt16, address: UInt64, length: UInt32, flags: UInt16, next: UInt16 = 0
  ) {
    put(index & mask, address: address, length: length, flags: flags, next: next)
  }

  /// Any entry of the available ring; the position is taken modulo the ring's size.
  public func rawSetAvailableEntry(_ position: UInt16, head: UInt16) {
    // SAFETY: the position is masked.
    unsafe clx_store_relaxed_u16(available + (4 + 2 * Int(position & mask)), head)
  }

  /// The index the device sees. The ring's own bookkeeping does not follow: see `rawAdopt`.
  public func rawSetAvailableIndex(_ index: UInt16) {
    // SAFETY: the index word.
    unsafe clx_store_release_u16(available + 2, index)
  }

  public func rawSetAvailableFlags(_ flags: UInt16) {
    // SAFETY: the flags word.
    unsafe clx_store_release_u16(available, flags)
  }

  public func rawSetUsedEvent(_ event: UInt16) {
    // SAFETY: behind the `size` available entries.
    unsafe clx_store_release_u16(available + (4 + 2 * Int(size)), event)
  }

  // SAFETY: of the three below: words and entries within the areas.
  public var rawAvailableIndex: UInt16 { unsafe clx_load_acquire_u16(available + 2) }
  public var rawUsedIndex: UInt16 { unsafe clx_load_acquire_u16(used + 2) }
  public var rawUsedFlags: UInt16 { unsafe clx_load_acquire_u16(used) }
  /// avail_event, as the device last wrote it.
  public var rawAvailableEvent: UInt16 { unsafe clx_load_acquire_u16(used + (4 + 8 * Int(size))) }

  /// A used entry; the position is taken modulo the ring's size.
  public func rawUsedEntry(_ position: UInt16) -> (id: UInt32, length: UInt32) {
    // SAFETY: the position is masked.
    let entry = unsafe used + (4 + 8 * Int(position & mask))
    return unsafe (clx_load_acquire_u32(entry), clx_load_acquire_u32(entry + 4))
  }

  /// Takes a head made of raw descriptors into the books, as a chain of one, and puts it into the available
  /// ring: `poll` then gives it back. Not yet published. False where the head is in flight already.
  public mutating func rawAdopt(head: UInt16) -> Bool {
    let head = head & mask
    // SAFETY: masked. A head from the middle of the free list is unlinked below.
    guard unsafe length[Int(head)] == 0, unlink(head) else { return false }
    unsafe length[Int(head)] = 1
    free -= 1
    rawSetAvailableEntry(nextAvailable, head: head)
    nextAvailable &+= 1
    chains += 1
    counted.added += 1
    return true
  }

  private mutating func unlink(_ index: UInt16) -> Bool {
    if free > 0, freeHead == index {
      // SAFETY: below `size`.
      freeHead = unsafe next[Int(index)]
      return true
    }
    var before = freeHead
    for _ in 0..<max(0, free - 1) {
      // SAFETY: the free list holds indices below `size`.
      let following = unsafe next[Int(before)]
      if following == index {
        unsafe next[Int(before)] = next[Int(index)]
        return true
      }
      before = following
    }
    return false
  }
}
