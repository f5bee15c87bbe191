// The packed virtqueue, device side (virtio 1.3 §2.8). One queue thread owns it; the driver runs beside it on the other
// side of shared memory. Each word of that memory is read once, through an atomic.

import CLinux

/// A place in the ring and the wrap counter it is read under.
@usableFromInline struct PackedPosition {
  @usableFromInline var index: UInt16
  @usableFromInline var wrap: Bool

  @inlinable init(index: UInt16, wrap: Bool) {
    self.index = index
    self.wrap = wrap
  }

  /// From, and to, the 16 bits that SET_VRING_BASE and the event areas use: 15 of index, one of wrap.
  @inlinable init(_ bits: UInt16) { self.init(index: bits & 0x7fff, wrap: bits >> 15 == 1) }
  @inlinable var bits: UInt16 { index | (wrap ? 0x8000 : 0) }

  /// `count` is at most `size`, so one wrap is enough.
  @inlinable @inline(__always)
  mutating func advance(by count: UInt16, size: UInt16) {
    let sum = UInt32(index) &+ UInt32(count)
    if sum >= UInt32(size) {
      index = UInt16(truncatingIfNeeded: sum &- UInt32(size))
      wrap.toggle()
    } else {
      index = UInt16(truncatingIfNeeded: sum)
    }
  }
}

/// The second half of a packed descriptor, {le32 length, le16 id, le16 flags}, as one word.
@usableFromInline struct PackedWord {
  @usableFromInline static var available: UInt16 { 1 << 7 }
  @usableFromInline static var used: UInt16 { 1 << 15 }

  @usableFromInline let raw: UInt64
  @inlinable init(raw: UInt64) { self.raw = raw }
  @inlinable var length: UInt32 { UInt32(truncatingIfNeeded: raw) }
  @inlinable var id: UInt16 { UInt16(truncatingIfNeeded: raw >> 32) }
  @inlinable var flags: UInt16 { UInt16(truncatingIfNeeded: raw >> 48) }

  /// Available and not used, under this wrap counter (virtio 1.3 §2.8.1).
  @inlinable func isAvailable(_ wrap: Bool) -> Bool {
    (flags & Self.available != 0) == wrap && (flags & Self.used != 0) != wrap
  }

  /// What the device writes: WRITE says that `length` bytes were written; both marks equal the wrap counter.
  @inlinable init(used id: UInt16, length: UInt32, wrap: Bool) {
    let marks: UInt16 = wrap ? Self.available | Self.used : 0
    let flags = marks | (length > 0 ? DescriptorFlag.write : 0)
    raw = UInt64(length) | UInt64(id) << 32 | UInt64(flags) << 48
  }
}

@safe public struct PackedRing: ~Copyable, VirtRing {
  public let size: UInt16
  @usableFromInline let indirect: Bool
  @usableFromInline let eventIndex: Bool
  @usableFromInline let layout: RingLayout

  // SAFETY: the three areas lie in regions of `table.map`, at the lengths the layout asks for; `move` renews them
  // before the map goes.
  @usableFromInline var descriptors: UnsafeMutableRawPointer
  @usableFromInline var driverEvent: UnsafeMutableRawPointer
  @usableFromInline var deviceEvent: UnsafeMutableRawPointer

  @usableFromInline var table: SlotTable
  @usableFromInline var nextAvailable: PackedPosition
  @usableFromInline var nextUsed: PackedPosition
  /// Where the batch that is not published yet begins; its first word is kept back until it is.
  @usableFromInline var batchStart: PackedPosition
  @usableFromInline var firstWord: UInt64 = 0
  @usableFromInline var inBatch = false
  /// False until the first publication: the driver is then told in any case.
  @usableFromInline var hasPublished = false
  @usableFromInline var kicksSuppressed = false
  public private(set) var fault: QueueFault?
  /// `fault != nil`, as the hot path asks it.
  @usableFromInline var broken = false

  /// Takes up a ring where the layout says, at the positions its base carries: available in the low half, used in the
  /// high one. A high half of 0 beside a fresh low one (some drivers) means both.
  public init(_ layout: RingLayout, map: GuestMemoryMap) throws(RingLayoutError) {
    guard layout.size > 0, layout.size <= RingLayout.largestSize else { throw .badSize(layout.size) }
    let low = UInt16(truncatingIfNeeded: layout.base)
    var high = UInt16(truncatingIfNeeded: layout.base >> 16)
    if high == 0, low == 0x8000 { high = low }
    let available = PackedPosition(low)
    let used = PackedPosition(high)
    guard available.index < layout.size, used.index < layout.size else { throw .badBase(layout.base) }
    let areas = unsafe try Self.areas(of: layout, in: map)
    unsafe self.init(layout, map: map, areas: areas, available: available, used: used)
  }

