// The split virtqueue, device side (virtio 1.3 §2.7). One queue thread owns it; the driver runs beside it on the other
// side of shared memory. Each word of that memory is read once, through an atomic.

import CLinux

@safe public struct SplitRing: ~Copyable, VirtRing, RingSignals {
  public let size: UInt16
  @usableFromInline let mask: UInt16
  @usableFromInline let indirect: Bool
  @usableFromInline let eventIndex: Bool
  @usableFromInline let layout: RingLayout

  // SAFETY: the three areas lie in regions of `table.map`, at the lengths the layout asks for; `move` renews them
  // before the map goes.
  @usableFromInline var descriptors: UnsafeMutableRawPointer
  @usableFromInline var available: UnsafeMutableRawPointer
  @usableFromInline var used: UnsafeMutableRawPointer

  @usableFromInline var table: SlotTable
  @usableFromInline var inflight: SplitInflight
  /// Whether `inflight` still has requests that an earlier process left.
  @usableFromInline var hasUnfinished: Bool
  /// The next available entry to take, and how far the driver was seen to have come.
  @usableFromInline var nextAvailable: UInt16
  @usableFromInline var seenAvailable: UInt16
  /// The next used entry to write, and what the driver has been shown.
  @usableFromInline var nextUsed: UInt16
  @usableFromInline var publishedUsed: UInt16
  /// Where writes are noted while a migration runs.
  @usableFromInline var marks = WriteMarks()
  /// False until the first publication: the driver is then told in any case.
  @usableFromInline var hasPublished = false
  @usableFromInline var kicksSuppressed = false
  public private(set) var fault: QueueFault?

  /// Takes up a ring where the layout says; the used index is read from the ring itself. With an inflight area the ring
  /// goes on from there: what is unfinished in it comes out of `next` first, and the base is not asked.
  public init(
    _ layout: RingLayout, map: GuestMemoryMap, inflight area: InflightArea? = nil
  ) throws(RingLayoutError) {
    guard layout.size > 0, layout.size <= RingLayout.largestSize, layout.size & (layout.size - 1) == 0 else {
      throw .badSize(layout.size)
    }
    let areas = unsafe try Self.areas(of: layout, in: map)
    // SAFETY: `used` spans at least 4 bytes.
    let used = unsafe clx_load_acquire_u16(areas.used + 2)
    guard let area else {
      unsafe self.init(layout, map: map, areas: areas, used: used, inflight: SplitInflight())
      return
    }
    do {
      let inflight = try SplitInflight(area, size: layout.size, used: used)
      unsafe self.init(layout, map: map, areas: areas, used: used, inflight: inflight)
    } catch {
      throw .badInflight(error)
    }
  }

  private init(
    _ layout: RingLayout, map: GuestMemoryMap, areas: Areas, used: UInt16, inflight: consuming SplitInflight
  ) {
    size = layout.size
    mask = layout.size &- 1
    indirect = layout.indirect
    eventIndex = layout.eventIndex
    self.layout = layout
    unsafe descriptors = areas.descriptors
    unsafe available = areas.available
    unsafe self.used = areas.used
    table = SlotTable(size: layout.size, map: map)
    if inflight.isOn { table.notes.insert(.logged) }
    hasUnfinished = inflight.unfinishedCount > 0
    // After a crash SET_VRING_BASE is stale: what was taken is what is used and what is unfinished.
    nextAvailable =
      inflight.isOn
      ? used &+ UInt16(truncatingIfNeeded: inflight.unfinishedCount) : UInt16(truncatingIfNeeded: layout.base)
    seenAvailable = nextAvailable
    nextUsed = used
    publishedUsed = used
    self.inflight = inflight
  }

  private typealias Areas = (
    descriptors: UnsafeMutableRawPointer, available: UnsafeMutableRawPointer, used: UnsafeMutableRawPointer
  )

  private static func areas(of layout: RingLayout, in map: GuestMemoryMap) throws(RingLayoutError) -> Areas {
    let areas = layout.areas(packed: false)
    return unsafe (try map.place(areas[0]), try map.place(areas[1]), try map.place(areas[2]))
  }

  /// Whether a ring of this layout lies in a map.
  public static func fits(_ layout: RingLayout, in map: GuestMemoryMap) -> Bool {
    unsafe (try? areas(of: layout, in: map)) != nil
  }

