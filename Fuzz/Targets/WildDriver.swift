// A driver that plays any move, and a device beside it that checks what the ring hands out. One thread.

import CLinux
import Glibc
import VirtQueue

struct WildDriver {
  let memory: FuzzMemory
  let packed: Bool
  let size: UInt16
  /// Split: the available index. Packed: the next descriptor, and its wrap counter.
  private var next: UInt16 = 0
  private var wrap = true
  /// Chains that are out, by head.
  private var held: [UInt16] = []
  private var live = 0

  init(memory: FuzzMemory, packed: Bool, size: UInt16) {
    (self.memory, self.packed, self.size) = (memory, packed, size)
  }

  private var driverArea: Int { 16 * Int(size) }
  /// Behind the available ring, or the driver's event.
  private var deviceArea: Int { packed ? driverArea + 4 : (driverArea + 6 + 2 * Int(size) + 3) / 4 * 4 }

  func layout(base: UInt32) -> RingLayout {
    let user = memory.ringUser
    return RingLayout(
      size: size, descriptorArea: user, driverArea: user + UInt64(driverArea),
      deviceArea: user + UInt64(deviceArea), base: base, indirect: true, eventIndex: true)
  }

  // MARK: One life of a ring

  mutating func drive<R: VirtRing & ~Copyable>(_ ring: consuming R, _ feed: inout Feed, lives: Bool) throws {
    held = []
    live = 0
    while !feed.isEmpty {
      switch feed.below(lives ? 20 : 19) {
      case 0, 1, 2: setDescriptor(&feed)
      case 3: memory.setEntry(feed.below(64), FuzzMemory.address(&feed), secondWord(&feed))
      case 4, 5: makeAvailable(&feed)
      case 6 where !packed: clx_store_release_u16(memory.ring(driverArea + 2), feed.u16())
      case 7: clx_store_relaxed_u16(memory.ring(driverArea + feed.below(64) & ~1), feed.u16())
      case 8: clx_store_relaxed_u64(memory.ring(8 * feed.below(512)), feed.u64())
      case 9, 10, 11: try take(&ring, &feed)
      case 12: finish(&ring, &feed)
      case 13, 14: _ = ring.publish()
      case 15:
        _ = ring.park()
        ring.unpark()
      case 16: _ = ring.move(to: feed.flag() ? memory.smallerMap : memory.map)
      case 17: if let stray = ring.take(feed.u16()) { try giveBack(stray, &ring) }
      case 19: return  // killed
      default: try play(&ring, &feed)
      }
      guard ring.liveCount == live else { throw Defect("\(ring.liveCount) chains live, \(live) are out") }
    }
    while !held.isEmpty { finish(&ring, &feed) }
    _ = ring.publish()
    if ring.liveCount != 0 { throw Defect("\(ring.liveCount) chains are left") }
    _ = ring.base
  }

  /// What an honest driver and device do: one chain of two pieces, all the way.
  private mutating func play<R: VirtRing & ~Copyable>(_ ring: inout R, _ feed: inout Feed) throws {
    let at = packed ? Int(next) : feed.below(Int(size))
    let length = UInt64(feed.u8())
    store(at, FuzzMemory.data + UInt64(feed.u8()), length | (packed ? 0 : 2 << 32))
    makeAvailable(&feed, head: UInt16(at), flags: 2)
    try take(&ring, &feed)
    _ = ring.publish()
  }

  // MARK: The driver's moves

  private func store(_ index: Int, _ address: UInt64, _ word: UInt64) {
    let place = memory.ring(16 * (index % Int(size)))
    clx_store_relaxed_u64(place, address)
    clx_store_release_u64(place + 8, word)
  }

  /// {length, flags, next} of a split descriptor, {length, id, flags} of a packed one.
  private func secondWord(_ feed: inout Feed) -> UInt64 {
    let length = UInt64(FuzzMemory.length(&feed))
    let flags = UInt64(feed.pick([0, 1, 2, 3, 4, 5, 6, 7, 0x80, 0x8000, 0x8080, 0xfff8]))
    let number = UInt64(feed.u8() == 255 ? feed.u16() : UInt16(feed.below(Int(size) + 1)))
    return packed ? length | number << 32 | flags << 48 : length | flags << 32 | number << 48
  }

