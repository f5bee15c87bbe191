// The inflight log of a packed ring while it runs: copies of the descriptors that were taken, and a free list of entries
// that hold none. On the queue's thread.
//
// The certain fields are the state to go back to; the others run ahead of them while something is under way. Completions
// are committed one by one, so that what an interrupted one left in the ring is at most one descriptor. A process may be
// killed between any two stores: their order is all that matters, and only to a later process.

import CLinux

/// A request that an earlier process left unfinished.
struct UnfinishedRequest {
  let entry: UInt16
  let counter: UInt64
  let descriptors: [PackedCopy]
  /// The buffer id: the last descriptor's (virtio 1.3 §2.8.6).
  var id: UInt16 { descriptors.last?.word.id ?? 0 }
}

@usableFromInline struct PackedInflight: ~Copyable {
  /// Nil where nothing is logged.
  private let log: PackedLog?
  private var counter: UInt64 = 0
  /// The log's entry of each buffer id that is out.
  private var entryOf: [UInt16] = []
  /// The oldest last.
  private var unfinished: [UnfinishedRequest] = []
  /// The first entry of the request that is being read.
  private var head: UInt16 = 0
  /// Ours is the truth: the field in the log may have been changed by others.
  private var freeHead: UInt16 = 0

  @usableFromInline var isOn: Bool { log != nil }
  @usableFromInline var unfinishedCount: Int { unfinished.count }

  /// Nothing is logged.
  init() { log = nil }

  /// Takes up a log that was put in order.
  init(_ found: PackedInflightRecovery, size: UInt16) {
    log = found.log
    entryOf = Array(repeating: 0, count: Int(size))
    counter = (found.unfinished.last?.counter ?? 0) &+ 1
    freeHead = found.freeHead
    for request in found.unfinished { entryOf[Int(request.id)] = request.entry }
    unfinished = found.unfinished.reversed()
  }

  /// A request that an earlier process left; nil when there is none.
  mutating func nextUnfinished() -> UnfinishedRequest? { unfinished.popLast() }

  /// It cannot be taken up yet, and is the next one again.
  mutating func putBack(_ request: UnfinishedRequest) { unfinished.append(request) }

  // MARK: Taking a request: begin, add each descriptor, finish

  @usableFromInline mutating func begin() {
    guard let log else { return }
    head = freeHead
    log.setNumber(head, 0)
    log.setCounter(head, counter)
    counter &+= 1
    clx_fence_compiler()
    log.setInFlight(head, true)
    clx_fence_compiler()
  }

  /// False where the log has no room left: more descriptors are out than the queue has, or the free list was broken.
  @usableFromInline mutating func add(_ address: UInt64, _ word: PackedWord, isLast: Bool) -> Bool {
    guard let log else { return true }
    guard freeHead < log.count, head < log.count else { return false }
    if isLast { log.setLast(head, freeHead) }
    log.setNumber(head, log.number(head) &+ 1)
    log.setCopy(freeHead, PackedCopy(address: address, word: word))
    freeHead = log.next(freeHead)
    log.freeHead = freeHead
    return true
  }

  /// The request is wholly in the log, under the buffer id of its last descriptor.
  @usableFromInline mutating func finish(id: UInt16) {
    guard let log, Int(id) < entryOf.count else { return }
    clx_fence_compiler()
    log.certainFreeHead = freeHead
    entryOf[Int(id)] = head
    clx_fence_compiler()
  }

  /// What was begun is no request after all.
  @usableFromInline mutating func abandon() {
    guard let log else { return }
    log.setInFlight(head, false)
    freeHead = head
    log.freeHead = freeHead
  }

  /// A whole request was not taken after all: its entries are free again.
  mutating func untake(id: UInt16) {
    guard let log, Int(id) < entryOf.count else { return }
    let entry = entryOf[Int(id)]
    log.setInFlight(entry, false)
    clx_fence_compiler()
    log.setNext(log.last(entry), freeHead)
    freeHead = entry
    log.freeHead = freeHead
    clx_fence_compiler()
    log.certainFreeHead = freeHead
    clx_fence_compiler()
  }

  // MARK: Giving it back

  /// Before a used descriptor is written: the log runs ahead to where the ring will be.
  @usableFromInline mutating func prepare(id: UInt16, next used: PackedPosition) {
    guard let log, Int(id) < entryOf.count else { return }
    let entry = entryOf[Int(id)]
    log.setNext(log.last(entry), freeHead)
    freeHead = entry
    log.freeHead = freeHead
    log.used = used
    clx_fence_compiler()
  }

  /// After it: what ran ahead is certain now.
  @usableFromInline mutating func commit(id: UInt16, next used: PackedPosition) {
    guard let log, Int(id) < entryOf.count else { return }
    clx_fence_compiler()
    log.setInFlight(entryOf[Int(id)], false)
    clx_fence_compiler()
    log.certainFreeHead = freeHead
    log.certainUsed = used
    clx_fence_compiler()
  }
}
