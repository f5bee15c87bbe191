// What the driver's side of a virtqueue can do, split or packed: add chains, publish them, decide about a
// kick, take used ones back, arm interrupts. Called by QueueDriver and by load generators, which hold one
// kind and call it directly. One thread.

/// One buffer of a chain, in guest addresses.
@frozen public struct DescriptorSpec: Equatable, Sendable {
  public var address: UInt64
  public var length: UInt32
  /// The device writes it.
  public var write: Bool
  @inlinable public init(_ address: UInt64, _ length: UInt32, write: Bool = false) {
    (self.address, self.length, self.write) = (address, length, write)
  }
}

/// Where a chain's descriptors go.
@frozen public enum DescriptorTable: Equatable, Sendable {
  /// Into the ring.
  case direct
  /// All into one indirect table (virtio 1.3 §2.7.5.3, §2.8.7).
  case indirect
  /// The first ones into the ring, the rest into a table at the chain's end. The split ring alone knows this.
  case mixed(direct: Int)
}

/// A chain that the device gave back.
@frozen public struct UsedChain: Equatable, Sendable {
  /// What `add` returned.
  public var token: UInt16
  /// Bytes the device says it wrote.
  public var length: UInt32
  /// Packed: whether the used descriptor carried WRITE, without which the length says nothing. Split: true.
  public var hasLength: Bool
  @inlinable public init(token: UInt16, length: UInt32, hasLength: Bool = true) {
    (self.token, self.length, self.hasLength) = (token, length, hasLength)
  }
}

/// Where a ring lies: guest addresses of its three areas (packed: ring, driver event, device event).
public struct RingAreas: Equatable, Sendable {
  public var descriptors: UInt64
  public var driver: UInt64
  public var device: UInt64

  public init(descriptors: UInt64, driver: UInt64, device: UInt64) {
    (self.descriptors, self.driver, self.device) = (descriptors, driver, device)
  }
}

/// How a driver's ring is to be made.
public struct DriverRingOptions: Equatable, Sendable {
  /// Split: a power of two up to 32768. Packed: 1 up to 32768.
  public var size: UInt16
  /// EVENT_IDX is negotiated.
  public var eventIndex: Bool
  /// Entries of each chain's indirect table; 0 where INDIRECT is not negotiated.
  public var indirectCapacity: Int
  /// Split: the index to begin with. Packed: the position, below `size`, and in bit 15 the wrap counter,
  /// which is 1 in a fresh ring.
  public var start: UInt16?
  /// The arena's region the ring lies in.
  public var region: Int

  public init(
    size: UInt16, eventIndex: Bool = true, indirectCapacity: Int = 0, start: UInt16? = nil, region: Int = 0
  ) {
    (self.size, self.eventIndex, self.indirectCapacity) = (size, eventIndex, indirectCapacity)
    (self.start, self.region) = (start, region)
  }
}

/// What a ring's driver counted.
public struct RingCounters: Equatable, Sendable {
  /// Kick decisions for and against.
  public var kicks: UInt64 = 0
  public var kicksSuppressed: UInt64 = 0
  public var added: UInt64 = 0
  public var used: UInt64 = 0
  @usableFromInline init() {}
}

public protocol DriverRing: ~Copyable {
  init(_ options: DriverRingOptions, in arena: GuestArena) throws(FrontendError)

  var size: UInt16 { get }
  var areas: RingAreas { get }
  /// The ring as SET_VRING_BASE names it: where the driver would have the device go on if nothing is in
  /// flight.
  var base: UInt32 { get }
  /// What SET_VRING_BASE gets after a back-end died: what the device has given back so far.
  var baseOfUsed: UInt32 { get }
  var freeDescriptors: Int { get }
  /// Chains the device has not given back.
  var inFlight: Int { get }
  var counters: RingCounters { get }
  /// Set when the device wrote an impossible used entry; from then on nothing is taken.
  var fault: RingFault? { get }

  /// Puts a chain into the ring, not yet seen by the device. nil: no room now, or the chain cannot be built
  /// at all.
  mutating func add(_ chain: Span<DescriptorSpec>, table: DescriptorTable) -> UInt16?
  /// Shows the device all that was added.
  mutating func publish()
  /// Whether the device asked to be told of what was published since the last such decision. With the fence
  /// that makes the answer safe.
  mutating func needsKick() -> Bool
  /// The next chain the device has given back.
  mutating func poll() -> UsedChain?
  /// Asks for an interrupt when `more` chains beyond the next have come back (packed without EVENT_IDX: the
  /// next). True: something is there already, so do not sleep.
  mutating func arm(after more: UInt16) -> Bool
  /// Asks for no interrupts, as far as the format can say so.
  mutating func disarm()
  /// As after a device reset: nothing in flight, indices where they began. The device must not run.
  mutating func reset()
}

extension DriverRing where Self: ~Copyable {
  /// Adds a chain given as an array.
  public mutating func add(_ chain: [DescriptorSpec], table: DescriptorTable = .direct) -> UInt16? {
    add(chain.span, table: table)
  }

  @inlinable public mutating func arm() -> Bool { arm(after: 0) }
}

/// The arithmetic of notification suppression (virtio 1.3 §2.7.10.1, §2.8.10.1), as a driver has it.
public enum EventArithmetic {
  /// Whether going from `old` to `new` passed `event`.
  @inlinable public static func needs(event: UInt16, new: UInt16, old: UInt16) -> Bool {
    (new &- event &- 1) < (new &- old)
  }

  /// The same for positions in a packed ring: `event` has an offset and, in bit 15, a wrap counter; `wrap` is
  /// the one at `new`; `old` is `new` less what was added, in 16 bits.
  @inlinable public static func needs(
    offsetWrap event: UInt16, new: UInt16, old: UInt16, wrap: Bool, size: UInt16
  ) -> Bool {
    let offset = event & 0x7fff
    return needs(event: (event >> 15 == 1) == wrap ? offset : offset &- size, new: new, old: old)
  }
}
