// The packed virtqueue, device side (virtio 1.3 §2.8). One queue thread owns it; the driver runs beside it on the other
// side of shared memory. Each word of that memory is read once, through an atomic.

import CLinux

@safe public struct PackedRing: ~Copyable, VirtRing, RingSignals {
  public let size: UInt16
  @usableFromInline let indirect: Bool
  @usableFromInline let eventIndex: Bool
  @usableFromInline let layout: RingLayout

  // SAFETY: the three areas lie in regions of `table.map`, at the lengths the layout asks for; `move` renews them
  // before the map goes.
  @usableFromInline var descriptors: UnsafeMutableRawPointer
  @usableFromInline var descriptorsEnd: UnsafeMutableRawPointer
  @usableFromInline var driverEvent: UnsafeMutableRawPointer
  @usableFromInline var deviceEvent: UnsafeMutableRawPointer

  @usableFromInline var table: SlotTable
  @usableFromInline var inflight: PackedInflight
  /// With an inflight log, completions wait here until they are published one by one.
  @usableFromInline let pending: PendingList
  /// Whether `inflight` still has requests that an earlier process left.
  @usableFromInline var hasUnfinished: Bool
  @usableFromInline var nextAvailable: PackedPosition
  @usableFromInline var nextUsed: PackedPosition
  /// Where the batch that is not published yet begins; its first word is kept back until it is.
  @usableFromInline var batchStart: PackedPosition
  @usableFromInline var firstWord: UInt64 = 0
  @usableFromInline var inBatch = false
  /// Where writes are noted while a migration runs.
  @usableFromInline var marks = WriteMarks()
  /// False until the first publication: the driver is then told in any case.
  @usableFromInline var hasPublished = false
  @usableFromInline var kicksSuppressed = false
  public private(set) var fault: QueueFault?

  /// Takes up a ring where the layout says, at the positions its base carries: available in the low half, used in the
  /// high one. A high half of 0 beside a fresh low one (some drivers) means both.
  ///
  /// With an inflight area the ring goes on from there, and the base is not asked (after a crash it is stale).
  public init(
    _ layout: RingLayout, map: GuestMemoryMap, inflight area: InflightArea? = nil
  ) throws(RingLayoutError) {
    guard layout.size > 0, layout.size <= RingLayout.largestSize else { throw .badSize(layout.size) }
    let low = UInt16(truncatingIfNeeded: layout.base)
    var high = UInt16(truncatingIfNeeded: layout.base >> 16)
    if high == 0, low == 0x8000 { high = low }
    let available = PackedPosition(low)
    let used = PackedPosition(high)
    guard available.index < layout.size, used.index < layout.size else { throw .badBase(layout.base) }
    let areas = unsafe try Self.areas(of: layout, in: map)
    guard let area else {
      unsafe self.init(
        layout, map: map, areas: areas, available: available, used: used, inflight: PackedInflight())
      return
    }
    do {
      let found = try PackedInflightRecovery(area, size: layout.size, start: used) { index in
        // SAFETY: the index is below the size.
        unsafe PackedWord(raw: clx_load_acquire_u64(areas.descriptors + 16 * Int(index) + 8))
      }
      let start = found.used ?? used
      var next = start
      next.advance(by: UInt16(found.descriptorCount), size: layout.size)
      let log = PackedInflight(found, size: layout.size)
      unsafe self.init(
        layout, map: map, areas: areas, available: found.used == nil ? available : next, used: start,
        inflight: log)
    } catch {
      throw .badInflight(error)
    }
  }

  private init(
    _ layout: RingLayout, map: GuestMemoryMap, areas: Areas, available: PackedPosition, used: PackedPosition,
    inflight: consuming PackedInflight
  ) {
    size = layout.size
    indirect = layout.indirect
    eventIndex = layout.eventIndex
    self.layout = layout
    unsafe (descriptors, descriptorsEnd) = unsafe (
      areas.descriptors, areas.descriptors + 16 * Int(layout.size)
    )
    unsafe driverEvent = areas.driver
    unsafe deviceEvent = areas.device
    table = SlotTable(size: layout.size, map: map)
    nextAvailable = available
    nextUsed = used
    batchStart = used
    if inflight.isOn { table.notes.insert(.logged) }
    hasUnfinished = inflight.unfinishedCount > 0
    pending = PendingList(capacity: inflight.isOn ? Int(layout.size) : 0)
    self.inflight = inflight
  }

  private typealias Areas = (
    descriptors: UnsafeMutableRawPointer, driver: UnsafeMutableRawPointer, device: UnsafeMutableRawPointer
  )

  private static func areas(of layout: RingLayout, in map: GuestMemoryMap) throws(RingLayoutError) -> Areas {
    let areas = layout.areas(packed: true)
    return unsafe (try map.place(areas[0]), try map.place(areas[1]), try map.place(areas[2]))
  }

  /// Whether a ring of this layout lies in a map.
  public static func fits(_ layout: RingLayout, in map: GuestMemoryMap) -> Bool {
    unsafe (try? areas(of: layout, in: map)) != nil
  }

  public var liveCount: Int { @inlinable get { table.liveCount } }
  @inlinable var broken: Bool { table.notes.contains(.broken) }
  @inlinable var logs: Bool { table.notes.contains(.logged) }
  public var base: UInt32 { UInt32(nextAvailable.bits) | UInt32(nextUsed.bits) << 16 }

