// What runs on a queue thread: the loop over completions, turns, submission and waiting. Everything here is on
// that thread, except `init` and `register`, which come before it starts.

import CLinux
import Glibc
import HostIO
import Synchronization
import VirtQueue

/// The thread's state: its ring, its seats, and the one loop.
// SAFETY (Sendable): used by the thread that makes it until `QueueThread.start`, by the queue thread alone from then on.
@safe final class QueueThreadCore: @unchecked Sendable {
  private let tools: ThreadTools
  // SAFETY: the tools' ring, alive with them.
  private let uring: UnsafeMutablePointer<IOUring>
  private let policy: PollPolicy
  /// For the adaptive policy.
  private var spinTime: SpinTime
  /// No processors were chosen for the thread: it may go where its rings' memory is.
  private let followsMemory: Bool
  /// Runners by seat, and those among them that run, for the loop.
  private var seats: [RunnerEntry?]
  private var active: [RunnerEntry] = []
  private var whenDrained: [(seat: Int, done: @Sendable (UInt32) -> Void)] = []
  /// Who waits for memory to be let go of (IOMMU): nil for all of it.
  private var whenClear: [(seat: UInt16, range: IOVARange?, done: @Sendable () -> Void)] = []
  private var epoch: UInt16 = 0
  private var quitting = false
  private var failure: HostError?
  let sleeps = Atomic<UInt64>(0)
  /// For `QueueThread.attempt`.
  private var lastIgnored: Int32?
  private(set) var reservedSeats = 0
  private var reservedFiles = 0
  private var lentBuffers = false

  /// The file table: the mailbox, then a kick, a call and an error descriptor a seat, then the devices' own.
  static func kickSlot(_ seat: UInt16) -> FileSlot { FileSlot(1 + 3 * UInt32(seat)) }
  static func callSlot(_ seat: UInt16) -> FileSlot { FileSlot(2 + 3 * UInt32(seat)) }
  static func errorSlot(_ seat: UInt16) -> FileSlot { FileSlot(3 + 3 * UInt32(seat)) }
  static func tableSize(seats: Int, files: Int) -> UInt32 { UInt32(1 + 3 * seats + files) }
  private static let mailSlot = FileSlot(0)
  private static let mailToken = Token(.mail, seat: 0, epoch: 0).raw

  init(policy: PollPolicy, followsMemory: Bool, seats: Int, tools: ThreadTools) throws(HostError) {
    self.policy = policy
    spinTime = if case .adaptive(let limit) = policy { SpinTime(limit: limit) } else { SpinTime(limit: 0) }
    self.followsMemory = followsMemory
    self.tools = tools
    unsafe uring = unsafe tools.uring
    self.seats = Array(repeating: nil, count: seats)
    try unsafe uring.pointee.register(tools.mailbox.wakeDescriptor, at: Self.mailSlot)
  }

  // MARK: Before the thread starts

  /// A seat for one queue; nil where all are taken.
  func reserveSeat() -> UInt16? {
    guard reservedSeats < seats.count else { return nil }
    reservedSeats += 1
    return UInt16(reservedSeats - 1)
  }

  /// Registers a device's descriptor for the thread's life.
  func register(_ descriptor: Int32) throws(HostError) -> FileSlot {
    let slot = FileSlot(Self.tableSize(seats: seats.count, files: reservedFiles))
    try unsafe uring.pointee.register(descriptor, at: slot)
    reservedFiles += 1
    return slot
  }

  /// The thread's ring will be lent buffers of this registry; empty ones as yet, which shows whether the kernel can.
  func expectBuffers(of registry: BufferRegistry) throws(HostError) {
    try unsafe uring.pointee.takeBuffers(of: registry)
    lentBuffers = true
  }

  /// See `QueueThread.restrict`.
  func restrict() throws(HostError) -> Bool { try unsafe uring.pointee.restrict(lentBuffers: lentBuffers) }

  // MARK: The loop

