// Walking a split ring's chains: the usual one in registers, every other one from where it stops being usual. On the queue's
// thread.

import CLinux

extension SplitRing {
  @inlinable @inline(__always)
  mutating func walk(from head: UInt16, into slot: UnsafeMutablePointer<Slot>) -> QueueFault? {
    var walk = unsafe table.quicken(slot)
    // SAFETY: head < size, and there are that many descriptors.
    var place = unsafe (index: UInt32(head), entry: SplitDescriptor(at: descriptors + 16 * Int(head)))
    var step = unsafe table.follow(
      &walk, &place, UInt32(size), descriptors, sequential: false, writable: false)
    unsafe walk.endReadable()
    if step == .atAWritable {
      step = unsafe table.follow(&walk, &place, UInt32(size), descriptors, sequential: false, writable: true)
    }
    if step == .atTheEnd {
      guard unsafe walk.bytes <= UInt64(UInt32.max) else { return .chainTooLarge }
      unsafe table.give(slot, walk, descriptors: UInt16(truncatingIfNeeded: walk.count))
      return nil
    }
    if place.index >= UInt32(size) { return .nextOutOfRange(place.entry.next, table: UInt32(size)) }
    if unsafe walk.count == 0, place.entry.flags & DescriptorFlag.indirect != 0 {
      return unsafe walkTable(place.entry, into: slot)
    }
    return unsafe go(on: walk, with: place.entry, into: slot)
  }

  /// The same for any chain.
  @usableFromInline
  mutating func walkAny(from head: UInt16, into slot: UnsafeMutablePointer<Slot>) -> QueueFault? {
    // SAFETY: head < size.
    let descriptor = unsafe SplitDescriptor(at: descriptors + 16 * Int(head))
    return unsafe go(on: table.quicken(slot), with: descriptor, into: slot)
  }

  /// A chain that is one indirect table.
  @usableFromInline @inline(never)
  mutating func walkTable(
    _ descriptor: SplitDescriptor, into slot: UnsafeMutablePointer<Slot>
  ) -> QueueFault? {
    guard indirect else { return .indirectNotNegotiated }
    guard descriptor.flags & DescriptorFlag.next == 0 else { return .indirectWithNext }
    // SAFETY: the slot is free; the table is looked for in guest memory.
    return unsafe table.walkAlone(
      table: descriptor.address, byteCount: descriptor.length, sequential: false, into: slot)
  }

  /// The rest of a chain that is not a usual one, from a descriptor that was read.
  @usableFromInline @inline(never)
  mutating func go(
    on quick: QuickWalk, with first: SplitDescriptor, into slot: UnsafeMutablePointer<Slot>
  ) -> QueueFault? {
    var walk = unsafe table.slowed(quick, slot)
    var seen = unsafe walk.count
    var descriptor = first
    while true {
      seen &+= 1
      if seen > UInt32(size) { return .chainTooLong(limit: UInt32(size)) }
      if descriptor.flags & DescriptorFlag.indirect != 0 {
        guard indirect else { return .indirectNotNegotiated }
        // A table may end a chain of direct descriptors; nothing follows it.
        guard descriptor.flags & DescriptorFlag.next == 0 else { return .indirectWithNext }
        if let fault = unsafe table.appendIndirect(
          table: descriptor.address, byteCount: descriptor.length, alreadySeen: seen &- 1, sequential: false,
          &walk, to: slot)
        {
          return fault
        }
        break
      }
      if let fault = unsafe table.append(
        descriptor.address, descriptor.length, writable: descriptor.isWritable, &walk, to: slot)
      {
        return fault
      }
      if descriptor.flags & DescriptorFlag.next == 0 { break }
      let index = descriptor.next
      guard index < size else { return .nextOutOfRange(index, table: UInt32(size)) }
      // SAFETY: index < size.
      descriptor = unsafe SplitDescriptor(at: descriptors + 16 * Int(index))
    }
    return unsafe table.give(slot, walk, descriptors: UInt16(truncatingIfNeeded: seen))
  }
}
