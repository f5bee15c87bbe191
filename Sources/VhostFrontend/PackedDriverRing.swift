// The packed virtqueue as its driver sees it (virtio 1.3 §2.8). What the driver must remember lies in private
// memory: a device that scribbles over the ring cannot lead it astray. One thread.

import CLinux

/// A packed ring in a guest arena; used like `SplitDriverRing`.
@safe public struct PackedDriverRing: ~Copyable, DriverRing {
  public let size: UInt16
  @usableFromInline let eventIndex: Bool
  @usableFromInline let tableCapacity: Int
  @usableFromInline let tables: UInt64
  private let start: UInt16
  private let memory: RingMemory

  // SAFETY: from `memory`, which is held: `size` descriptors, and 4 bytes for each event structure.
  @usableFromInline let descriptors: UnsafeMutableRawPointer
  @usableFromInline let driverEvent: UnsafeMutableRawPointer
  @usableFromInline let deviceEvent: UnsafeMutableRawPointer
  @usableFromInline let tableMemory: UnsafeMutableRawPointer?
  // SAFETY: from `memory`: `size` elements each. `nextID` links the free buffer ids; `slots` is how many
  // descriptors of the ring the chain with an id takes, 0 while the id is free.
  @usableFromInline let nextID: UnsafeMutablePointer<UInt16>
  @usableFromInline let slots: UnsafeMutablePointer<UInt16>

  @usableFromInline var freeID: UInt16 = 0
  @usableFromInline var free: Int
  @usableFromInline var chains = 0
  /// Where the next chain goes, and the driver's wrap counter there.
  @usableFromInline var position: UInt16 = 0
  @usableFromInline var wrap = true
  /// The first head added since the last `publish`: its flags are stored last, and show the whole batch.
  @usableFromInline var heldHead: UInt16 = 0
  @usableFromInline var heldFlags: UInt16 = 0
  /// Descriptors added and not yet shown; shown since the last kick decision.
  @usableFromInline var hidden: UInt16 = 0
  @usableFromInline var undecided: UInt16 = 0
  /// Where the next used descriptor will be, and the device's wrap counter there.
  @usableFromInline var usedPosition: UInt16 = 0
  @usableFromInline var usedWrap = true
  @usableFromInline var counted = RingCounters()
  public private(set) var fault: RingFault?
  @usableFromInline var broken = false

  /// Bits of a descriptor's flags (virtio 1.3 §2.8.1, §2.8.6).
  public static let next: UInt16 = 1
  public static let write: UInt16 = 2
  public static let indirect: UInt16 = 4
  public static let available: UInt16 = 1 << 7
  public static let used: UInt16 = 1 << 15

  public init(_ options: DriverRingOptions, in arena: GuestArena) throws(FrontendError) {
    guard options.size > 0, options.size <= 32768, (options.start ?? 0) & 0x7fff < options.size else {
      throw .badRingSize(options.size)
    }
    let memory = try RingMemory(
      options, in: arena, driver: (bytes: 4, alignment: 4), device: (bytes: 4, alignment: 4))
    self.init(options, memory)
  }

  private init(_ options: DriverRingOptions, _ memory: RingMemory) {
    size = options.size
    eventIndex = options.eventIndex
    tableCapacity = options.indirectCapacity
    start = options.start ?? 0x8000
    self.memory = memory
    tables = memory.tables
    unsafe descriptors = memory.descriptors
    unsafe driverEvent = memory.driver
    unsafe deviceEvent = memory.device
    unsafe tableMemory = memory.tableMemory
    unsafe nextID = memory.first
    unsafe slots = memory.second
    free = Int(options.size)
    reset()
  }

  public mutating func reset() {
    (position, wrap) = (start & 0x7fff, start & 0x8000 != 0)
    (usedPosition, usedWrap) = (position, wrap)
    for index in 0..<Int(size) {
      // As after laps before: slots behind the start were last used in this lap, those from it on in the one
      // before.
      let lastLap = index < Int(position) ? wrap : !wrap
      let flags: UInt64 = lastLap ? UInt64(Self.available | Self.used) : 0
      // SAFETY: below `size`, in the ring and in the private arrays.
      unsafe clx_store_relaxed_u64(descriptors + 16 * index, 0)
      unsafe clx_store_relaxed_u64(descriptors + (16 * index + 8), flags << 48)
      unsafe nextID[index] = UInt16(truncatingIfNeeded: index &+ 1)
      unsafe slots[index] = 0
    }
    // SAFETY: the event structures.
    unsafe clx_store_relaxed_u32(driverEvent, 0)
    unsafe clx_store_relaxed_u32(deviceEvent, 0)
    (freeID, free, chains) = (0, Int(size), 0)
    (hidden, undecided) = (0, 0)
    (counted, fault, broken) = (RingCounters(), nil, false)
    clx_fence_full()
  }

