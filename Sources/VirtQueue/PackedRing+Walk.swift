// Taking chains from a packed ring: the usual list in registers, every other one from where it stops being usual. On the queue's
// thread.

import CLinux

extension PackedRing {
  /// A descriptor that was read, and where.
  @unsafe @usableFromInline struct Place {
    // SAFETY: one of the ring's descriptors.
    @usableFromInline var at: UnsafeMutableRawPointer
    @usableFromInline var address: UInt64
    @usableFromInline var word: PackedWord

    @inlinable @inline(__always)
    init(at: UnsafeMutableRawPointer, word: PackedWord) {
      unsafe self.at = unsafe at
      unsafe self.word = word
      unsafe address = unsafe clx_load_relaxed_u64(at)
    }
  }

  @inlinable @inline(__always)
  mutating func nextQuickly() -> Chain? {
    guard let first = unsafe available() else { return nil }
    // The last descriptor names the chain, but drivers put the name into the first as well: where that slot is free the
    // walk goes there, and nothing has to be moved.
    // SAFETY (all of the body): the slot is below the size and free, and so has an array of its own for the walk.
    let head = unsafe first.word.id
    guard head < size, unsafe table.slots[Int(head)].state == .free else {
      return unsafe nextFromRing(first, logged: false)
    }
    let slot = unsafe table.slots + Int(head)
    var walk = unsafe table.quicken(slot)
    var place = unsafe first
    var step = unsafe follow(&walk, &place, writable: false)
    unsafe walk.endReadable()
    if step == .atAWritable { step = unsafe follow(&walk, &place, writable: true) }
    if step != .atTheEnd {
      if unsafe walk.count == 0, unsafe place.word.flags & DescriptorFlag.indirect != 0 {
        return unsafe nextTable(place.address, place.word, into: slot)
      }
      return unsafe go(on: walk, with: place, into: slot)
    }
    let count = unsafe UInt16(truncatingIfNeeded: walk.count)
    guard unsafe walk.bytes <= UInt64(UInt32.max) else {
      return unsafe conclude(.chainTooLarge, last: place.word, slot)
    }
    unsafe table.give(slot, walk, descriptors: count)
    guard unsafe place.word.id == head else { return unsafe conclude(nil, last: place.word, slot) }
    nextAvailable.advance(by: count, size: size)
    return unsafe Chain(head: head, slot: slot)
  }

  /// The first descriptor of the next list.
  @inlinable @inline(__always)
  func available() -> Place? {
    // SAFETY: the index is below the size.
    let at = unsafe descriptors + 16 * Int(nextAvailable.index)
    let word = unsafe word(at: at)
    return word.isAvailable(at: nextAvailable) ? unsafe Place(at: at, word: word) : nil
  }

  /// The descriptor after a place.
  @inlinable @inline(__always)
  func step(_ place: inout Place) {
    // SAFETY: the first follows the last.
    var at = unsafe place.at + 16
    if unsafe at == descriptorsEnd { unsafe at = unsafe descriptors }
    unsafe place = Place(at: at, word: word(at: at))
  }

  /// The readable or the writable part of a list, from a descriptor that was read, as far as it is usual.
  @inlinable @inline(__always)
  func follow(_ walk: inout QuickWalk, _ place: inout Place, writable: Bool) -> QuickWalk.Step {
    let usual = writable ? DescriptorFlag.write : 0
    // SAFETY (all of the body): a place is one of the ring's descriptors, and its word was read; the walk minds its own array.
    while true {
      let flags = unsafe place.word.flags
      let kind = flags & (DescriptorFlag.indirect | DescriptorFlag.write)
      if kind != usual { return !writable && kind == DescriptorFlag.write ? .atAWritable : .atSomethingElse }
      guard unsafe walk.append(place.address, place.word.length) else { return .atSomethingElse }
      if flags & DescriptorFlag.next == 0 { return .atTheEnd }
      unsafe step(&place)
    }
  }

  // MARK: Not the usual

  /// With something unusual to note. With an inflight log: what it is left with first, then the ring.
  @usableFromInline @inline(never)
  mutating func nextNoted() -> Chain? {
    guard !broken, table.hasRoom else { return nil }
    if hasUnfinished { return nextUnfinished() }
    // SAFETY: the place is the descriptor that is next.
    guard let first = unsafe available() else { return nil }
    return unsafe nextFromRing(first, logged: logs)
  }

  /// A chain of any kind.
  @usableFromInline @inline(never)
  mutating func nextFromRing(_ first: Place, logged: Bool) -> Chain? {
    // SAFETY (all of the body): the slot is below the size and free, or the one that is nobody's.
    let id = unsafe first.word.id
    let isFree = id < size ? unsafe table.slots[Int(id)].state == .free : false
    let slot = unsafe isFree ? table.slots + Int(id) : table.scratch
    if logged { inflight.begin() }
    var (walk, place) = unsafe (table.open(slot), first)
    let fault = unsafe finish(&walk, &place, logged: logged, into: slot)
    return unsafe conclude(fault, last: place.word, slot, logged: logged)
  }

