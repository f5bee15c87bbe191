// The walk of a usual chain: a few buffers, all in the region of the last one. It stays in registers, because nothing that it
// calls takes its address; what is not usual goes on as a `Walk` from the descriptor at hand. On the queue's thread only.

import Glibc

/// A usual chain as far as it was walked: each descriptor one segment of the slot's own array. It is shorter than the ring: not for
/// tiny ones (`RingNotes`).
@unsafe @usableFromInline struct QuickWalk {
  /// The most descriptors of a usual chain.
  @usableFromInline static var limit: UInt32 { UInt32(SlotTable.ownSegments) - 1 }

  // SAFETY: in the slot's own array: `left` segments from here are still to be written.
  @usableFromInline var cursor: UnsafeMutablePointer<iovec>
  @usableFromInline var left: UInt32
  // SAFETY: an entry of the table's view: the region that its last translation hit.
  @usableFromInline let near: UnsafeMutablePointer<MapEntry>
  /// Cannot overflow, as `Walk`'s.
  @usableFromInline var bytes: UInt64 = 0
  /// What there is before the first writable buffer, once `endReadable` said so.
  @usableFromInline var readableCount: UInt32 = 0
  @usableFromInline var readableBytes: UInt64 = 0

  /// How a part of a walk, all readable or all writable, ended.
  @usableFromInline enum Step { case atTheEnd, atAWritable, atSomethingElse }

  @inlinable @inline(__always)
  init(segments: UnsafeMutablePointer<iovec>, near: UnsafeMutablePointer<MapEntry>) {
    unsafe cursor = unsafe segments
    unsafe left = unsafe Self.limit
    unsafe self.near = unsafe near
  }

  @inlinable var count: UInt32 { unsafe Self.limit &- left }

  /// Appends a buffer; false, and nothing changed, where it is not a usual one.
  @inlinable @inline(__always)
  mutating func append(_ address: UInt64, _ length: UInt32) -> Bool {
    // An empty buffer is no segment, and so not usual.
    let offset = unsafe address &- near.pointee.start
    let size = unsafe near.pointee.size
    guard unsafe left > 0, length > 0, offset < size, size &- offset >= UInt64(length) else { return false }
    // SAFETY: the bytes lie in the region; the cursor is before the end.
    unsafe cursor.pointee = iovec(
      iov_base: near.pointee.host + Int(truncatingIfNeeded: offset), iov_len: Int(length))
    unsafe cursor += 1
    unsafe left &-= 1
    unsafe bytes &+= UInt64(length)
    return true
  }

  /// What was walked so far is readable, and nothing that follows.
  @inlinable @inline(__always)
  mutating func endReadable() { unsafe (readableCount, readableBytes) = unsafe (count, bytes) }
}

extension SlotTable {
  /// Begins a walk into a slot that is free.
  @inlinable @inline(__always)
  func quicken(_ slot: UnsafeMutablePointer<Slot>) -> QuickWalk {
    // SAFETY: a free slot has its own array.
    unsafe QuickWalk(segments: slot.pointee.segments, near: near)
  }

  /// What a quick walk came to, to go on with.
  @usableFromInline
  func slowed(_ quick: QuickWalk, _ slot: UnsafeMutablePointer<Slot>) -> Walk {
    // SAFETY: the slot is the one that the quick walk went into.
    var walk = unsafe open(slot)
    unsafe walk.count = quick.count
    unsafe walk.bytes = quick.bytes
    unsafe walk.readableCount = quick.readableCount
    unsafe walk.readableBytes = quick.readableBytes
    unsafe walk.sawWritable = quick.readableCount != quick.count
    return unsafe walk
  }

  /// Ends a quick walk of at most 2^32 - 1 bytes: its chain is in the slot, and counts as given out.
  @inlinable @inline(__always)
  mutating func give(_ slot: UnsafeMutablePointer<Slot>, _ quick: QuickWalk, descriptors: UInt16) {
    // SAFETY: `quick` wrote `count` segments into this slot's own array.
    unsafe fill(
      slot, readable: (quick.readableCount, quick.readableBytes), all: (quick.count, quick.bytes),
      lease: usualLease, descriptors: descriptors, hasHole: false)
  }

