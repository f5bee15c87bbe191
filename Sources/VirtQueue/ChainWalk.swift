// Turning descriptors into segments: the part of a walk that both ring formats share. Every value comes from
// the driver and is checked here before it is used. On the queue's thread only.

import CLinux
import Glibc

/// The flags of a descriptor (virtio 1.3 §2.7.5, §2.8.1).
@usableFromInline enum DescriptorFlag {
  @usableFromInline static var next: UInt16 { 1 }
  @usableFromInline static var write: UInt16 { 2 }
  @usableFromInline static var indirect: UInt16 { 4 }
}

/// A descriptor of the split layout {le64 address, le32 length, le16 flags, le16 next}, read once: two loads.
@usableFromInline struct SplitDescriptor {
  @usableFromInline let address: UInt64
  @usableFromInline let rest: UInt64

  // SAFETY: the caller has 16 mapped bytes at `place`.
  @unsafe @inlinable @inline(__always)
  init(at place: UnsafeMutableRawPointer) {
    address = unsafe clx_load_relaxed_u64(place)
    rest = unsafe clx_load_relaxed_u64(place + 8)
  }

  /// From a copy of table bytes.
  @inlinable init(address: UInt64, rest: UInt64) {
    self.address = address
    self.rest = rest
  }

  @inlinable var length: UInt32 { UInt32(truncatingIfNeeded: rest) }
  @inlinable var flags: UInt16 { UInt16(truncatingIfNeeded: rest >> 32) }
  @inlinable var next: UInt16 { UInt16(truncatingIfNeeded: rest >> 48) }
  @inlinable var isWritable: Bool { flags & DescriptorFlag.write != 0 }

  /// An entry of a packed ring's table has its flags last, {length, id, flags}, and only WRITE counts (virtio 1.3 §2.8.7).
  @inlinable @inline(__always)
  func flags(sequential: Bool) -> UInt16 { sequential ? next : flags }
}

extension SlotTable {
  /// The most descriptors of a chain, indirect ones included: what QEMU allows, or the queue size where that is more.
  /// (virtio 1.3 §2.7.5.3.1 says the queue size; Linux exceeds it with indirect tables.)
  @inlinable var descriptorLimit: UInt32 { max(UInt32(size), 1024) }
  /// The most entries of an indirect table: what an index reaches.
  static var mostEntries: UInt32 { 32768 }

  /// Appends one descriptor's buffer to a walk.
  @inlinable @inline(__always)
  mutating func append(
    _ address: UInt64, _ length: UInt32, writable: Bool, _ walk: inout Walk,
    to slot: UnsafeMutablePointer<Slot>
  ) -> QueueFault? {
    if writable {
      if unsafe !walk.sawWritable {
        unsafe walk.sawWritable = true
        unsafe walk.readableCount = walk.count
        unsafe walk.readableBytes = walk.bytes
      }
    } else if unsafe walk.sawWritable {
      return .readableAfterWritable
    }
    unsafe walk.bytes &+= UInt64(length)
    // SAFETY: the bytes lie in one region; the segment is below the capacity. An empty buffer has no last byte, and so
    // goes the other way.
    let offset = unsafe address &- walk.near.pointee.start
    let size = unsafe walk.near.pointee.size
    if offset < size, size &- offset > UInt64(length) &- 1, unsafe walk.count < walk.capacity {
      unsafe walk.segments[Int(walk.count)] = iovec(
        iov_base: walk.near.pointee.host + Int(truncatingIfNeeded: offset), iov_len: Int(length))
      unsafe walk.count &+= 1
      return nil
    }
    return unsafe appendPieces(address, length, &walk, to: slot)
  }

  /// A buffer anywhere: over several regions it becomes several segments; bytes that are in none become one hole. An
  /// empty one says nothing; the specification does not forbid it.
  @usableFromInline @inline(never)
  mutating func appendPieces(
    _ address: UInt64, _ length: UInt32, _ walk: inout Walk, to slot: UnsafeMutablePointer<Slot>
  ) -> QueueFault? {
    if let translator {
      return unsafe appendTranslated(address, length, by: translator, &walk, to: slot)
    }
    var at = address
    var left = UInt64(length)
    var hint = unsafe near - view.entries
    while left > 0 {
      guard let piece = unsafe view.piece(at: at, upTo: left, hint: &hint) else {
        unsafe walk.hasHole = true
        return unsafe place(nil, Int(left), &walk, in: slot)
      }
      // SAFETY: the piece is in guest memory; its count is between 1 and `left`.
      if let fault = unsafe place(piece.start, Int(piece.count), &walk, in: slot) { return fault }
      unsafe near = view.entries + hint
      unsafe walk.near = unsafe near
      left -= unsafe piece.count
      // Wraps only past the last region, where the next look-up finds a hole or a region at 0 that the driver named.
      let (next, wrapped) = unsafe at.addingReportingOverflow(piece.count)
      if wrapped, left > 0 {
        unsafe walk.hasHole = true
        return unsafe place(nil, Int(left), &walk, in: slot)
      }
      at = next
    }
    return nil
  }

