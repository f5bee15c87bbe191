// Why a queue broke. A fault is sticky: the ring gives out no more chains and publishes nothing more, until the
// driver sets it up again. Raised on the queue's thread; reported by whoever runs the queue.

/// What a driver (or, for `chainDropped`, a device) did that ends a queue. virtio 1.3 §2.1.2 leaves the reaction to
/// the device; these are the faults after which nothing in the ring can be believed.
public enum QueueFault: Error, Equatable, Sendable {
  /// The available index moved by more than the queue size (split).
  case availableIndexJumped(from: UInt16, to: UInt16, size: UInt16)
  /// A head, or a buffer id (packed), that is not below the queue size.
  case headOutOfRange(UInt16, size: UInt16)
  /// A head was made available again before its first use was completed.
  case headInFlight(UInt16)
  /// A `next` that points outside its table.
  case nextOutOfRange(UInt16, table: UInt32)
  /// More descriptors than the queue, or the limit for indirect tables, allows: a loop ends here too.
  case chainTooLong(limit: UInt32)
  /// Readable and writable parts that add up to more than 2^32 - 1 bytes.
  case chainTooLarge
  /// A device-readable descriptor after a device-writable one (virtio 1.3 §2.7.4.2).
  case readableAfterWritable
  case indirectNotNegotiated
  /// An indirect descriptor inside an indirect table (virtio 1.3 §2.7.5.3.1).
  case indirectNested
  /// INDIRECT and NEXT in one descriptor (virtio 1.3 §2.7.5.3.1).
  case indirectWithNext
  /// The length of an indirect table in bytes: zero, no multiple of 16, or too long.
  case indirectLength(UInt32)
  /// An indirect table that is not wholly in guest memory.
  case indirectUnmapped(UInt64)
  /// No fault: the chain stays in the ring until its addresses are translated (IOMMU). Never a ring's `fault`.
  case translationPending
  /// The memory map changed and the ring lies in it no more.
  case ringUnmapped
  /// Pages of the memory that is shared with us are gone: the front-end cut their file off.
  case memoryLost
  /// The device let go of a chain without completing it: a defect of the device, not of the driver.
  case chainDropped(UInt16)
}
