// Both rings behind an IOMMU: a chain whose addresses nobody has translated yet stays in the ring, and the ring waits. What is
// asked each turn is one flag; without an IOMMU it is never set. On the queue's thread.

extension SplitRing {
  @inlinable public var isWaiting: Bool { table.isWaiting }

  public mutating func takeMisses() -> [TranslationMiss] { table.takeMisses() }

  public mutating func retry(denied: [TranslationMiss]) { table.retry(denied: denied) }

  public func reaches(_ range: IOVARange) -> Bool { table.reaches(range) }

  /// A walk gave no chain: for want of a translation, or for good.
  @usableFromInline @inline(never)
  mutating func stop(at fault: QueueFault) {
    if fault == .translationPending { table.isWaiting = true } else { fail(fault) }
  }
}

extension PackedRing {
  @inlinable public var isWaiting: Bool { table.isWaiting }

  public mutating func takeMisses() -> [TranslationMiss] { table.takeMisses() }

  public mutating func retry(denied: [TranslationMiss]) { table.retry(denied: denied) }

  public func reaches(_ range: IOVARange) -> Bool { table.reaches(range) }

  /// A walk gave no chain: for want of a translation, or for good.
  @usableFromInline @inline(never)
  mutating func stop(at fault: QueueFault) {
    if fault == .translationPending { table.isWaiting = true } else { fail(fault) }
  }
}

extension SlotTable {
  func takeMisses() -> [TranslationMiss] { translator?.takeMisses() ?? [] }

  mutating func retry(denied: [TranslationMiss]) {
    isWaiting = false
    translator?.retry(denied: denied)
  }
}