  // MARK: Taking chains

  /// The second half of a descriptor. The acquire orders every later read of the chain after the driver's release of its flags
  /// (virtio 1.3 §2.8.13.2).
  @inlinable @inline(__always)
  func word(at place: UnsafeMutableRawPointer) -> PackedWord {
    // SAFETY: a descriptor of the ring.
    unsafe PackedWord(raw: clx_load_acquire_u64(place + 8))
  }

  @inlinable @inline(__always)
  public mutating func next() -> Chain? { table.notes.isEmpty ? nextQuickly() : nextNoted() }

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
    unsafe table.finish(slot)
    if !table.notes.isEmpty {
      if broken { return }
      if logs {
        pending.append(UInt64(id) | UInt64(count) << 16 | UInt64(written) << 32)
        inBatch = true
        return
      }
    }
    let word = PackedWord(used: id, length: written, at: nextUsed)
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

  public mutating func untake(_ chain: consuming Chain) {
    let slot = unsafe chain.slot
    let id = chain.release()
    let count = unsafe slot.pointee.descriptorCount
    unsafe table.close(slot)
    if broken { return }
    nextAvailable.retreat(by: count, size: size)
    if logs { inflight.untake(id: id) }
  }

  @inlinable @inline(__always)
  public mutating func publish() -> Notify {
    if table.hasDropped { fail(.chainDropped(table.settleDropped())) }
    if !inBatch || broken { return .none }
    return showAndAsk() ? .call : .none
  }

  @inlinable @inline(__always)
  package mutating func show() {
    inBatch = false
    if logs { publishPending() } else { publishBatch() }
    if marks.buffers || marks.ring { markPublished(since: batchStart) }
  }

  @inlinable @inline(__always)
  package mutating func fence() { clx_fence_full() }

  @inlinable @inline(__always)
  package mutating func wantsCall(since before: Void) -> Bool {
    let first = !hasPublished
    hasPublished = true
    // {le16 offset and wrap, le16 flags}, read together.
    let word = unsafe clx_load_acquire_u32(driverEvent)
    let wants = EventIndex.wantsCall(
      word: word, eventIndex: eventIndex, new: nextUsed.index, old: batchStart.index, wrap: nextUsed.wrap,
      size: size)
    return wants || first && word >> 16 & 3 == 2
  }

  /// Shows the whole batch by its first descriptor. Id and length travel with the flags in one word, which is ordered
  /// after the rest of the batch (virtio 1.3 §2.8.13).
  @inlinable @inline(__always)
  mutating func publishBatch() {
    unsafe clx_store_release_u64(descriptors + 16 * Int(batchStart.index) + 8, firstWord)
  }

  /// With a log, one completion after another: each is certain before the next begins.
  @usableFromInline @inline(never)
  mutating func publishPending() {
    batchStart = nextUsed
    for i in 0..<pending.count {
      let id = UInt16(truncatingIfNeeded: pending[i])
      let word = PackedWord(
        used: id, length: UInt32(truncatingIfNeeded: pending[i] >> 32), at: nextUsed)
      let place = unsafe descriptors + 16 * Int(nextUsed.index) + 8
      nextUsed.advance(by: UInt16(truncatingIfNeeded: pending[i] >> 16), size: size)
      inflight.prepare(id: id, next: nextUsed)
      // SAFETY: the index was below `size`. Orders the buffer before the mark.
      unsafe clx_store_release_u64(place, word.raw)
      inflight.commit(id: id, next: nextUsed)
    }
    pending.removeAll()
  }

  // MARK: Kicks

  @inlinable
  public mutating func park() -> Bool {
    guard !broken else { return false }
    return askAndLook()
  }

  @inlinable @inline(__always)
  package mutating func askForKick() {
    kicksSuppressed = false
    // ENABLE, or DESC at the next position: {offset and wrap, flags} in one store.
    let event = eventIndex ? UInt32(nextAvailable.bits) | 2 << 16 : 0
    unsafe clx_store_release_u32(deviceEvent, event)
    if marks.ring { markNotification() }
  }

  @inlinable @inline(__always)
  package mutating func lookAgain() -> Bool {
    if hasUnfinished { return table.hasRoom }
    return unsafe available() != nil && table.hasRoom
  }

  @inlinable
  public mutating func unpark() {
    guard !kicksSuppressed, !broken else { return }
    kicksSuppressed = true
    unsafe clx_store_release_u32(deviceEvent, 1 << 16)
    if marks.ring { markNotification() }
  }

  // MARK: Rare events

  public mutating func move(to map: GuestMemoryMap) -> Bool {
    guard let areas = unsafe try? Self.areas(of: layout, in: map) else {
      fail(.ringUnmapped)
      return false
    }
    unsafe (descriptors, descriptorsEnd) = unsafe (
      areas.descriptors, areas.descriptors + 16 * Int(layout.size)
    )
    unsafe driverEvent = areas.driver
    unsafe deviceEvent = areas.device
    table.adopt(map)
    return true
  }

  @inline(never)
  public mutating func fail(_ fault: QueueFault) {
    guard !broken else { return }
    table.notes.insert(.broken)
    self.fault = fault
  }
}