  private init(
    _ layout: RingLayout, map: GuestMemoryMap, areas: Areas, available: PackedPosition, used: PackedPosition
  ) {
    size = layout.size
    indirect = layout.indirect
    eventIndex = layout.eventIndex
    self.layout = layout
    unsafe descriptors = areas.descriptors
    unsafe driverEvent = areas.driver
    unsafe deviceEvent = areas.device
    table = SlotTable(size: layout.size, map: map)
    nextAvailable = available
    nextUsed = used
    batchStart = used
  }

  private typealias Areas = (
    descriptors: UnsafeMutableRawPointer, driver: UnsafeMutableRawPointer, device: UnsafeMutableRawPointer
  )

  private static func areas(of layout: RingLayout, in map: GuestMemoryMap) throws(RingLayoutError) -> Areas {
    guard
      let ring = unsafe map.ringArea(at: layout.descriptorArea, length: 16 * UInt64(layout.size), alignment: 16)
    else { throw .badArea(name: "descriptor", address: layout.descriptorArea) }
    guard let driver = unsafe map.ringArea(at: layout.driverArea, length: 4, alignment: 4) else {
      throw .badArea(name: "driver event", address: layout.driverArea)
    }
    guard let device = unsafe map.ringArea(at: layout.deviceArea, length: 4, alignment: 4) else {
      throw .badArea(name: "device event", address: layout.deviceArea)
    }
    return unsafe (ring, driver, device)
  }

  /// Whether a ring of this layout lies in a map.
  public static func fits(_ layout: RingLayout, in map: GuestMemoryMap) -> Bool {
    unsafe (try? areas(of: layout, in: map)) != nil
  }

  public var liveCount: Int { @inlinable get { table.liveCount } }
  public var base: UInt32 { UInt32(nextAvailable.bits) | UInt32(nextUsed.bits) << 16 }

  // MARK: Taking chains

  /// The second half of the descriptor at `index`. The acquire orders every later read of the chain after the driver's
  /// release of its flags (virtio 1.3 §2.8.13.2).
  @inlinable @inline(__always)
  func word(at index: UInt16) -> PackedWord {
    // SAFETY: index < size.
    unsafe PackedWord(raw: clx_load_acquire_u64(descriptors + 16 * Int(index) + 8))
  }

  @inlinable @inline(__always)
  public mutating func next() -> Chain? {
    guard !broken, table.hasRoom else { return nil }
    let first = word(at: nextAvailable.index)
    guard first.isAvailable(nextAvailable.wrap) else { return nil }
    let scratch = unsafe table.scratch
    unsafe table.open(scratch)
    var position = nextAvailable
    var last = first
    if let fault = unsafe walk(first, from: &position, last: &last, into: scratch) {
      unsafe table.close(scratch)
      fail(fault)
      return nil
    }
    // The last descriptor carries the buffer id (virtio 1.3 §2.8.6): the driver's name for the chain, our slot.
    guard last.id < size else {
      unsafe table.close(scratch)
      fail(.headOutOfRange(last.id, size: size))
      return nil
    }
    let slot = unsafe table.slots + Int(last.id)
    guard unsafe slot.pointee.state == .free else {
      unsafe table.close(scratch)
      unsafe fail(slot.pointee.state == .dropped ? .chainDropped(last.id) : .headInFlight(last.id))
      return nil
    }
    unsafe table.settle(into: slot)
    let taken = Int32(position.index) &- Int32(nextAvailable.index)
    unsafe table.give(
      slot, descriptors: UInt16(truncatingIfNeeded: taken > 0 ? taken : taken &+ Int32(size)))
    nextAvailable = position
    return unsafe Chain(head: last.id, slot: slot)
  }