  func run() {
    do {
      try unsafe uring.pointee.enable()
    } catch {
      failure = error
    }
    unsafe uring.pointee.pollReadable(Self.mailSlot, token: Self.mailToken)
    var spin = Spin()
    var naps: UInt64 = 0
    while !quitting || !active.isEmpty {
      var busy = reap()
      // By place: a copy of an entry would be counted, three times a turn.
      for i in active.indices where active[i].turn() { busy = true }
      if !whenDrained.isEmpty { settleDrained() }
      if !whenClear.isEmpty { settleClear() }
      if unsafe uring.pointee.hasUnsubmitted {
        unsafe uring.pointee.submit()
      } else if unsafe uring.pointee.needsCall {
        unsafe uring.pointee.collect()
      }
      if busy {
        spin = Spin()
        naps = 0
      } else if unsafe uring.pointee.peek() == nil, !keepSpinning(&spin) {
        sleep(&naps, since: spin.since)
        spin = Spin()
      }
    }
  }

  /// A spell of looking without finding anything.
  private struct Spin {
    var looks: UInt32 = 0
    /// When it began, as far as the clock was asked.
    var since: UInt64 = 0
  }

  /// Whether to look again at once. Spins only where a queue runs. The clock costs more than a look, so it is asked
  /// once in many.
  private func keepSpinning(_ spin: inout Spin) -> Bool {
    guard !active.isEmpty else { return false }
    switch policy {
    case .interrupt: return false
    case .busy: break
    case .adaptive:
      if spin.looks & 31 == 0 {
        let now = Monotonic.now
        if spin.looks == 0 { spin.since = now }
        if now &- spin.since >= spinTime.nanoseconds { return false }
      }
      spin.looks &+= 1
      if spin.looks == 0 { spin.looks = 32 }
    }
    clx_pause()
    return true
  }

  /// Asks every driver for kicks and waits; returns at once where work came in meanwhile. `since`: when the spin before it began;
  /// 0: there was none.
  private func sleep(_ naps: inout UInt64, since: UInt64) {
    var (arrived, polled) = (false, false)
    for runner in active.lazy.map(\.runner) {
      if runner.park() { arrived = true }
      if runner.isEnabled, runner.wantsKicks, !runner.line.hasKick { polled = true }
    }
    if !arrived {
      sleeps.add(1, ordering: .relaxed)
      // A ring without a kick descriptor is looked at again after 50 µs, then less and less often, up to 1 ms.
      let nap: UInt64? = polled ? min(1_000_000, 50_000 << min(naps, 5)) : nil
      naps += 1
      unsafe uring.pointee.submitAndWait(nanoseconds: nap)
    }
    // The end of a nap tells nothing of when work came.
    if since > 0, arrived || !polled { spinTime.slept(Monotonic.now &- since) }
    for entry in active { entry.runner.unpark() }
  }

  /// Handles every completion that is there.
  private func reap() -> Bool {
    var any = false
    while let event = unsafe uring.pointee.peek() {
      let token = Token(raw: event.token)
      let entry = Int(token.seat) < seats.count ? seats[Int(token.seat)] : nil
      if token.kind == .work, let entry, entry.stem == token.stem {
        if entry.reap() { any = true }
        continue
      }
      let runner = entry?.runner
      unsafe uring.pointee.advance()
      let isCurrent = runner.map { $0.workStem & 0xffff_ffff == token.stem & 0xffff_ffff } ?? false
      switch token.kind {
      case .kick where isCurrent:
        runner?.line.kicked(event)
        any = true
      case .call where isCurrent: runner?.line.called(event)
      case .ignored: lastIgnored = event.result
      case .mail:
        if !event.more { unsafe uring.pointee.pollReadable(Self.mailSlot, token: Self.mailToken) }
        for message in tools.mailbox.takeAll() { message(self) }
        any = true
      default: break
      }
    }
    return any
  }

  private func settleDrained() {
    for i in whenDrained.indices.reversed() {
      let seat = whenDrained[i].seat
      guard let runner = seats[seat]?.runner, let base = runner.drainedBase else { continue }
      let done = whenDrained.remove(at: i).done
      runner.line.close()
      seats[seat] = nil
      active.removeAll { $0.runner === runner }
      done(base)
    }
  }

  /// What was completed in this round's turns is public by now.
  private func settleClear() {
    for i in whenClear.indices.reversed()
    where runner(whenClear[i].seat)?.isClear(of: whenClear[i].range) ?? true {
      whenClear.remove(at: i).done()
    }
  }

