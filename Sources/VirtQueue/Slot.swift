// What the queue knows of one head while its chain is out: made in `SlotTable`, read through `Chain`.
// On the queue's thread only.

import Glibc

/// Where a slot's chain is.
@usableFromInline enum SlotState: UInt8, Sendable {
  /// Not given out.
  case free
  /// Given out by `next()` and not completed.
  case live
  /// Out, and held by the device under its head while I/O runs.
  case held
  /// A chain was dropped by its device without being completed.
  case dropped
}

/// One head's chain, walked once: its segments first the readable, then the writable ones.
@unsafe @usableFromInline struct Slot {
  /// `count` segments of `capacity`; a nil base marks a hole (bytes that are not in guest memory).
  @usableFromInline var segments: UnsafeMutablePointer<iovec>
  /// The array of `SlotTable.ownSegments` that the slot falls back to.
  @usableFromInline var own: UnsafeMutablePointer<iovec>
  @usableFromInline var capacity: UInt32
  @usableFromInline var readableCount: UInt32
  @usableFromInline var writableCount: UInt32
  @usableFromInline var readableBytes: UInt32
  @usableFromInline var writableBytes: UInt32
  /// The map the segments point into, by the table's count.
  @usableFromInline var generation: UInt32
  /// How many descriptors of the ring the chain took (packed: how far to step).
  @usableFromInline var descriptorCount: UInt16
  @usableFromInline var state: SlotState
  @usableFromInline var hasHole: Bool
}
