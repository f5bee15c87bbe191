// The split virtqueue as its driver sees it (virtio 1.3 §2.7). What the driver must remember lies in private
// memory: a device that scribbles over the ring cannot lead it astray. One thread.

import CLinux

/// A split ring in a guest arena. `add` a few chains, `publish`, and kick if `needsKick`; `poll` until it
/// gives nothing, then `arm`, and sleep unless that says true.
@safe public struct SplitDriverRing: ~Copyable, DriverRing {
  public let size: UInt16
  @usableFromInline let mask: UInt16
  @usableFromInline let eventIndex: Bool
  @usableFromInline let tableCapacity: Int
  @usableFromInline let tables: UInt64
  private let start: UInt16
  private let memory: RingMemory

  // SAFETY: from `memory`, which is held: each area is as long as its format asks for.
  @usableFromInline let descriptors: UnsafeMutableRawPointer
  @usableFromInline let available: UnsafeMutableRawPointer
  @usableFromInline let used: UnsafeMutableRawPointer
  @usableFromInline let tableMemory: UnsafeMutableRawPointer?
  // SAFETY: from `memory`: `size` elements each. `next` links a chain's descriptors and the free ones;
  // `length` is 0 except for the head of a chain in flight.
  @usableFromInline let next: UnsafeMutablePointer<UInt16>
  @usableFromInline let length: UnsafeMutablePointer<UInt16>

  @usableFromInline var freeHead: UInt16 = 0
  @usableFromInline var free: Int
  @usableFromInline var chains = 0
  /// The next available index to write, the one the device sees, and the one at the last kick decision.
  @usableFromInline var nextAvailable: UInt16
  @usableFromInline var published: UInt16
  @usableFromInline var decided: UInt16
  /// The next used entry to take, and how far the device was seen to have come.
  @usableFromInline var lastUsed: UInt16
  @usableFromInline var seenUsed: UInt16
  @usableFromInline var counted = RingCounters()
  public private(set) var fault: RingFault?
  @usableFromInline var broken = false

  public init(_ options: DriverRingOptions, in arena: GuestArena) throws(FrontendError) {
    let count = Int(options.size)
    guard count > 0, count <= 32768, count & (count - 1) == 0 else { throw .badRingSize(options.size) }
    // The event words are there whether they are used or not.
    let memory = try RingMemory(
      options, in: arena, driver: (bytes: 6 + 2 * count, alignment: 2),
      device: (bytes: 6 + 8 * count, alignment: 4))
    self.init(options, memory)
  }

  private init(_ options: DriverRingOptions, _ memory: RingMemory) {
    size = options.size
    mask = options.size &- 1
    eventIndex = options.eventIndex
    tableCapacity = options.indirectCapacity
    start = options.start ?? 0
    self.memory = memory
    tables = memory.tables
    unsafe descriptors = memory.descriptors
    unsafe available = memory.driver
    unsafe used = memory.device
    unsafe tableMemory = memory.tableMemory
    unsafe next = memory.first
    unsafe length = memory.second
    free = Int(options.size)
    (nextAvailable, published, decided, lastUsed, seenUsed) = (start, start, start, start, start)
    reset()
  }

  public mutating func reset() {
    let count = Int(size)
    // SAFETY: the whole areas, and private arrays of `count`.
    unsafe descriptors.initializeMemory(as: UInt8.self, repeating: 0, count: 16 * count)
    unsafe available.initializeMemory(as: UInt8.self, repeating: 0, count: 6 + 2 * count)
    unsafe used.initializeMemory(as: UInt8.self, repeating: 0, count: 6 + 8 * count)
    for index in 0..<count {
      unsafe next[index] = UInt16(truncatingIfNeeded: index &+ 1)
      unsafe length[index] = 0
    }
    (freeHead, free, chains) = (0, count, 0)
    (nextAvailable, published, decided, lastUsed, seenUsed) = (start, start, start, start, start)
    (counted, fault, broken) = (RingCounters(), nil, false)
    unsafe clx_store_relaxed_u16(available + 2, start)
    unsafe clx_store_relaxed_u16(used + 2, start)
    // As after a life before: both sides asked to be told of what comes next.
    unsafe clx_store_relaxed_u16(available + (4 + 2 * count), start)
    unsafe clx_store_relaxed_u16(used + (4 + 8 * count), start)
    clx_fence_full()
  }