  /// Walks a chain that is one indirect table, most often in the region of the last buffer, in one piece.
  @inline(__always)
  mutating func walkAlone(
    table address: UInt64, byteCount: UInt32, sequential: Bool, into slot: UnsafeMutablePointer<Slot>
  ) -> QueueFault? {
    var walk = unsafe quicken(slot)
    let entries = byteCount / 16
    let offset = unsafe address &- walk.near.pointee.start
    guard byteCount % 16 == 0, entries > 0,
      entries <= (sequential ? unsafe QuickWalk.limit : Self.mostEntries),
      unsafe offset < walk.near.pointee.size, unsafe walk.near.pointee.size &- offset >= UInt64(byteCount)
    else {
      return unsafe walkAnyTable(address, byteCount, sequential, into: slot)
    }
    // SAFETY: the whole table is there, and indices stay below `entries`.
    let flat = unsafe walk.near.pointee.host + Int(truncatingIfNeeded: offset)
    var place = unsafe (index: UInt32(0), entry: SplitDescriptor(at: flat))
    var step = unsafe follow(&walk, &place, entries, flat, sequential: sequential, writable: false)
    unsafe walk.endReadable()
    if step == .atAWritable {
      step = unsafe follow(&walk, &place, entries, flat, sequential: sequential, writable: true)
    }
    if step == .atTheEnd {
      guard unsafe walk.bytes <= UInt64(UInt32.max) else { return .chainTooLarge }
      unsafe give(slot, walk, descriptors: 1)
      return nil
    }
    if !sequential, place.index >= entries { return .nextOutOfRange(place.entry.next, table: entries) }
    let table = unsafe TableWalk(
      entries: entries, index: place.index, seen: walk.count, sequential: sequential, address: address)
    return unsafe go(on: walk, in: table, at: flat, with: place.entry, into: slot)
  }

  /// The readable or the writable part of what is in `flat`, from a descriptor that was read, as far as it is usual. Past the end of
  /// `flat` it ends with the descriptor that led there.
  @inlinable @inline(__always)
  func follow(
    _ walk: inout QuickWalk, _ place: inout (index: UInt32, entry: SplitDescriptor), _ entries: UInt32,
    _ flat: UnsafeMutableRawPointer, sequential: Bool, writable: Bool
  ) -> QuickWalk.Step {
    while true {
      let flags = place.entry.flags(sequential: sequential)
      let kind = flags & (sequential ? DescriptorFlag.write : DescriptorFlag.write | DescriptorFlag.indirect)
      if kind != (writable ? DescriptorFlag.write : 0) {
        return !writable && kind == DescriptorFlag.write ? .atAWritable : .atSomethingElse
      }
      guard unsafe walk.append(place.entry.address, place.entry.length) else { return .atSomethingElse }
      if sequential {
        place.index &+= 1
        if place.index == entries { return .atTheEnd }
      } else {
        if flags & DescriptorFlag.next == 0 { return .atTheEnd }
        place.index = UInt32(place.entry.next)
        if place.index >= entries { return .atSomethingElse }
      }
      // SAFETY: the index is below `entries`.
      place.entry = unsafe SplitDescriptor(at: flat + 16 * Int(place.index))
    }
  }

  /// The rest of a table in one piece, from an entry that was read.
  @inline(never)
  private mutating func go(
    on quick: QuickWalk, in table: TableWalk, at flat: UnsafeMutableRawPointer, with entry: SplitDescriptor,
    into slot: UnsafeMutablePointer<Slot>
  ) -> QueueFault? {
    // SAFETY: as in `walkAlone`.
    var walk = unsafe slowed(quick, slot)
    let fault = unsafe walkTable(table, from: entry, &walk, slot) {
      unsafe SplitDescriptor(at: flat + 16 * Int($0))
    }
    return unsafe fault ?? give(slot, walk, descriptors: 1)
  }

  @inline(never)
  private mutating func walkAnyTable(
    _ address: UInt64, _ byteCount: UInt32, _ sequential: Bool, into slot: UnsafeMutablePointer<Slot>
  ) -> QueueFault? {
    // SAFETY: the slot is free, and its walk begins here.
    var walk = unsafe open(slot)
    let fault = unsafe appendIndirect(
      table: address, byteCount: byteCount, alreadySeen: 0, sequential: sequential, &walk, to: slot)
    return unsafe fault ?? give(slot, walk, descriptors: 1)
  }
}
