// A driver's ring whose kind is found out by negotiation. Held by QueueDriver and BlockQueue. One thread.

/// Either kind of ring behind one reference. A loop that counts nanoseconds takes the kind out once, by
/// `withSplit` or `withPacked`; tests reach the raw moves the same way.
public final class AnyDriverRing: DriverRing {
  public let isPacked: Bool
  public let size: UInt16
  public let areas: RingAreas
  // One of the two is there, always the same.
  // SAFETY: unchecked, because the checks cost more than the rings do: one thread uses them, and no call of a
  // ring comes back to this object. In the bodies of `withSplit` and `withPacked` both are nil.
  @exclusivity(unchecked) @usableFromInline var split: SplitDriverRing?
  @exclusivity(unchecked) @usableFromInline var packed: PackedDriverRing?

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
      unsafe packed = consume ring
    } else {
      let ring = try SplitDriverRing(options, in: arena)
      areas = ring.areas
      unsafe split = consume ring
    }
  }

  /// The ring itself, where it is split; nil where it is packed.
  @inlinable public func withSplit<Result>(_ body: (inout SplitDriverRing) -> Result) -> Result? {
    guard !isPacked else { return nil }
    return unsafe withRing(&split, body)
  }

  /// The ring itself, where it is packed; nil where it is split.
  @inlinable public func withPacked<Result>(_ body: (inout PackedDriverRing) -> Result) -> Result? {
    guard isPacked else { return nil }
    return unsafe withRing(&packed, body)
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

  public var base: UInt32 { unsafe (isPacked ? packed?.base : split?.base) ?? 0 }
  public var baseOfUsed: UInt32 { unsafe (isPacked ? packed?.baseOfUsed : split?.baseOfUsed) ?? 0 }
  @inlinable public var freeDescriptors: Int {
    unsafe (isPacked ? packed?.freeDescriptors : split?.freeDescriptors) ?? 0
  }
  @inlinable public var inFlight: Int { unsafe (isPacked ? packed?.inFlight : split?.inFlight) ?? 0 }
  public var counters: RingCounters {
    unsafe (isPacked ? packed?.counters : split?.counters) ?? RingCounters()
  }
  public var fault: RingFault? { unsafe isPacked ? packed?.fault : split?.fault }

  @inlinable public func add(_ chain: Span<DescriptorSpec>, table: DescriptorTable = .direct) -> UInt16? {
    unsafe (isPacked ? packed?.add(chain, table: table) : split?.add(chain, table: table)) ?? nil
  }
  @inlinable public func add(_ chain: [DescriptorSpec], table: DescriptorTable = .direct) -> UInt16? {
    add(chain.span, table: table)
  }
  @inlinable public func publish() {
    if isPacked { unsafe packed?.publish() } else { unsafe split?.publish() }
  }
  @inlinable public func needsKick() -> Bool {
    unsafe (isPacked ? packed?.needsKick() : split?.needsKick()) ?? false
  }
  @inlinable public func poll() -> UsedChain? { unsafe (isPacked ? packed?.poll() : split?.poll()) ?? nil }
  @inlinable public func arm(after more: UInt16) -> Bool {
    unsafe (isPacked ? packed?.arm(after: more) : split?.arm(after: more)) ?? true
  }
  @inlinable public func arm() -> Bool { arm(after: 0) }
  @inlinable public func disarm() { if isPacked { unsafe packed?.disarm() } else { unsafe split?.disarm() } }
  public func reset() { if isPacked { unsafe packed?.reset() } else { unsafe split?.reset() } }
}