  public var areas: RingAreas { memory.areas }
  public var base: UInt32 { UInt32(published) }
  public var baseOfUsed: UInt32 { UInt32(rawUsedIndex) }
  @inlinable public var freeDescriptors: Int { free }
  @inlinable public var inFlight: Int { chains }
  @inlinable public var counters: RingCounters { counted }

  // MARK: Adding

  @inlinable public mutating func add(_ chain: Span<DescriptorSpec>, table: DescriptorTable) -> UInt16? {
    switch table {
    case .direct: add(chain, direct: chain.count)
    case .indirect: add(chain, direct: 0)
    case .mixed(let direct): add(chain, direct: direct)
    }
  }

  /// The first `direct` into the ring; if any are left, one more descriptor there names the table with the
  /// rest.
  @inlinable @inline(__always)
  mutating func add(_ chain: Span<DescriptorSpec>, direct: Int) -> UInt16? {
    let rest = chain.count &- direct
    guard direct >= 0, rest >= 0, rest <= tableCapacity || rest == 0 else { return nil }
    let slots = direct &+ (rest > 0 ? 1 : 0)
    guard slots > 0, slots <= free else { return nil }
    let head = freeHead
    var index = head
    var last = head
    for position in 0..<direct {
      let spec = chain[position]
      last = index
      // SAFETY: the index is from the free list, which holds those below `size`; the array has `size`
      // elements.
      index = unsafe next[Int(index)]
      let flags: UInt16 = (position &+ 1 < slots ? 1 : 0) | (spec.write ? 2 : 0)
      put(last, address: spec.address, length: spec.length, flags: flags, next: flags & 1 == 1 ? index : 0)
    }
    if rest > 0 {
      last = index
      // SAFETY: as above.
      index = unsafe next[Int(index)]
      let table = fillTable(of: head, chain, from: direct)
      put(last, address: table, length: UInt32(truncatingIfNeeded: 16 &* rest), flags: 4, next: 0)
    }
    freeHead = index
    free &-= slots
    // SAFETY: the head is below `size`; the slot is within the available ring.
    unsafe length[Int(head)] = UInt16(truncatingIfNeeded: slots)
    unsafe clx_store_relaxed_u16(available + (4 &+ 2 &* Int(nextAvailable & mask)), head)
    nextAvailable &+= 1
    chains &+= 1
    counted.added &+= 1
    return head
  }

  @inlinable @inline(__always)
  func put(_ index: UInt16, address: UInt64, length: UInt32, flags: UInt16, next: UInt16) {
    // SAFETY: callers give an index below `size`.
    let entry = unsafe descriptors + 16 &* Int(index)
    unsafe clx_store_relaxed_u64(entry, address)
    unsafe clx_store_relaxed_u64(entry + 8, UInt64(length) | UInt64(flags) << 32 | UInt64(next) << 48)
  }

  /// Writes the chain from `first` on into the table of `head`; its guest address.
  @usableFromInline func fillTable(of head: UInt16, _ chain: Span<DescriptorSpec>, from first: Int) -> UInt64
  {
    guard let memory = unsafe tableMemory else { return 0 }
    let offset = 16 &* tableCapacity &* Int(head)
    let count = chain.count &- first
    for position in 0..<count {
      let spec = chain[first &+ position]
      let flags: UInt64 = (position &+ 1 < count ? 1 : 0) | (spec.write ? 2 : 0)
      let next = position &+ 1 < count ? UInt64(position &+ 1) : 0
      // SAFETY: the caller checked `count` against the capacity; there is a table for every head.
      let entry = unsafe memory + (offset &+ 16 &* position)
      unsafe clx_store_relaxed_u64(entry, spec.address)
      unsafe clx_store_relaxed_u64(entry + 8, UInt64(spec.length) | flags << 32 | next << 48)
    }
    return tables &+ UInt64(offset)
  }

