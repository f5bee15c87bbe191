// A driver's ring whose kind is found out by negotiation. Held by QueueDriver and BlockQueue. One thread.

/// Either kind of ring behind one reference. A loop that counts nanoseconds takes the kind out once, by
/// `withSplit` or `withPacked`; tests reach the raw moves the same way.
public final class AnyDriverRing: DriverRing {
  public let isPacked: Bool
  public let size: UInt16
  public let areas: RingAreas
  // One of the two is there, always the same.
  @usableFromInline var split: SplitDriverRing?
  @usableFromInline var packed: PackedDriverRing?

  public convenience init(_ options: DriverRingOptions, in arena: GuestArena) throws(FrontendError) {
    try self.init(options, packed: false, in: arena)
  }

  public init(_ options: DriverRingOptions, packed isPacked: Bool, in arena: GuestArena) throws(FrontendError)
  {
    self.isPacked = isPacked
    size = options.size
    if isPacked {
      let ring = try PackedDriverRing(options, in: arena)
      areas = ring.areas
      packed = consume ring
    } else {
      let ring = try SplitDriverRing(options, in: arena)
      areas = ring.areas
      split = consume ring
    }
  }

  /// The ring itself, where it is split; nil where it is packed.
  @inlinable public func withSplit<Result>(_ body: (inout SplitDriverRing) -> Result) -> Result? {
    guard !isPacked else { return nil }
    return withRing(&split, body)
  }

  /// The ring itself, where it is packed; nil where it is split.
  @inlinable public func withPacked<Result>(_ body: (inout PackedDriverRing) -> Result) -> Result? {
    guard isPacked else { return nil }
    return withRing(&packed, body)
  }

  @inlinable @inline(__always)
  func withRing<Ring: DriverRing & ~Copyable, Result>(
    _ ring: inout Ring?, _ body: (inout Ring) -> Result
  ) -> Result? {
    guard var taken = ring.take() else { return nil }
    let result = body(&taken)
    ring = consume taken
    return result
  }

  public var base: UInt32 { (isPacked ? packed?.base : split?.base) ?? 0 }
  public var baseOfUsed: UInt32 { (isPacked ? packed?.baseOfUsed : split?.baseOfUsed) ?? 0 }
  @inlinable public var freeDescriptors: Int {
    (isPacked ? packed?.freeDescriptors : split?.freeDescriptors) ?? 0
  }
  @inlinable public var inFlight: Int { (isPacked ? packed?.inFlight : split?.inFlight) ?? 0 }
  public var counters: RingCounters { (isPacked ? packed?.counters : split?.counters) ?? RingCounters() }
  public var fault: RingFault? { isPacked ? packed?.fault : split?.fault }

  @inlinable public func add(_ chain: Span<DescriptorSpec>, table: DescriptorTable = .direct) -> UInt16? {
    (isPacked ? packed?.add(chain, table: table) : split?.add(chain, table: table)) ?? nil
  }
  @inlinable public func add(_ chain: [DescriptorSpec], table: DescriptorTable = .direct) -> UInt16? {
    add(chain.span, table: table)
  }
  @inlinable public func publish() { if isPacked { packed?.publish() } else { split?.publish() } }
  @inlinable public func needsKick() -> Bool {
    (isPacked ? packed?.needsKick() : split?.needsKick()) ?? false
  }
  @inlinable public func poll() -> UsedChain? { (isPacked ? packed?.poll() : split?.poll()) ?? nil }
  @inlinable public func arm(after more: UInt16) -> Bool {
    (isPacked ? packed?.arm(after: more) : split?.arm(after: more)) ?? true
  }
  @inlinable public func arm() -> Bool { arm(after: 0) }
  @inlinable public func disarm() { if isPacked { packed?.disarm() } else { split?.disarm() } }
  public func reset() { if isPacked { packed?.reset() } else { split?.reset() } }
}