  /// Walks the list that starts with `first`; leaves `position` after its last descriptor.
  @inlinable @inline(__always)
  mutating func walk(
    _ first: PackedWord, from position: inout PackedPosition, last: inout PackedWord,
    into slot: UnsafeMutablePointer<Slot>
  ) -> QueueFault? {
    var sawWritable = false
    var word = first
    var seen: UInt16 = 0
    while true {
      // SAFETY: position.index < size.
      let address = unsafe clx_load_relaxed_u64(descriptors + 16 * Int(position.index))
      seen &+= 1
      position.advance(by: 1, size: size)
      last = word
      if word.flags & DescriptorFlag.indirect != 0 {
        guard indirect else { return .indirectNotNegotiated }
        // A list is all direct or one indirect descriptor (virtio 1.3 §2.8.7).
        guard seen == 1, word.flags & DescriptorFlag.next == 0 else { return .indirectWithNext }
        return unsafe table.appendIndirect(
          table: address, byteCount: word.length, alreadySeen: 0, sequential: true, to: slot,
          sawWritable: &sawWritable)
      }
      if let fault = unsafe table.append(
        address, word.length, writable: word.flags & DescriptorFlag.write != 0, to: slot,
        sawWritable: &sawWritable)
      {
        return fault
      }
      if word.flags & DescriptorFlag.next == 0 { return nil }
      if seen >= size { return .chainTooLong(limit: UInt32(size)) }
      word = self.word(at: position.index)
    }
  }

  @inlinable @inline(__always)
  public mutating func take(_ head: UInt16) -> Chain? {
    // SAFETY: head < size.
    guard head < size, unsafe table.slots[Int(head)].state == .held else { return nil }
    let slot = unsafe table.slots + Int(head)
    unsafe slot.pointee.state = .live
    return unsafe Chain(head: head, slot: slot)
  }

  // MARK: Giving them back

  @inlinable @inline(__always)
  public mutating func complete(_ chain: consuming Chain, written: UInt32) {
    let slot = unsafe chain.slot
    let id = chain.release()
    let count = unsafe slot.pointee.descriptorCount
    unsafe table.close(slot)
    if broken { return }
    let word = PackedWord(used: id, length: written, wrap: nextUsed.wrap)
    if inBatch {
      // Not seen by the driver before the batch's first: it reads them in order.
      // SAFETY: nextUsed.index < size. Orders the buffer before the mark.
      unsafe clx_store_release_u64(descriptors + 16 * Int(nextUsed.index) + 8, word.raw)
    } else {
      inBatch = true
      batchStart = nextUsed
      firstWord = word.raw
    }
    nextUsed.advance(by: count, size: size)
  }

  @inlinable @inline(__always)
  public mutating func publish() -> Notify {
    if table.hasDropped { fail(.chainDropped(table.settleDropped())) }
    if !inBatch || broken { return .none }
    inBatch = false
    // Id and length travel with the flags in one word; orders all of the batch before it (virtio 1.3 §2.8.13).
    unsafe clx_store_release_u64(descriptors + 16 * Int(batchStart.index) + 8, firstWord)
    // Between showing the batch and reading what the driver asked for: without it both sides may miss each other.
    clx_fence_full()
    let first = !hasPublished
    hasPublished = true
    // {le16 offset and wrap, le16 flags}, read together.
    let event = unsafe clx_load_acquire_u32(driverEvent)
    switch event >> 16 & 3 {
    case 1: return .none
    case 2 where eventIndex:
      let passed = EventIndex.passed(
        event: UInt16(truncatingIfNeeded: event), new: nextUsed.index, old: batchStart.index,
        wrap: nextUsed.wrap, size: size)
      return first || passed ? .call : .none
    // A reserved value counts as enabled.
    default: return .call
    }
  }

  // MARK: Kicks

  @inlinable
  public mutating func park() -> Bool {
    guard !broken else { return false }
    kicksSuppressed = false
    // ENABLE, or DESC at the next position: {offset and wrap, flags} in one store.
    let event = eventIndex ? UInt32(nextAvailable.bits) | 2 << 16 : 0
    unsafe clx_store_release_u32(deviceEvent, event)
    // Pairs with the driver's fence between its descriptor flags and its read of what we just wrote.
    clx_fence_full()
    return word(at: nextAvailable.index).isAvailable(nextAvailable.wrap) && table.hasRoom
  }

  @inlinable
  public mutating func unpark() {
    guard !kicksSuppressed, !broken else { return }
    kicksSuppressed = true
    unsafe clx_store_release_u32(deviceEvent, 1 << 16)
  }

  // MARK: Rare events

  public mutating func move(to map: GuestMemoryMap) -> Bool {
    guard let areas = unsafe try? Self.areas(of: layout, in: map) else {
      fail(.ringUnmapped)
      return false
    }
    unsafe descriptors = areas.descriptors
    unsafe driverEvent = areas.driver
    unsafe deviceEvent = areas.device
    table.adopt(map)
    return true
  }

  @inline(never)
  public mutating func fail(_ fault: QueueFault) {
    guard !broken else { return }
    broken = true
    self.fault = fault
  }
}