  @inlinable public mutating func publish() {
    published = nextAvailable
    // SAFETY: the index word. Pairs with the device's acquire load of it: the descriptors are written before.
    unsafe clx_store_release_u16(available + 2, published)
  }

  @inlinable public mutating func needsKick() -> Bool {
    let old = decided
    guard old != published else { return false }
    decided = published
    // Pairs with the device's fence between asking for kicks and looking at the index again.
    clx_fence_full()
    let wanted: Bool
    if eventIndex {
      // SAFETY: avail_event, behind the `size` used entries.
      let event = unsafe clx_load_relaxed_u16(used + (4 &+ 8 &* Int(size)))
      wanted = EventArithmetic.needs(event: event, new: published, old: old)
    } else {
      // SAFETY: the flags word.
      wanted = unsafe clx_load_relaxed_u16(used) & 1 == 0
    }
    if wanted { counted.kicks &+= 1 } else { counted.kicksSuppressed &+= 1 }
    return wanted
  }

  // MARK: Taking back

  @inlinable public mutating func poll() -> UsedChain? {
    guard !broken else { return nil }
    if lastUsed == seenUsed {
      // SAFETY: the index word. Pairs with the device's release store: entries and data are there before it.
      seenUsed = unsafe clx_load_acquire_u16(used + 2)
      if lastUsed == seenUsed { return nil }
      guard Int(seenUsed &- lastUsed) <= chains else {
        fail(
          .usedIndexAhead(
            index: seenUsed, expected: lastUsed, inFlight: UInt16(truncatingIfNeeded: chains)))
        return nil
      }
    }
    // SAFETY: an entry below `size`; used entries begin 4 bytes after a 4-aligned address.
    let entry = unsafe used + (4 &+ 8 &* Int(lastUsed & mask))
    let token = unsafe clx_load_relaxed_u32(entry)
    let written = unsafe clx_load_relaxed_u32(entry + 4)
    // SAFETY: checked against `size` before the array is read.
    guard token < UInt32(size), unsafe length[Int(token)] != 0 else {
      fail(.unknownToken(token))
      return nil
    }
    lastUsed &+= 1
    let head = UInt16(truncatingIfNeeded: token)
    release(head)
    counted.used &+= 1
    return UsedChain(token: head, length: written)
  }

  /// Puts a chain's descriptors back in front of the free ones.
  @inlinable @inline(__always) mutating func release(_ head: UInt16) {
    // SAFETY: `head` is in flight, so the private links lead through its descriptors, all below `size`.
    let slots = unsafe length[Int(head)]
    unsafe length[Int(head)] = 0
    var tail = head
    for _ in 1..<max(slots, 1) { tail = unsafe next[Int(tail)] }
    unsafe next[Int(tail)] = freeHead
    freeHead = head
    free &+= Int(slots)
    chains &-= 1
  }

  @usableFromInline mutating func fail(_ fault: RingFault) {
    self.fault = fault
    broken = true
  }

  @inlinable public mutating func arm(after more: UInt16) -> Bool {
    if eventIndex {
      // SAFETY: used_event, behind the `size` available entries.
      unsafe clx_store_relaxed_u16(available + (4 &+ 2 &* Int(size)), lastUsed &+ more)
    } else {
      // SAFETY: the flags word.
      unsafe clx_store_relaxed_u16(available, 0)
    }
    // Pairs with the device's fence between showing the used index and reading what is asked for here.
    clx_fence_full()
    // SAFETY: the index word.
    let index = unsafe clx_load_acquire_u16(used + 2)
    return index &- lastUsed > (eventIndex ? more : 0)
  }

  @inlinable public mutating func disarm() {
    if eventIndex {
      // An index the device has just passed: it comes round again after 65535 chains.
      unsafe clx_store_relaxed_u16(available + (4 &+ 2 &* Int(size)), lastUsed &- 1)
    } else {
      unsafe clx_store_relaxed_u16(available, 1)
    }
  }
}