  // MARK: Posted by the control side

  /// Starts a queue on a seat: its runner is made here, so that its memory is this thread's.
  func install(
    _ maker: RunnerMaker, seat: UInt16, _ setup: QueueSetup, counters: QueueCounters
  ) -> QueueStartError? {
    if let failure { return .host(failure) }
    guard Int(seat) < seats.count, seats[Int(seat)] == nil else { return .alreadyRunning }
    epoch &+= 1
    settle(near: setup)
    let place = RunnerPlace(
      layout: setup.layout, map: setup.map, inflight: setup.inflight, log: setup.log, tools: tools,
      seat: seat, epoch: epoch,
      counters: counters, enabled: setup.enabled, onFault: setup.onFault, onMiss: setup.onMiss)
    do {
      let entry = try maker(place)
      let runner = entry.runner
      do {
        try runner.line.setKick(setup.kick)
        try runner.line.setCall(setup.call, signal: false)
        try runner.line.setError(setup.error)
      } catch {
        runner.line.close()
        return .host(error)
      }
      seats[Int(seat)] = entry
      active.append(entry)
      runner.unpark()
      return nil
    } catch {
      return .layout(error)
    }
  }

  /// Moves the thread to the memory node of the first ring it serves, so that what is made for the ring lies there too.
  private func settle(near setup: QueueSetup) {
    // SAFETY: only the address is used, to ask where its page is.
    guard followsMemory, active.isEmpty, Topology.nodeCount > 1,
      let ring = unsafe setup.map.ringArea(at: setup.layout.descriptorArea, length: 16, alignment: 16),
      let node = unsafe Topology.node(of: ring)
    else { return }
    // A node without processors: the thread stays where the kernel has it.
    Topology.runOn(node: node)
  }

  /// From now on operations may name what a registry has.
  func takeBuffers(of registry: BufferRegistry, _ ranges: [PinnedRange]) -> HostError? {
    // What was prepared names buffers by the numbers that they had.
    for _ in 0..<1000 where unsafe uring.pointee.hasUnsubmitted { unsafe uring.pointee.submit() }
    unsafe tools.pinned.pointee.set([])
    do {
      try unsafe uring.pointee.takeBuffers(of: registry)
    } catch {
      return error
    }
    unsafe tools.pinned.pointee.takesVectors = unsafe uring.pointee.supports(.readvFixed)
    unsafe tools.pinned.pointee.set(ranges)
    return nil
  }

  func runner(_ seat: UInt16) -> (any QueueRunning)? {
    Int(seat) < seats.count ? seats[Int(seat)]?.runner : nil
  }

  /// Takes no more chains on a seat; `done` gets the base once the last one is in the used ring.
  func drain(_ seat: UInt16, done: @escaping @Sendable (UInt32) -> Void) -> Bool {
    guard let runner = runner(seat) else { return false }
    runner.drain()
    whenDrained.append((Int(seat), done))
    return true
  }

  /// Says when no chain that is out on a seat reaches into a range any more; nil: when none is out, and the queue, which
  /// takes none from now on, touches its ring no more.
  func clear(_ seat: UInt16, of range: IOVARange?, done: @escaping @Sendable () -> Void) {
    if range == nil { runner(seat)?.suspend() }
    whenClear.append((seat, range, done))
  }

  /// The end of what was offloaded; of a queue that is gone, nobody's business.
  func deliver(_ token: Token, result: Int32) {
    guard let runner = runner(token.seat), runner.workStem == token.stem else { return }
    runner.deliver(Completion(head: token.head, part: token.part, result: result))
  }

  /// See `QueueThread.attempt`: nil where the kernel does not know the operation.
  func begin(_ act: RingAct) -> Bool {
    guard unsafe uring.pointee.knows(act) else { return false }
    lastIgnored = nil
    unsafe uring.pointee.prepare(act, token: Token(.ignored, seat: 0, epoch: 0).raw)
    return true
  }
  var attempted: Int32? { lastIgnored }

  func quit() {
    quitting = true
    for entry in active { entry.runner.drain() }
    for (seat, entry) in seats.enumerated() where entry != nil { whenDrained.append((seat, { _ in })) }
  }
}
