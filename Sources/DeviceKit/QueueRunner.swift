// Runs one queue: gives its worker turns, publishes after each part of one, calls the driver. Made, used and released on
// the queue's thread. Generic over ring and worker, and inlinable with all that a turn needs: through the closures of
// `RunnerEntry` the device's module compiles it for its own worker, so a turn is one indirect call and nothing in it is.
// A requirement of `QueueRunning`, called through the existential, is never compiled for one worker: those are for rare calls.

import CLinux
import HostIO
import VirtQueue

/// Where a runner sits and what it was given: made by the host, with the thread's own parts filled in on the thread.
@usableFromInline struct RunnerPlace {
  @usableFromInline let layout: RingLayout
  @usableFromInline let map: GuestMemoryMap
  @usableFromInline let inflight: InflightArea?
  let log: QueueLog?
  let tools: ThreadTools
  let seat: UInt16
  let epoch: UInt16
  let counters: QueueCounters
  let enabled: Bool
  let onFault: @Sendable (QueueFault) -> Void
  let onMiss: @Sendable ([TranslationMiss]) -> Void
}

/// A runner and its hot calls, compiled for its ring and worker where the types are known (`QueueStart.run`).
@usableFromInline struct RunnerEntry {
  let runner: any QueueRunning
  /// The runner's `workStem`.
  let stem: UInt64
  let turn: () -> Bool
  let reap: () -> Bool

  @usableFromInline init(
    _ runner: any QueueRunning, turn: @escaping () -> Bool, reap: @escaping () -> Bool
  ) {
    self.runner = runner
    stem = runner.workStem
    self.turn = turn
    self.reap = reap
  }
}

/// Holds a runner in one place, and answers the rare calls.
@safe @usableFromInline
final class RunnerBox<R: VirtRing & ~Copyable, W: QueueWorker & ~Copyable>: QueueRunning {
  // SAFETY: made in `init`, released in `deinit`, used on the queue's thread only; no call on it comes back to it.
  @usableFromInline let runner: UnsafeMutablePointer<QueueRunner<R, W>>
  @usableFromInline let line: CallLine
  @usableFromInline let workStem: UInt64

  @usableFromInline init(ring: consuming R, worker: consuming W, place: RunnerPlace) {
    let made = QueueRunner(ring: ring, worker: worker, place: place)
    (line, workStem) = (made.line, made.workStem)
    unsafe runner = .allocate(capacity: 1)
    unsafe runner.initialize(to: made)
  }

  deinit {
    unsafe runner.deinitialize(count: 1)
    unsafe runner.deallocate()
  }

  @inlinable func turn() -> Bool { unsafe runner.pointee.turn() }
  @inlinable func reap() -> Bool { unsafe runner.pointee.reap() }

  @usableFromInline func deliver(_ completion: Completion) { unsafe runner.pointee.deliver(completion) }
  @usableFromInline var wantsKicks: Bool { W.wantsKicks }
  @usableFromInline func park() -> Bool { unsafe runner.pointee.park() }
  @usableFromInline func unpark() { unsafe runner.pointee.unpark() }
  @usableFromInline func drain() { unsafe runner.pointee.drain() }
  @usableFromInline func move(to map: GuestMemoryMap) -> Bool { unsafe runner.pointee.move(to: map) }
  @usableFromInline func setLog(_ log: QueueLog?) { unsafe runner.pointee.setLog(log) }
  @usableFromInline func suspend() { unsafe runner.pointee.isSuspended = true }
  @usableFromInline func isClear(of range: IOVARange?) -> Bool { unsafe runner.pointee.isClear(of: range) }
  @usableFromInline func resume(on map: GuestMemoryMap?, denied: [TranslationMiss]) -> Bool {
    unsafe runner.pointee.resume(on: map, denied: denied)
  }
  @usableFromInline var drainedBase: UInt32? { unsafe runner.pointee.drainedBase }
  @usableFromInline var isEnabled: Bool {
    get { unsafe runner.pointee.isEnabled }
    set { unsafe runner.pointee.isEnabled = newValue }
  }
}