  public var areas: RingAreas { memory.areas }
  @inlinable public var freeDescriptors: Int { free }
  @inlinable public var inFlight: Int { chains }
  @inlinable public var counters: RingCounters { counted }

  /// Available position and wrap in the low half, used ones in the high half. What is added must be
  /// published.
  public var base: UInt32 { Self.half(position, wrap) | baseOfUsed & 0xffff_0000 }
  /// Both halves where the driver has come in taking used chains: poll to the end first.
  public var baseOfUsed: UInt32 { Self.half(usedPosition, usedWrap) &* 0x1_0001 }

  private static func half(_ position: UInt16, _ wrap: Bool) -> UInt32 {
    UInt32(position) | (wrap ? 0x8000 : 0)
  }

  // MARK: Adding

  @inlinable public mutating func add(_ chain: Span<DescriptorSpec>, table: DescriptorTable) -> UInt16? {
    switch table {
    case .direct: addDirect(chain)
    case .indirect: addIndirect(chain)
    case .mixed: nil
    }
  }

  @inlinable @inline(__always) mutating func addDirect(_ chain: Span<DescriptorSpec>) -> UInt16? {
    let count = chain.count
    guard count > 0, count <= free else { return nil }
    let id = takeID(slots: count)
    for index in 0..<count {
      let spec = chain[index]
      let flags = (index &+ 1 < count ? Self.next : 0) | (spec.write ? Self.write : 0)
      put(spec.address, spec.length, id, flags, isHead: index == 0)
    }
    return id
  }

  @inlinable mutating func addIndirect(_ chain: Span<DescriptorSpec>) -> UInt16? {
    let count = chain.count
    guard count > 0, count <= tableCapacity, free > 0 else { return nil }
    let id = takeID(slots: 1)
    let table = fillTable(of: id, chain)
    put(table, UInt32(truncatingIfNeeded: 16 &* count), id, Self.indirect, isHead: true)
    return id
  }

  @inlinable @inline(__always) mutating func takeID(slots count: Int) -> UInt16 {
    let id = freeID
    // SAFETY: there are as many ids as descriptors, and a descriptor is free: `id` is below `size`.
    freeID = unsafe nextID[Int(id)]
    unsafe slots[Int(id)] = UInt16(truncatingIfNeeded: count)
    free &-= count
    chains &+= 1
    counted.added &+= 1
    return id
  }

  /// Writes the next descriptor. The first head of a batch keeps its old flags until `publish`; the rest of
  /// the batch lies behind it, where the device does not look before.
  @inlinable @inline(__always)
  mutating func put(_ address: UInt64, _ length: UInt32, _ id: UInt16, _ flags: UInt16, isHead: Bool) {
    let flags = flags | (wrap ? Self.available : Self.used)
    // SAFETY: `position` is below `size`.
    let entry = unsafe descriptors + 16 &* Int(position)
    unsafe clx_store_relaxed_u64(entry, address)
    if isHead && hidden == 0 {
      (heldHead, heldFlags) = (position, flags)
      unsafe clx_store_relaxed_u32(entry + 8, length)
      unsafe clx_store_relaxed_u16(entry + 12, id)
    } else {
      unsafe clx_store_relaxed_u64(entry + 8, UInt64(length) | UInt64(id) << 32 | UInt64(flags) << 48)
    }
    hidden &+= 1
    position &+= 1
    if position == size { (position, wrap) = (0, !wrap) }
  }

  /// Writes the chain into the table of `id`; its guest address. Only WRITE counts in a table (virtio 1.3
  /// §2.8.7).
  @usableFromInline func fillTable(of id: UInt16, _ chain: Span<DescriptorSpec>) -> UInt64 {
    guard let memory = unsafe tableMemory else { return 0 }
    let offset = 16 &* tableCapacity &* Int(id)
    for index in 0..<chain.count {
      let spec = chain[index]
      // SAFETY: the caller checked the count against the capacity; there is a table for every id.
      let entry = unsafe memory + (offset &+ 16 &* index)
      unsafe clx_store_relaxed_u64(entry, spec.address)
      unsafe clx_store_relaxed_u64(
        entry + 8, UInt64(spec.length) | (spec.write ? UInt64(Self.write) << 48 : 0))
    }
    return tables &+ UInt64(offset)
  }

