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

  /// Descriptor, driver and device area, in this order.
  public func areas(packed: Bool) -> [RingArea] {
    let count = UInt64(size)
    if packed {
      return [
        RingArea("descriptor", descriptorArea, 16 * count, alignment: 16, [.read, .write]),
        RingArea("driver event", driverArea, 4, alignment: 4, .read),
        RingArea("device event", deviceArea, 4, alignment: 4, [.read, .write]),
      ]
    }
    // The event field is there only where it is used: some front-ends map no more than that.
    let event: UInt64 = eventIndex ? 2 : 0
    return [
      RingArea("descriptor", descriptorArea, 16 * count, alignment: 16, .read),
      RingArea("available", driverArea, 4 + 2 * count + event, alignment: 2, .read),
      RingArea("used", deviceArea, 4 + 8 * count + event, alignment: 4, [.read, .write]),
    ]
  }
}

/// A part of a ring: where the front-end says that it lies, and what is done there.
public struct RingArea: Sendable {
  public let name: String
  public let address: UInt64
  public let length: UInt64
  let alignment: UInt64
  let access: AccessRights

  init(_ name: String, _ address: UInt64, _ length: UInt64, alignment: UInt64, _ access: AccessRights) {
    self.name = name
    self.address = address
    self.length = length
    self.alignment = alignment
    self.access = access
  }

  /// What of it is to be translated before the ring can run.
  public func misses(in iotlb: IOTLB, limit: Int) -> [TranslationMiss] {
    iotlb.misses(at: address, length, for: access, limit: limit)
  }

  /// Whether any of it lies in a range.
  public func overlaps(_ range: IOVARange) -> Bool {
    // An area that runs past the last address is none that a ring runs in.
    IOVARange(address, size: length)?.overlaps(range) ?? true
  }
}

extension GuestMemoryMap {
  /// Where an area is in this process.
  func place(_ area: RingArea) throws(RingLayoutError) -> UnsafeMutableRawPointer {
    // SAFETY: `ringArea` gives memory of this map.
    guard
      let place = unsafe ringArea(
        at: area.address, length: area.length, alignment: area.alignment, for: area.access)
    else { throw .badArea(name: area.name, address: area.address) }
    return unsafe place
  }
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