/// A runner as its thread sees it, the two calls of every turn aside.
@usableFromInline protocol QueueRunning: AnyObject {
  /// Handles the end of an offloaded operation.
  func deliver(_ completion: Completion)
  /// Whether chains that come while the thread sleeps are to wake it.
  var wantsKicks: Bool { get }
  /// Asks the driver for kicks; true where work is there already.
  func park() -> Bool
  func unpark()
  /// The stem of this runner's work tokens.
  var workStem: UInt64 { get }
  /// State that is the same for every kind of ring and worker.
  var line: CallLine { get }
  var isEnabled: Bool { get set }
  /// From now on no chain is taken; `turn` reports the end through `drainedBase`.
  func drain()
  /// Where to resume, once the last chain is back in the used ring; nil until then.
  var drainedBase: UInt32? { get }
  func move(to map: GuestMemoryMap) -> Bool
  /// Where writes to guest memory are noted from now on.
  func setLog(_ log: QueueLog?)
  /// Takes no more chains, until `resume`; those that are out go on.
  func suspend()
  /// Whether no chain that is out reaches into a range; nil: whether none is out.
  func isClear(of range: IOVARange?) -> Bool
  /// Takes chains again; with a map, where the ring is found again in it, which is what comes back.
  func resume(on map: GuestMemoryMap?, denied: [TranslationMiss]) -> Bool
}

/// The runner itself: a value behind a pointer, not an object, whose every access would be checked for exclusivity.
@safe @usableFromInline
struct QueueRunner<R: VirtRing & ~Copyable, W: QueueWorker & ~Copyable>: ~Copyable {
  @usableFromInline var io: QueueIO<R>
  @usableFromInline var worker: W
  @usableFromInline let line: CallLine
  @usableFromInline let workStem: UInt64
  @usableFromInline let counters: QueueCounters
  private let onFault: @Sendable (QueueFault) -> Void
  private let onMiss: @Sendable ([TranslationMiss]) -> Void
  @usableFromInline var isEnabled: Bool
  @usableFromInline var draining = false
  @usableFromInline var faultReported = false
  /// Behind an IOMMU: a chain, or the ring itself, waits for its translation. Nothing of the ring may be touched.
  @usableFromInline var isSuspended = false
  @usableFromInline var countedTaken: UInt64 = 0
  @usableFromInline var countedGiven: UInt64 = 0
  /// The memory that the queue works in, and how many lost pages of this process it has looked into.
  private var map: GuestMemoryMap
  private let inflight: InflightArea?
  private var log: DirtyLog?
  @usableFromInline var lostSeen: UInt64 = 0

  @usableFromInline
  init(ring: consuming R, worker: consuming W, place: RunnerPlace) {
    let stem = Token(.work, seat: place.seat, epoch: place.epoch)
    io = QueueIO(ring: ring, tools: place.tools, stem: stem, counters: place.counters)
    self.worker = worker
    line = CallLine(place: place)
    workStem = stem.stem
    counters = place.counters
    onFault = place.onFault
    onMiss = place.onMiss
    isEnabled = place.enabled
    map = place.map
    inflight = place.inflight
    log = place.log?.log
    io.ring.setLog(place.log)
  }

  /// Lets the worker take chains, publishes, calls. True where something was done or more is waiting.
  @inlinable mutating func turn() -> Bool {
    let before = io.taken
    io.byteBudget = QueueBudget.bytes
    io.wantsTurn = false
    var isFirst = true
    checkMemory()
    var more = (isEnabled || W.servesDisabled) && !draining && !io.isThrottled && !isSuspended
    repeat {
      if more {
        io.budget = isFirst ? QueueBudget.firstChains : QueueBudget.chains &- QueueBudget.firstChains
        if isEnabled { worker.service(&io) } else { worker.serviceDisabled(&io) }
        more = isFirst && io.budget == 0 && io.byteBudget > 0 && !io.isThrottled
        isFirst = false
        checkMemory()
      }
      publish()
    } while more
    if io.ring.fault != nil, !faultReported { reportFault() }
    if io.ring.isWaiting, !isSuspended { reportMisses() }
    return io.taken != before || io.wantsTurn
  }