  @inlinable public mutating func publish() {
    guard hidden > 0 else { return }
    // SAFETY: the held head is below `size`. Pairs with the device's acquire load of the flags: everything
    // else of the batch is written before.
    unsafe clx_store_release_u16(descriptors + (16 &* Int(heldHead) &+ 14), heldFlags)
    undecided &+= hidden
    hidden = 0
  }

  @inlinable public mutating func needsKick() -> Bool {
    guard undecided > 0 else { return false }
    let new = position
    let old = new &- undecided
    undecided = 0
    // Pairs with the device's fence between asking for kicks and looking at the ring again.
    clx_fence_full()
    // SAFETY: offset and flags in one load.
    let event = unsafe clx_load_acquire_u32(deviceEvent)
    let wanted: Bool
    switch event >> 16 & 3 {
    case 1: wanted = false
    case 2:
      let offset = UInt16(truncatingIfNeeded: event)
      wanted = EventArithmetic.needs(offsetWrap: offset, new: new, old: old, wrap: wrap, size: size)
    default: wanted = true
    }
    if wanted { counted.kicks &+= 1 } else { counted.kicksSuppressed &+= 1 }
    return wanted
  }

  // MARK: Taking back

  /// Whether the descriptor at the used position carries the device's mark for this lap.
  @inlinable @inline(__always) static func isUsed(_ flags: UInt16, wrap: Bool) -> Bool {
    flags & (available | used) == (wrap ? available | used : 0)
  }

  @inlinable public mutating func poll() -> UsedChain? {
    // SAFETY: `usedPosition` is below `size`. Acquire: pairs with the device's release store of the flags.
    let entry = unsafe descriptors + 16 &* Int(usedPosition)
    let flags = unsafe clx_load_acquire_u16(entry + 14)
    guard !broken, Self.isUsed(flags, wrap: usedWrap) else { return nil }
    let length = unsafe clx_load_relaxed_u32(entry + 8)
    let id = unsafe clx_load_relaxed_u16(entry + 12)
    // SAFETY: checked against `size` before the array is read.
    guard id < size, unsafe slots[Int(id)] != 0 else {
      fail(.unknownToken(UInt32(id)))
      return nil
    }
    // SAFETY: as above.
    let count = unsafe slots[Int(id)]
    unsafe slots[Int(id)] = 0
    unsafe nextID[Int(id)] = freeID
    freeID = id
    free &+= Int(count)
    chains &-= 1
    usedPosition &+= count
    if usedPosition >= size {
      usedPosition &-= size
      usedWrap.toggle()
    }
    counted.used &+= 1
    return UsedChain(token: id, length: length, hasLength: flags & Self.write != 0)
  }

  @usableFromInline mutating func fail(_ fault: RingFault) {
    self.fault = fault
    broken = true
  }

  @inlinable public mutating func arm(after more: UInt16) -> Bool {
    if eventIndex {
      // `more` chains are as many descriptors as those in flight take on average, and never beyond the last
      // of them.
      let busy = Int(size) &- free
      let ahead = chains > 0 ? min(Int(more) &* (busy / chains), max(0, busy &- 1)) : 0
      var (offset, lap) = (Int(usedPosition) &+ ahead, usedWrap)
      if offset >= Int(size) { (offset, lap) = (offset &- Int(size), !lap) }
      // SAFETY: offset, wrap and flags (DESC) in one store.
      unsafe clx_store_release_u32(
        driverEvent, UInt32(truncatingIfNeeded: offset) | (lap ? 0x8000 : 0) | 2 << 16)
    } else {
      // SAFETY: flags ENABLE.
      unsafe clx_store_release_u32(driverEvent, 0)
    }
    // Pairs with the device's fence between showing used descriptors and reading what is asked for here.
    clx_fence_full()
    // SAFETY: `usedPosition` is below `size`.
    let flags = unsafe clx_load_acquire_u16(descriptors + (16 &* Int(usedPosition) &+ 14))
    return Self.isUsed(flags, wrap: usedWrap)
  }

  @inlinable public mutating func disarm() {
    // SAFETY: flags DISABLE.
    unsafe clx_store_release_u32(driverEvent, 1 << 16)
  }
}
