// The inflight log of a packed ring: a header of 32 bytes, then entries of 32 bytes that hold copies of the descriptors,
// those that hold none in a free list (vhost-user, "Inflight I/O tracking"). On the queue's thread.
//
//   header: u64 features, u16 version @8, u16 count @10, u16 free head @12, u16 old free head @14, u16 used index @16,
//           u16 old used index @18, u8 used wrap @20, u8 old used wrap @21
//   entry:  u8 in flight @0, u16 next @2, u16 last @4, u16 num @6, u64 counter @8, u16 id @16, u16 flags @18, u32 length @20,
//           u64 address @24
//
// The old_ fields are the state that is certain; the others run ahead of it while something is under way. Completions are
// committed one by one, so that what an interrupted one left in the ring is at most one descriptor. As for the split log,
// only the order of stores matters, and only to a later process.

import CLinux

@safe @usableFromInline struct PackedInflight: ~Copyable {
  /// A descriptor as it was read from the ring.
  struct Copy {
    let address: UInt64
    let word: PackedWord
  }

  /// A request that an earlier process left unfinished.
  struct Unfinished {
    let entry: UInt16
    let counter: UInt64
    let descriptors: [Copy]
    var id: UInt16 { descriptors.last?.word.id ?? 0 }
  }

  // SAFETY: an area of at least 32 + 32 * count bytes; every index read from it is checked against `count` before it is
  // used. Nil where nothing is logged.
  private let base: UnsafeMutableRawPointer?
  private let area: InflightArea?
  private let count: UInt16
  private let ringSize: UInt16
  private var counter: UInt64 = 0
  /// The log's entry of each buffer id that is out.
  private var entryOf: [UInt16]
  private var unfinished: [Unfinished] = []
  /// The first entry of the request that is being read.
  private var head: UInt16 = 0
  private var freeHead: UInt16 = 0

  @usableFromInline var isOn: Bool { unsafe base != nil }
  @usableFromInline var unfinishedCount: Int { unfinished.count }

  /// Nothing is logged.
  init() {
    unsafe base = nil
    area = nil
    count = 0
    ringSize = 0
    entryOf = []
  }

  /// Takes up an area that `PackedInflightRecovery` has put in order.
  init(_ area: InflightArea, size: UInt16, unfinished: [Unfinished], freeHead: UInt16) {
    unsafe base = unsafe area.base
    self.area = area
    count = area.descriptorCount
    ringSize = size
    entryOf = Array(repeating: 0, count: Int(size))
    counter = (unfinished.last?.counter ?? 0) &+ 1
    self.freeHead = freeHead
    for request in unfinished { entryOf[Int(request.id)] = request.entry }
    self.unfinished = unfinished.reversed()
  }

  @usableFromInline static func entry(_ base: UnsafeMutableRawPointer, _ index: UInt16) -> UnsafeMutableRawPointer {
    unsafe base + 32 + 32 * Int(index)
  }

  /// A request that an earlier process left; nil when there is none.
  mutating func nextUnfinished() -> Unfinished? { unfinished.popLast() }

  // MARK: Taking a request: begin, add each descriptor, finish

  @usableFromInline mutating func begin() {
    guard let base = unsafe base else { return }
    // The header's own field may have been changed by others since: ours is the truth.
    head = freeHead
    guard head < count else { return }
    // SAFETY: head < count.
    let entry = unsafe Self.entry(base, head)
    unsafe clx_store_relaxed_u16(entry + 6, 0)
    unsafe clx_store_relaxed_u64(entry + 8, counter)
    counter &+= 1
    clx_fence_compiler()
    unsafe clx_store_relaxed_u8(entry, 1)
    clx_fence_compiler()
  }

  /// False where the log has no room left: more descriptors are out than the queue has, or the free list was broken.
  @usableFromInline mutating func add(_ address: UInt64, _ word: PackedWord, isLast: Bool) -> Bool {
    guard let base = unsafe base else { return true }
    guard freeHead < count, head < count else { return false }
    // SAFETY: both indices are below `count`.
    let first = unsafe Self.entry(base, head)
    let entry = unsafe Self.entry(base, freeHead)
    if isLast { unsafe clx_store_relaxed_u16(first + 4, freeHead) }
    unsafe clx_store_relaxed_u16(first + 6, clx_load_relaxed_u16(first + 6) &+ 1)
    unsafe clx_store_relaxed_u16(entry + 16, word.id)
    unsafe clx_store_relaxed_u16(entry + 18, word.flags)
    unsafe clx_store_relaxed_u32(entry + 20, word.length)
    unsafe clx_store_relaxed_u64(entry + 24, address)
    freeHead = unsafe clx_load_relaxed_u16(entry + 2)
    unsafe clx_store_relaxed_u16(base + 12, freeHead)
    return true
  }

  /// The request is wholly in the log, under the buffer id of its last descriptor.
  @usableFromInline mutating func finish(id: UInt16) {
    guard let base = unsafe base, Int(id) < entryOf.count else { return }
    clx_fence_compiler()
    unsafe clx_store_relaxed_u16(base + 14, freeHead)
    entryOf[Int(id)] = head
    clx_fence_compiler()
  }

  /// What was begun is no request after all.
  @usableFromInline mutating func abandon() {
    guard let base = unsafe base, head < count else { return }
    // SAFETY: head < count.
    unsafe clx_store_relaxed_u8(Self.entry(base, head), 0)
    freeHead = head
    unsafe clx_store_relaxed_u16(base + 12, freeHead)
  }

  // MARK: Giving it back

  /// Before a used descriptor is written: the log runs ahead to where the ring will be.
  @usableFromInline mutating func prepare(id: UInt16, next used: PackedPosition) {
    guard let base = unsafe base, Int(id) < entryOf.count, entryOf[Int(id)] < count else { return }
    let entry = entryOf[Int(id)]
    // SAFETY: both indices are below `count`.
    let last = unsafe clx_load_relaxed_u16(Self.entry(base, entry) + 4)
    if last < count { unsafe clx_store_relaxed_u16(Self.entry(base, last) + 2, freeHead) }
    freeHead = entry
    unsafe clx_store_relaxed_u16(base + 12, freeHead)
    unsafe clx_store_relaxed_u16(base + 16, used.index)
    unsafe clx_store_relaxed_u8(base + 20, used.wrap ? 1 : 0)
    clx_fence_compiler()
  }

  /// After it: what ran ahead is certain now.
  @usableFromInline mutating func commit(id: UInt16, next used: PackedPosition) {
    guard let base = unsafe base, Int(id) < entryOf.count, entryOf[Int(id)] < count else { return }
    clx_fence_compiler()
    // SAFETY: the index is below `count`.
    unsafe clx_store_relaxed_u8(Self.entry(base, entryOf[Int(id)]), 0)
    clx_fence_compiler()
    unsafe clx_store_relaxed_u16(base + 14, freeHead)
    unsafe clx_store_relaxed_u16(base + 18, used.index)
    unsafe clx_store_relaxed_u8(base + 21, used.wrap ? 1 : 0)
    clx_fence_compiler()
  }
}
