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
  // SAFETY: `own`, or an array that the table gave for this chain and takes back with it.
  @usableFromInline var segments: UnsafeMutablePointer<iovec>
  /// The array of `SlotTable.ownSegments` that the slot falls back to.
  @usableFromInline var own: UnsafeMutablePointer<iovec>
  /// What it has to give back when its chain does: {capacity, generation}, asked for together.
  @usableFromInline var lease: UInt64
  @usableFromInline var readableCount: UInt32
  @usableFromInline var writableCount: UInt32
  @usableFromInline var readableBytes: UInt32
  @usableFromInline var writableBytes: UInt32
  /// How many descriptors of the ring the chain took (packed: how far to step).
  @usableFromInline var descriptorCount: UInt16
  @usableFromInline var state: SlotState
  @usableFromInline var hasHole: Bool

  @inlinable @inline(__always)
  static func lease(_ generation: UInt32, _ capacity: UInt32) -> UInt64 {
    UInt64(generation) << 32 | UInt64(capacity)
  }

  /// Segments that the array has room for.
  @inlinable var capacity: UInt32 {
    get { unsafe UInt32(truncatingIfNeeded: lease) }
    set { unsafe lease = unsafe Self.lease(generation, newValue) }
  }

  /// The map the segments point into, by the table's count.
  @inlinable var generation: UInt32 { unsafe UInt32(truncatingIfNeeded: lease >> 32) }
}

/// A chain as far as it was walked: in registers while the walk goes on, in its slot once it is over (`SlotTable.give`).
@unsafe @usableFromInline struct Walk {
  // SAFETY: the slot's array, of `capacity` segments, `count` of them written.
  @usableFromInline var segments: UnsafeMutablePointer<iovec>
  @usableFromInline var capacity: UInt32
  @usableFromInline var count: UInt32 = 0
  /// Cannot overflow: no walk has 2^32 buffers. The sum is judged at the end.
  @usableFromInline var bytes: UInt64 = 0
  /// What there was before the first writable buffer.
  @usableFromInline var readableCount: UInt32 = 0
  @usableFromInline var readableBytes: UInt64 = 0
  @usableFromInline var sawWritable = false
  @usableFromInline var hasHole = false
  // SAFETY: an entry of the table's view: the region of the last buffer.
  @usableFromInline var near: UnsafeMutablePointer<MapEntry>

  @inlinable init(
    segments: UnsafeMutablePointer<iovec>, capacity: UInt32, near: UnsafeMutablePointer<MapEntry>
  ) {
    unsafe self.segments = unsafe segments
    unsafe self.capacity = capacity
    unsafe self.near = unsafe near
  }
}