  public var liveCount: Int { @inlinable get { table.liveCount } }
  public var base: UInt32 { UInt32(nextAvailable) }
  @inlinable var broken: Bool { table.notes.contains(.broken) }
  @inlinable var logs: Bool { table.notes.contains(.logged) }

  // MARK: Taking chains

  @inlinable @inline(__always)
  public mutating func next() -> Chain? {
    table.notes.isEmpty ? nextFromRing(isUsual: true) : nextNoted()
  }

  /// The same where something is unusual. With an inflight log: what it is left with first, then the ring.
  @usableFromInline @inline(never)
  mutating func nextNoted() -> Chain? {
    guard !broken, table.hasRoom else { return nil }
    return hasUnfinished ? nextUnfinished() : nextFromRing(isUsual: false)
  }

  @inlinable @inline(__always)
  mutating func nextFromRing(isUsual: Bool) -> Chain? {
    if nextAvailable == seenAvailable, !look() { return nil }
    // SAFETY: the masked index is below `size`, and the area holds that many entries. The acquire in `look` orders this
    // and every later read of the chain after the driver's publication.
    let head = unsafe clx_load_relaxed_u16(available + 4 + 2 * Int(nextAvailable & mask))
    guard head < size else {
      fail(.headOutOfRange(head, size: size))
      return nil
    }
    let slot = unsafe table.slots + Int(head)
    guard unsafe slot.pointee.state == .free else {
      unsafe refuse(slot, head)
      return nil
    }
    if let fault = unsafe isUsual ? walk(from: head, into: slot) : walkAny(from: head, into: slot) {
      unsafe table.close(slot)
      stop(at: fault)
      return nil
    }
    nextAvailable &+= 1
    if !isUsual, logs { inflight.take(head) }
    return unsafe Chain(head: head, slot: slot)
  }

  /// A chain that an earlier process took and did not complete: read again from the ring, where it still is.
  @usableFromInline @inline(never)
  mutating func nextUnfinished() -> Chain? {
    guard !broken, table.hasRoom else { return nil }
    guard let head = inflight.nextUnfinished(), head < size else {
      hasUnfinished = false
      return next()
    }
    hasUnfinished = inflight.unfinishedCount > 0
    let slot = unsafe table.slots + Int(head)
    if let fault = unsafe walkAny(from: head, into: slot) {
      unsafe table.close(slot)
      inflight.putBack(head)
      hasUnfinished = true
      stop(at: fault)
      return nil
    }
    return unsafe Chain(head: head, slot: slot)
  }

  /// Reads the driver's index; false where nothing is new or the index cannot be.
  @inlinable @inline(__always)
  mutating func look() -> Bool {
    guard !broken else { return false }
    // Pairs with the driver's release of the available index (virtio 1.3 §2.7.13.3).
    let index = unsafe clx_load_acquire_u16(available + 2)
    let ahead = index &- nextAvailable
    if ahead == 0 { return false }
    if ahead > size {
      fail(.availableIndexJumped(from: nextAvailable, to: index, size: size))
      return false
    }
    seenAvailable = index
    return true
  }

  @usableFromInline @inline(never)
  mutating func refuse(_ slot: UnsafeMutablePointer<Slot>, _ head: UInt16) {
    unsafe fail(slot.pointee.state == .dropped ? .chainDropped(head) : .headInFlight(head))
  }

  // MARK: Giving them back

  @inlinable @inline(__always)
  public mutating func complete(_ chain: consuming Chain, written: UInt32) {
    let slot = unsafe chain.slot
    let head = chain.release()
    unsafe table.finish(slot)
    if !table.notes.isEmpty, broken { return }
    // SAFETY: the masked index is below `size`. One 8-byte store: {le32 id, le32 len}.
    unsafe clx_store_relaxed_u64(
      used + 4 + 8 * Int(nextUsed & mask), UInt64(head) | UInt64(written) << 32)
    nextUsed &+= 1
    if !table.notes.isEmpty, logs { inflight.batch(head) }
  }

  @inlinable @inline(__always)
  public mutating func take(_ head: UInt16) -> Chain? {
    // SAFETY: head < size.
    guard head < size, unsafe table.slots[Int(head)].state == .held else { return nil }
    let slot = unsafe table.slots + Int(head)
    unsafe slot.pointee.state = .live
    return unsafe Chain(head: head, slot: slot)
  }

  public mutating func untake(_ chain: consuming Chain) {
    let slot = unsafe chain.slot
    let head = chain.release()
    unsafe table.close(slot)
    if broken { return }
    nextAvailable &-= 1
    if logs { inflight.untake(head) }
  }