  /// Breaks the queue where pages that it works in are gone: what it reads there are zeros that nobody wrote, and must not
  /// reach storage. Pages of others are no concern of it.
  @inlinable @inline(__always) mutating func checkMemory() {
    let lost = clx_shared_lost()
    if lost != lostSeen { lookIntoLoss(lost) }
  }

  @usableFromInline @inline(never) mutating func lookIntoLoss(_ lost: UInt64) {
    lostSeen = lost
    if !map.isWhole || inflight?.isWhole == false || log?.isWhole == false { io.ring.fail(.memoryLost) }
  }

  @inlinable mutating func publish() {
    if io.taken != countedTaken {
      counters.add(io.taken &- countedTaken, to: .chains)
      countedTaken = io.taken
    }
    let notify = io.ring.publish()
    guard io.given != countedGiven else { return }
    counters.add(io.given &- countedGiven, to: .completed)
    countedGiven = io.given
    counters.add(to: .batches)
    switch notify {
    case .call: line.call()
    case .none: counters.add(to: .callsSuppressed)
    }
  }

  /// Handles the completions of this queue's I/O at the head of the completion queue; true where there were any.
  @inlinable mutating func reap() -> Bool {
    var any = false
    // SAFETY: `io.uring` is the thread's ring, on its thread.
    while let event = unsafe io.uring.pointee.peek() {
      let token = Token(raw: event.token)
      guard token.stem == workStem else { break }
      unsafe io.uring.pointee.advance()
      if !event.more { io.outstanding &-= 1 }
      io.endsThrottle(event.token)
      worker.completed(
        Completion(head: token.head, part: token.part, result: event.result, more: event.more), &io)
      any = true
    }
    return any
  }

  @usableFromInline mutating func deliver(_ completion: Completion) {
    io.outstanding &-= 1
    worker.completed(completion, &io)
  }

  @usableFromInline mutating func park() -> Bool {
    guard W.wantsKicks, isEnabled || W.servesDisabled, !draining, !io.isThrottled, !isSuspended,
      worker.wantsChains
    else { return false }
    // The look itself may find that a page is gone: that wants a turn.
    return io.ring.park() || clx_shared_lost() != lostSeen
  }

  @usableFromInline mutating func unpark() { if !isSuspended { io.ring.unpark() } }

  @usableFromInline mutating func drain() {
    guard !draining else { return }
    draining = true
    io.isDraining = true
    io.endThrottle()
    worker.drain(&io)
  }

  @usableFromInline var drainedBase: UInt32? {
    draining && io.outstanding == 0 && io.ring.liveCount == 0 ? io.ring.base : nil
  }

  @usableFromInline mutating func move(to map: GuestMemoryMap) -> Bool {
    self.map = map
    return io.ring.move(to: map)
  }

  @usableFromInline mutating func setLog(_ log: QueueLog?) {
    self.log = log?.log
    io.ring.setLog(log)
  }

  // MARK: Behind an IOMMU

  @usableFromInline @inline(never) mutating func reportMisses() {
    isSuspended = true
    let misses = io.ring.takeMisses()
    counters.add(UInt64(misses.count), to: .iotlbMisses)
    onMiss(misses)
  }

  @usableFromInline func isClear(of range: IOVARange?) -> Bool {
    io.ring.liveCount == 0 || range.map { !io.ring.reaches($0) } ?? false
  }

  @usableFromInline mutating func resume(on map: GuestMemoryMap?, denied: [TranslationMiss]) -> Bool {
    if let map, !move(to: map) { return false }
    io.ring.retry(denied: denied)
    isSuspended = false
    return true
  }

  @usableFromInline @inline(never) mutating func reportFault() {
    faultReported = true
    counters.add(to: .faults)
    line.reportError()
    if let fault = io.ring.fault { onFault(fault) }
  }
}