  private func setDescriptor(_ feed: inout Feed) {
    store(feed.below(Int(size)), FuzzMemory.address(&feed), secondWord(&feed))
  }

  private mutating func makeAvailable(_ feed: inout Feed, head: UInt16? = nil, flags: UInt16? = nil) {
    guard packed else {
      let head = head ?? UInt16(feed.below(Int(size) + 1))
      clx_store_relaxed_u16(memory.ring(driverArea + 4 + 2 * Int(next & (size - 1))), head)
      next &+= 1
      clx_store_release_u16(memory.ring(driverArea + 2), next)
      return
    }
    // The marks of this lap on the descriptor as it is, and perhaps on those behind it.
    for _ in 0...(flags == nil ? feed.below(3) : 0) {
      let place = memory.ring(16 * Int(next) + 14)
      let marks: UInt16 = wrap ? 0x80 : 0x8000
      let kept = flags ?? (clx_load_relaxed_u16(place) & 7)
      clx_store_release_u16(place, kept | marks)
      next += 1
      if next == size { (next, wrap) = (0, !wrap) }
      if kept & 1 == 0 { break }
    }
  }

  // MARK: The device's moves

  private mutating func take<R: VirtRing & ~Copyable>(_ ring: inout R, _ feed: inout Feed) throws {
    guard let chain = ring.next() else { return }
    live += 1
    if live > Int(size) { throw Defect("more chains are out than the queue has descriptors") }
    if held.contains(chain.head) { throw Defect("head \(chain.head) came twice") }
    try inspect(chain)
    switch feed.below(8) {
    case 0, 1: held.append(chain.hold())
    default: try giveBack(chain, &ring)
    }
  }

  private mutating func giveBack<R: VirtRing & ~Copyable>(_ chain: consuming Chain, _ ring: inout R) throws {
    let head = chain.head
    held.removeAll { $0 == head }
    let written = Self.room(chain)
    ring.complete(chain, written: written)
    live -= 1
  }

  private mutating func finish<R: VirtRing & ~Copyable>(_ ring: inout R, _ feed: inout Feed) {
    guard !held.isEmpty else { return }
    let head = held.remove(at: feed.below(held.count))
    guard let chain = ring.take(head) else { return }
    ring.complete(chain, written: 1)
    live -= 1
  }

  private func inspect(_ chain: borrowing Chain) throws {
    try inspect(chain.readable, writable: false, hasHole: chain.hasHole)
    try inspect(chain.writable, writable: true, hasHole: chain.hasHole)
  }

  private static func room(_ chain: borrowing Chain) -> UInt32 { chain.writable.byteCount }

  /// Segments lie in guest memory, add up, and can be copied from end to end.
  private func inspect(_ part: borrowing Segments, writable: Bool, hasHole: Bool) throws {
    var total = 0
    for i in 0..<part.count {
      let vector = part.vectors[i]
      total += vector.iov_len
      if vector.iov_len == 0 { throw Defect("an empty segment") }
      guard let base = vector.iov_base else {
        if !hasHole { throw Defect("a hole that is not told") }
        continue
      }
      if !memory.holds(base, vector.iov_len) { throw Defect("a segment that is not in guest memory") }
    }
    if total != Int(part.byteCount) { throw Defect("\(total) bytes, said to be \(part.byteCount)") }
    var bytes: (UInt64, UInt64, UInt64) = (0, 0, 0)
    withUnsafeMutableBytes(of: &bytes) { buffer in
      for offset in [0, 1, max(0, total - 24), total] {
        let copied = part.copyOut(to: buffer, from: offset)
        if writable { _ = part.copyIn(from: UnsafeRawBufferPointer(rebasing: buffer[..<copied]), at: offset) }
      }
    }
  }
}