  @inlinable @inline(__always)
  public mutating func publish() -> Notify {
    if table.hasDropped { fail(.chainDropped(table.settleDropped())) }
    if nextUsed == publishedUsed || broken { return .none }
    return showAndAsk() ? .call : .none
  }

  @inlinable @inline(__always)
  package mutating func show() -> UInt16 {
    let old = publishedUsed
    publishedUsed = nextUsed
    // Orders buffers and used entries before the index; pairs with the driver's acquire (virtio 1.3 §2.7.13).
    unsafe clx_store_release_u16(used + 2, nextUsed)
    if logs { inflight.commit(used: nextUsed) }
    if marks.buffers || marks.ring { markPublished(since: old) }
    return old
  }

  @inlinable @inline(__always)
  package mutating func fence() { clx_fence_full() }

  @inlinable @inline(__always)
  package mutating func wantsCall(since old: UInt16) -> Bool {
    let first = !hasPublished
    hasPublished = true
    if eventIndex {
      // SAFETY: with EVENT_IDX the available area includes the field after its ring.
      let event = unsafe clx_load_relaxed_u16(available + 4 + 2 * Int(size))
      return first || EventIndex.passed(event: event, new: nextUsed, old: old)
    }
    return unsafe EventIndex.wantsCall(flags: clx_load_relaxed_u16(available))
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
    if eventIndex {
      // SAFETY: with EVENT_IDX the used area includes the field after its ring.
      unsafe clx_store_relaxed_u16(used + 4 + 8 * Int(size), nextAvailable)
    } else {
      unsafe clx_store_relaxed_u16(used, 0)
    }
    if marks.ring { markNotification() }
  }

  @inlinable @inline(__always)
  package mutating func lookAgain() -> Bool {
    if !hasUnfinished, nextAvailable == seenAvailable, !look() {
      // A fault that is found here wants a turn too, in which it is told.
      return broken
    }
    return table.hasRoom
  }

  @inlinable
  public mutating func unpark() {
    guard !kicksSuppressed, !broken else { return }
    kicksSuppressed = true
    // With EVENT_IDX the flag stays 0 and the event index, left behind, does not match (virtio 1.3 §2.7.10).
    if !eventIndex {
      unsafe clx_store_relaxed_u16(used, 1)
      if marks.ring { markNotification() }
    }
  }

  // MARK: Rare events

  public mutating func move(to map: GuestMemoryMap) -> Bool {
    guard let areas = unsafe try? Self.areas(of: layout, in: map) else {
      fail(.ringUnmapped)
      return false
    }
    unsafe descriptors = areas.descriptors
    unsafe available = areas.available
    unsafe used = areas.used
    table.adopt(map)
    return true
  }

  // MARK: The dirty log

  public mutating func setLog(_ log: QueueLog?) { marks.set(log) }

  @inlinable public var marksBuffers: Bool { marks.buffers }

  @inline(never)
  public mutating func mark(_ chain: borrowing Chain, bytes: UInt32) {
    unsafe marks.mark(chain.slot, bytes: bytes, in: table.map(of: chain.slot))
  }

  @inline(never)
  public mutating func mark(_ chain: borrowing Chain, byte: UnsafeMutableRawPointer) {
    unsafe marks.mark(byte, 1, in: table.map(of: chain.slot))
  }

  /// The used entries since `old`, and the index, were written.
  @usableFromInline @inline(never)
  mutating func markPublished(since old: UInt16) {
    if marks.ring {
      let map = table.map
      unsafe marks.markUsed(offset: 2, 2, host: used, in: map)
      let first = Int(old & mask)
      let count = Int(nextUsed &- old)
      let straight = min(count, Int(size) - first)
      unsafe marks.markUsed(offset: 4 + 8 * first, 8 * UInt64(straight), host: used, in: map)
      unsafe marks.markUsed(offset: 4, 8 * UInt64(count - straight), host: used, in: map)
    }
    marks.announce()
  }

  /// What asks for kicks, or does without them, was written.
  @usableFromInline @inline(never)
  mutating func markNotification() {
    unsafe marks.markUsed(offset: eventIndex ? 4 + 8 * Int(size) : 0, 2, host: used, in: table.map)
    marks.announce()
  }

  @inline(never)
  public mutating func fail(_ fault: QueueFault) {
    guard !broken else { return }
    table.notes.insert(.broken)
    self.fault = fault
  }
}
