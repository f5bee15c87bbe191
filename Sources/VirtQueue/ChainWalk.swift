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
  @usableFromInline let length: UInt32
  @usableFromInline let flags: UInt16
  @usableFromInline let next: UInt16

  // SAFETY: the caller has 16 mapped bytes at `place`.
  @unsafe @inlinable @inline(__always)
  init(at place: UnsafeMutableRawPointer) {
    address = unsafe clx_load_relaxed_u64(place)
    let rest = unsafe clx_load_relaxed_u64(place + 8)
    length = UInt32(truncatingIfNeeded: rest)
    flags = UInt16(truncatingIfNeeded: rest >> 32)
    next = UInt16(truncatingIfNeeded: rest >> 48)
  }

  /// From a copy of table bytes.
  @inlinable init(address: UInt64, rest: UInt64) {
    self.address = address
    length = UInt32(truncatingIfNeeded: rest)
    flags = UInt16(truncatingIfNeeded: rest >> 32)
    next = UInt16(truncatingIfNeeded: rest >> 48)
  }
}

extension SlotTable {
  /// The most descriptors of a chain, indirect ones included: what QEMU allows, or the queue size where that is more.
  /// (virtio 1.3 §2.7.5.3.1 says the queue size; Linux exceeds it with indirect tables.)
  @inlinable var descriptorLimit: UInt32 { max(UInt32(size), 1024) }

  /// Appends one descriptor's buffer to a slot. `sawWritable` carries over the chain.
  @inlinable @inline(__always)
  mutating func append(
    _ address: UInt64, _ length: UInt32, writable: Bool, to slot: UnsafeMutablePointer<Slot>,
    sawWritable: inout Bool
  ) -> QueueFault? {
    if writable {
      sawWritable = true
    } else if sawWritable {
      return .readableAfterWritable
    }
    // An empty buffer says nothing; the specification does not forbid it.
    if length == 0 { return nil }
    let total =
      unsafe UInt64(slot.pointee.readableBytes) + UInt64(slot.pointee.writableBytes) + UInt64(length)
    if total > UInt64(UInt32.max) { return .chainTooLarge }
    if writable {
      unsafe slot.pointee.writableBytes &+= length
    } else {
      unsafe slot.pointee.readableBytes &+= length
    }
    // SAFETY: `place` writes below the slot's capacity, having grown it where needed.
    if let piece = unsafe view.piece(at: address, upTo: UInt64(length), hint: &hint),
      unsafe piece.count == UInt64(length)
    {
      return unsafe place(piece.start, Int(length), writable: writable, in: slot)
    }
    return unsafe appendPieces(address, length, writable: writable, to: slot)
  }

  @inlinable @inline(__always)
  mutating func place(
    _ start: UnsafeMutableRawPointer?, _ length: Int, writable: Bool, in slot: UnsafeMutablePointer<Slot>
  ) -> QueueFault? {
    let used = unsafe Int(slot.pointee.readableCount &+ slot.pointee.writableCount)
    if unsafe used >= Int(slot.pointee.capacity) {
      guard unsafe grow(slot, used: used) else { return .chainTooLong(limit: UInt32(Self.mostSegments)) }
    }
    // SAFETY: used < capacity.
    unsafe slot.pointee.segments[used] = iovec(iov_base: start, iov_len: length)
    if writable {
      unsafe slot.pointee.writableCount &+= 1
    } else {
      unsafe slot.pointee.readableCount &+= 1
    }
    return nil
  }

  /// A buffer over several regions becomes several segments; bytes that are in none become one hole.
  @usableFromInline @inline(never)
  mutating func appendPieces(
    _ address: UInt64, _ length: UInt32, writable: Bool, to slot: UnsafeMutablePointer<Slot>
  ) -> QueueFault? {
    var at = address
    var left = UInt64(length)
    while left > 0 {
      guard let piece = unsafe view.piece(at: at, upTo: left, hint: &hint) else {
        unsafe slot.pointee.hasHole = true
        return unsafe place(nil, Int(left), writable: writable, in: slot)
      }
      // SAFETY: the piece is in guest memory; its count is between 1 and `left`.
      if let fault = unsafe place(piece.start, Int(piece.count), writable: writable, in: slot) {
        return fault
      }
      left -= unsafe piece.count
      // Wraps only past the last region, where the next look-up finds a hole or a region at 0 that the driver named.
      let (next, wrapped) = unsafe at.addingReportingOverflow(piece.count)
      if wrapped, left > 0 {
        unsafe slot.pointee.hasHole = true
        return unsafe place(nil, Int(left), writable: writable, in: slot)
      }
      at = next
    }
    return nil
  }

  /// Walks an indirect table: by `next` (split) or in order (packed, whose entries' NEXT means nothing).
  @usableFromInline
  mutating func appendIndirect(
    table address: UInt64, byteCount: UInt32, alreadySeen: UInt32, sequential: Bool,
    to slot: UnsafeMutablePointer<Slot>, sawWritable: inout Bool
  ) -> QueueFault? {
    guard byteCount > 0, byteCount % 16 == 0 else { return .indirectLength(byteCount) }
    let entries = byteCount / 16
    // A split table may be longer than the chain in it; a packed one is the chain.
    guard entries <= 32768 else { return .indirectLength(byteCount) }
    if sequential, entries > descriptorLimit { return .chainTooLong(limit: descriptorLimit) }
    guard var cursor = TableCursor(view: view, address: address, byteCount: byteCount) else {
      return .indirectUnmapped(address)
    }
    var index: UInt32 = 0
    var seen = alreadySeen
    while true {
      guard let descriptor = cursor.entry(index) else { return .indirectUnmapped(address) }
      seen += 1
      if seen > descriptorLimit { return .chainTooLong(limit: descriptorLimit) }
      // A packed entry has its flags last, {length, id, flags}, and only WRITE counts (virtio 1.3 §2.8.7).
      let flags = sequential ? descriptor.next : descriptor.flags
      if flags & DescriptorFlag.indirect != 0, !sequential { return .indirectNested }
      // SAFETY: the slot is the caller's; `append` checks all that the descriptor says.
      if let fault = unsafe append(
        descriptor.address, descriptor.length, writable: flags & DescriptorFlag.write != 0, to: slot,
        sawWritable: &sawWritable)
      {
        return fault
      }
      if sequential {
        index += 1
        if index == entries { return nil }
      } else {
        if flags & DescriptorFlag.next == 0 { return nil }
        index = UInt32(descriptor.next)
        if index >= entries { return .nextOutOfRange(descriptor.next, table: entries) }
      }
    }
  }
}
