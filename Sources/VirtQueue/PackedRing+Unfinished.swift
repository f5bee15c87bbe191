// What an earlier process left in a packed ring, taken up before anything new. On the queue's thread.

extension PackedRing {
  /// A chain that an earlier process took and did not complete: its descriptors come from the log, since the ring may
  /// have been written over.
  @usableFromInline @inline(never)
  mutating func nextUnfinished() -> Chain? {
    guard let request = inflight.nextUnfinished(), request.id < size else {
      hasUnfinished = false
      return next()
    }
    hasUnfinished = inflight.unfinishedCount > 0
    // SAFETY: the id is below `size`.
    let slot = unsafe table.slots + Int(request.id)
    if let fault = unsafe walk(request.descriptors, into: slot) {
      unsafe table.close(slot)
      inflight.putBack(request)
      hasUnfinished = true
      stop(at: fault)
      return nil
    }
    return unsafe Chain(head: request.id, slot: slot)
  }

  /// A list from the log.
  mutating func walk(
    _ list: [PackedCopy], into slot: UnsafeMutablePointer<Slot>
  ) -> QueueFault? {
    // SAFETY: the slot is the caller's; what the copies say is checked as if it came from the ring.
    var walk = unsafe table.open(slot)
    for descriptor in list {
      if let fault = unsafe append(
        descriptor.address, descriptor.word, isAlone: list.count == 1, &walk, to: slot)
      {
        return fault
      }
    }
    return unsafe table.give(slot, walk, descriptors: UInt16(truncatingIfNeeded: list.count))
  }
}
