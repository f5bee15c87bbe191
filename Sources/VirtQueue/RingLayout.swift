// Where a queue's ring lies and how it works: what the front-end set up and the driver negotiated, given to a ring when
// it starts. Made by the control thread.

/// A queue's geometry and negotiated options.
public struct RingLayout: Sendable, Equatable {
  /// Descriptors; a split ring's is a power of two, both at most 32768 (virtio 1.3 §2.7, §2.8.10.1).
  public var size: UInt16
  /// Front-end addresses: descriptor area, driver area (available), device area (used).
  public var descriptorArea: UInt64
  public var driverArea: UInt64
  public var deviceArea: UInt64
  /// Where to go on, as SET_VRING_BASE carries it.
  public var base: UInt32
  /// VIRTIO_F_INDIRECT_DESC and VIRTIO_F_EVENT_IDX were negotiated.
  public var indirect: Bool
  public var eventIndex: Bool

  public init(
    size: UInt16, descriptorArea: UInt64, driverArea: UInt64, deviceArea: UInt64, base: UInt32,
    indirect: Bool, eventIndex: Bool
  ) {
    self.size = size
    self.descriptorArea = descriptorArea
    self.driverArea = driverArea
    self.deviceArea = deviceArea
    self.base = base
    self.indirect = indirect
    self.eventIndex = eventIndex
  }

  /// The largest queue either format allows.
  public static var largestSize: UInt16 { 32768 }
}

/// Why a ring cannot start where it is said to lie.
public enum RingLayoutError: Error, Equatable, Sendable {
  case badSize(UInt16)
  /// A position that is not below the size (packed).
  case badBase(UInt32)
  /// An inflight region that cannot be gone on from.
  case badInflight(InflightError)
  /// An area that is misaligned, or not wholly in one region.
  case badArea(name: String, address: UInt64)
}