  /// The rest of a chain that is not a usual one, from a descriptor that was read.
  @usableFromInline @inline(never)
  mutating func go(
    on quick: QuickWalk, with first: Place, into slot: UnsafeMutablePointer<Slot>
  ) -> Chain? {
    // SAFETY: the slot is the one that the quick walk went into.
    var (walk, place) = unsafe (table.slowed(quick, slot), first)
    let fault = unsafe finish(&walk, &place, logged: false, into: slot)
    return unsafe conclude(fault, last: place.word, slot)
  }

  /// A list that is one indirect table (virtio 1.3 §2.8.7).
  @usableFromInline @inline(never)
  mutating func nextTable(
    _ address: UInt64, _ word: PackedWord, into slot: UnsafeMutablePointer<Slot>
  ) -> Chain? {
    // SAFETY: the slot is free; the table is looked for in guest memory.
    let fault: QueueFault? =
      !indirect
      ? .indirectNotNegotiated
      : word.flags & DescriptorFlag.next != 0
        ? .indirectWithNext
        : unsafe table.walkAlone(table: address, byteCount: word.length, sequential: true, into: slot)
    return unsafe conclude(fault, last: word, slot)
  }

  /// Ends the taking of a chain that was walked into a slot, its own or another.
  @usableFromInline @inline(never)
  mutating func conclude(
    _ fault: QueueFault?, last: PackedWord, _ slot: UnsafeMutablePointer<Slot>, logged: Bool = false
  ) -> Chain? {
    // SAFETY (all of the body): what `refusal` lets through is below the size, and its slot is free or the one that was walked into.
    if let fault = unsafe fault ?? refusal(of: last.id, in: slot) {
      if logged { inflight.abandon() }
      unsafe table.close(slot)
      stop(at: fault)
      return nil
    }
    if logged { inflight.finish(id: last.id) }
    let own = unsafe table.slots + Int(last.id)
    if unsafe own != slot { unsafe table.settle(slot, into: own) }
    nextAvailable.advance(by: unsafe own.pointee.descriptorCount, size: size)
    return unsafe Chain(head: last.id, slot: own)
  }

  /// The last descriptor carries the buffer id (virtio 1.3 §2.8.6): the driver's name for the chain, our slot.
  func refusal(of id: UInt16, in slot: UnsafeMutablePointer<Slot>) -> QueueFault? {
    guard id < size else { return .headOutOfRange(id, size: size) }
    // SAFETY: there are `size` slots.
    let own = unsafe table.slots + Int(id)
    if unsafe own == slot { return nil }
    switch unsafe own.pointee.state {
    case .free: return nil
    case .dropped: return .chainDropped(id)
    case .live, .held: return .headInFlight(id)
    }
  }

  /// One descriptor of a list: a buffer, or the table that is the whole list (virtio 1.3 §2.8.7).
  @inline(__always)
  mutating func append(
    _ address: UInt64, _ word: PackedWord, isAlone: Bool, _ walk: inout Walk,
    to slot: UnsafeMutablePointer<Slot>
  ) -> QueueFault? {
    // SAFETY (all of the body): the slot is the one that `walk` goes into.
    if word.flags & DescriptorFlag.indirect != 0 {
      guard indirect else { return .indirectNotNegotiated }
      guard isAlone, word.flags & DescriptorFlag.next == 0 else { return .indirectWithNext }
      return unsafe table.appendIndirect(
        table: address, byteCount: word.length, alreadySeen: 0, sequential: true, &walk,
        to: slot)
    }
    return unsafe table.append(
      address, word.length, writable: word.flags & DescriptorFlag.write != 0, &walk, to: slot)
  }

  /// Walks the rest of a list, from a descriptor that was read to the last one.
  private mutating func finish(
    _ walk: inout Walk, _ place: inout Place, logged: Bool, into slot: UnsafeMutablePointer<Slot>
  ) -> QueueFault? {
    // SAFETY (all of the body): the slot is the one that `walk` goes into; a step stays in the ring.
    var seen = unsafe UInt16(truncatingIfNeeded: walk.count)
    while true {
      seen &+= 1
      let isLast = unsafe place.word.flags & DescriptorFlag.next == 0
      if logged, unsafe !inflight.add(place.address, place.word, isLast: isLast) {
        return .chainTooLong(limit: UInt32(size))
      }
      if let fault = unsafe append(place.address, place.word, isAlone: seen == 1, &walk, to: slot) {
        return fault
      }
      if isLast { return unsafe table.give(slot, walk, descriptors: seen) }
      if seen >= size { return .chainTooLong(limit: UInt32(size)) }
      unsafe step(&place)
    }
  }
}