  mutating func place(
    _ start: UnsafeMutableRawPointer?, _ length: Int, _ walk: inout Walk, in slot: UnsafeMutablePointer<Slot>
  ) -> QueueFault? {
    if unsafe walk.count >= walk.capacity {
      guard unsafe grow(slot, &walk) else { return .chainTooLong(limit: UInt32(Self.mostSegments)) }
    }
    // SAFETY: count < capacity.
    unsafe walk.segments[Int(walk.count)] = iovec(iov_base: start, iov_len: length)
    unsafe walk.count &+= 1
    return nil
  }

  /// Walks an indirect table: by `next` (split) or in order (packed, whose entries' NEXT means nothing).
  @usableFromInline @inline(never)
  mutating func appendIndirect(
    table address: UInt64, byteCount: UInt32, alreadySeen: UInt32, sequential: Bool, _ walk: inout Walk,
    to slot: UnsafeMutablePointer<Slot>
  ) -> QueueFault? {
    guard byteCount > 0, byteCount % 16 == 0 else { return .indirectLength(byteCount) }
    // SAFETY (all of the body): the slot is one that `open` began `walk` for; the cursor hands out entries of guest memory only.
    let entries = byteCount / 16
    // A split table may be longer than the chain in it; a packed one is the chain.
    guard entries <= Self.mostEntries else { return .indirectLength(byteCount) }
    if sequential, entries > descriptorLimit { return .chainTooLong(limit: descriptorLimit) }
    if translator != nil {
      return unsafe appendTranslatedTable(address, byteCount, alreadySeen, sequential, &walk, slot)
    }
    guard var cursor = TableCursor(view: view, address: address, byteCount: byteCount) else {
      return .indirectUnmapped(address)
    }
    return unsafe walkTable(
      TableWalk(entries: entries, seen: alreadySeen, sequential: sequential, address: address), &walk, slot
    ) {
      cursor.entry($0)
    }
  }

  /// The walk itself, from the entry that is next; `entry` gives a descriptor below `entries`, nil where it is in no guest memory.
  @inline(__always)
  mutating func walkTable(
    _ table: TableWalk, from first: SplitDescriptor? = nil, _ outer: inout Walk,
    _ slot: UnsafeMutablePointer<Slot>, _ entry: (UInt32) -> SplitDescriptor?
  ) -> QueueFault? {
    let limit = descriptorLimit
    var (index, seen) = (table.index, table.seen)
    var next = first ?? entry(index)
    var walk = unsafe outer
    defer { unsafe outer = unsafe walk }
    while let descriptor = next {
      seen &+= 1
      if seen > limit { return .chainTooLong(limit: limit) }
      let flags = descriptor.flags(sequential: table.sequential)
      if flags & DescriptorFlag.indirect != 0, !table.sequential { return .indirectNested }
      // SAFETY: the slot is the caller's; `append` checks all that the descriptor says.
      if let fault = unsafe append(
        descriptor.address, descriptor.length, writable: flags & DescriptorFlag.write != 0, &walk, to: slot)
      {
        return fault
      }
      if table.sequential {
        index &+= 1
        if index == table.entries { return nil }
      } else {
        if flags & DescriptorFlag.next == 0 { return nil }
        index = UInt32(descriptor.next)
        if index >= table.entries { return .nextOutOfRange(descriptor.next, table: table.entries) }
      }
      next = entry(index)
    }
    return .indirectUnmapped(table.address)
  }
}

/// How far the walk of an indirect table has come.
struct TableWalk {
  let entries: UInt32
  /// The entry that is next, and how many descriptors of the chain were before it.
  var index: UInt32 = 0
  let seen: UInt32
  /// A packed ring's: in order, not by `next`.
  let sequential: Bool
  /// Where the table is.
  let address: UInt64
}
