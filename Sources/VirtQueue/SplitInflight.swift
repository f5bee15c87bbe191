// The inflight log of a split ring: {u64 features, u16 version, u16 count, u16 last batch head, u16 used index}, then an
// entry a head, {u8 in flight, 5 unused, u16 next, u64 counter} (vhost-user, "Inflight I/O tracking"). On the queue's
// thread.
//
// A process may be killed between any two stores. Their order is all that matters, and only to a later process: fences
// for the compiler are enough.

import CLinux

@safe @usableFromInline struct SplitInflight: ~Copyable {
  // SAFETY: an area of at least 16 + 16 * count bytes, `count` at least the ring's size; heads are checked against that
  // by the ring. Nil where nothing is logged.
  private let base: UnsafeMutableRawPointer?
  private let area: InflightArea?
  private let batch: PendingList
  private var counter: UInt64 = 0
  /// Heads to be given out again before anything new, the oldest last.
  private var unfinished: [UInt16] = []

  @usableFromInline var isOn: Bool { unsafe base != nil }
  @usableFromInline var unfinishedCount: Int { unfinished.count }

  /// Nothing is logged.
  init() {
    unsafe base = nil
    area = nil
    batch = PendingList(capacity: 0)
  }

  /// Takes up an area, and what is unfinished in it; `used` is the ring's own used index.
  init(_ area: InflightArea, size: UInt16, used: UInt16) throws(InflightError) {
    let unfinished = try Self.recover(area, size: size, used: used)
    self.init(area, size: size, unfinished: unfinished)
  }

  private init(_ area: InflightArea, size: UInt16, unfinished: [(head: UInt16, counter: UInt64)]) {
    unsafe base = unsafe area.base
    self.area = area
    batch = PendingList(capacity: Int(size))
    counter = (unfinished.last?.counter ?? 0) &+ 1
    self.unfinished = unfinished.reversed().map(\.head)
  }

  private static func entry(_ base: UnsafeMutableRawPointer, _ head: UInt16) -> UnsafeMutableRawPointer {
    unsafe base + 16 + 16 * Int(head)
  }

  // MARK: Before the ring starts

  /// Brings the log to where the ring is, and returns the unfinished heads in the order of their submission.
  private static func recover(
    _ area: InflightArea, size: UInt16, used: UInt16
  ) throws(InflightError) -> [(head: UInt16, counter: UInt64)] {
    let count = area.descriptorCount
    let needed = 16 + 16 * Int(count)
    guard count >= size, area.byteCount >= needed else {
      throw .tooSmall(bytes: area.byteCount, needed: needed)
    }
    // SAFETY: every access is below `needed`: heads are checked against `count`.
    let base = unsafe area.base
    switch unsafe clx_load_relaxed_u16(base + 8) {
    case 0:
      unsafe clx_store_relaxed_u16(base + 10, count)
      unsafe clx_store_relaxed_u16(base + 14, used)
      clx_fence_compiler()
      unsafe clx_store_relaxed_u16(base + 8, 1)
      return []
    case 1: break
    case let version: throw .version(version)
    }
    let stored = unsafe clx_load_relaxed_u16(base + 10)
    guard stored == count else { throw .descriptorCount(stored, expected: count) }
    // A batch whose used index became public, but whose marks were not all cleared.
    let missed = unsafe used &- clx_load_relaxed_u16(base + 14)
    guard missed <= count else { throw .corrupt("a batch of \(missed)") }
    var head = unsafe clx_load_relaxed_u16(base + 12)
    for _ in 0..<missed {
      guard head < count else { throw .corrupt("head \(head) in the batch") }
      unsafe clx_store_relaxed_u8(entry(base, head), 0)
      head = unsafe clx_load_relaxed_u16(entry(base, head) + 6)
    }
    clx_fence_compiler()
    unsafe clx_store_relaxed_u16(base + 14, used)
    var unfinished: [(head: UInt16, counter: UInt64)] = []
    for head in 0..<count where unsafe clx_load_relaxed_u8(entry(base, head)) != 0 {
      guard head < size else { throw .corrupt("head \(head) in flight in a ring of \(size)") }
      unfinished.append((head, unsafe clx_load_relaxed_u64(entry(base, head) + 8)))
    }
    return unfinished.sorted { $0.counter < $1.counter }
  }

  // MARK: While it runs

  /// A head that an earlier process left; nil when there is none.
  @usableFromInline mutating func nextUnfinished() -> UInt16? { unfinished.popLast() }

  /// It cannot be taken up yet, and is the next one again.
  mutating func putBack(_ head: UInt16) { unfinished.append(head) }

  /// Notes that a head was taken, before anything is done about it.
  @usableFromInline mutating func take(_ head: UInt16) {
    guard let base = unsafe base else { return }
    // SAFETY: head < size <= count.
    unsafe clx_store_relaxed_u64(Self.entry(base, head) + 8, counter)
    counter &+= 1
    clx_fence_compiler()
    unsafe clx_store_relaxed_u8(Self.entry(base, head), 1)
    clx_fence_compiler()
  }

  /// A head was not taken after all.
  mutating func untake(_ head: UInt16) {
    guard let base = unsafe base else { return }
    // SAFETY: as above.
    unsafe clx_store_relaxed_u8(Self.entry(base, head), 0)
    clx_fence_compiler()
  }

  /// Notes that a head is in the batch that will become public next.
  @usableFromInline mutating func batch(_ head: UInt16) {
    guard let base = unsafe base else { return }
    batch.append(UInt64(head))
    // SAFETY: as above.
    unsafe clx_store_relaxed_u16(Self.entry(base, head) + 6, clx_load_relaxed_u16(base + 12))
    clx_fence_compiler()
    unsafe clx_store_relaxed_u16(base + 12, head)
    clx_fence_compiler()
  }

  /// The batch has become public: the used index in the ring is `used`.
  @usableFromInline mutating func commit(used: UInt16) {
    guard let base = unsafe base else { return }
    clx_fence_compiler()
    for i in 0..<batch.count {
      unsafe clx_store_relaxed_u8(Self.entry(base, UInt16(truncatingIfNeeded: batch[i])), 0)
    }
    clx_fence_compiler()
    unsafe clx_store_relaxed_u16(base + 14, used)
    batch.removeAll()
  }
}
