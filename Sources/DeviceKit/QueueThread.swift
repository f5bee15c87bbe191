// A queue thread as the control side sees it: a handle to post to. Made before a front-end is served, so that
// the sandbox can close over thread and ring alike.

import HostIO
import Synchronization
import VirtQueue

/// One pinned thread with its io_uring, serving the queues that are installed on it.
public final class QueueThread: Sendable {
  let mailbox: Mailbox<@Sendable (QueueThreadCore) -> Void>
  let core: QueueThreadCore
  private let helper: Helper?
  private let name: String
  private let cpus: [Int]
  private let pinned = Mutex<PinnedThread?>(nil)

  /// Makes the thread's ring; nothing runs yet. `seats`: queues it can serve; `files`: device descriptors it can hold;
  /// `helped`: whether it has a second thread for work that would hold it up (`VirtioDevice.needsHelper`).
  public init(
    name: String, cpus: [Int], policy: PollPolicy, seats: Int, files: Int, helped: Bool = false
  ) throws(HostError) {
    mailbox = try Mailbox<@Sendable (QueueThreadCore) -> Void>()
    helper = helped ? try Helper() : nil
    let ring = try IOUring(entries: 1024, files: QueueThreadCore.tableSize(seats: seats, files: files))
    core = try QueueThreadCore(
      policy: policy, followsMemory: cpus.isEmpty, seats: seats,
      tools: ThreadTools(ring, helper: helper, mailbox: mailbox))
    self.name = name
    self.cpus = cpus
  }

  /// Leaves the thread's ring nothing but our operations on registered files, for good. Before `start`. False where the kernel
  /// cannot.
  public func restrict() throws(HostError) -> Bool { try core.restrict() }

  /// Starts serving. Returns a warning where the processors asked for cannot be had; the thread then runs elsewhere.
  public func start() throws(HostError) -> HostError? {
    try helper?.start(name: name + "+")
    let thread = try PinnedThread(name: name, cpus: cpus) { [core] in core.run() }
    let warning = thread.affinityError
    pinned.withLock { $0 = thread }
    return warning
  }

  /// Ends the thread once its queues have stopped, and waits for it.
  public func finish() {
    let started = pinned.withLock { thread in
      defer { thread = nil }
      return thread
    }
    guard let thread = started else { return }
    mailbox.post { $0.quit() }
    thread.join()
    helper?.finish()
  }

  /// Runs `body` on the thread, between turns; it may reach what the thread's queues share. Any thread.
  public func post(_ body: @escaping @Sendable () -> Void) { mailbox.post { _ in body() } }

  /// Runs `body` on the thread and returns what it returned.
  func ask<Value: Sendable>(_ body: @escaping @Sendable (QueueThreadCore) -> Value) -> Value {
    let reply = Reply<Value>()
    mailbox.post { reply.fulfil(body($0)) }
    return reply.wait()
  }

  /// Tries what a subverted queue thread would; what came of it. For self-tests.
  package func attempt(_ act: SandboxAct) -> Int { ask { _ in act.attempt() } }

  /// What the kernel says of the thread's privileges: a sentence, and whether it holds. For self-tests.
  package var privileges: [(fact: String, holds: Bool)] {
    let state = ask { _ in SandboxState() }
    return [
      ("no new privileges by running a program", state.noNewPrivileges),
      ("a seccomp filter holds", state.hasFilter),
      ("no capabilities", state.hasNoCapabilities),
    ]
  }

  /// As above, an operation of its ring; nil: the kernel does not know it, or does not answer.
  package func attempt(_ act: RingAct) -> Int? {
    guard ask({ $0.begin(act) }) else { return nil }
    for _ in 0..<10_000 { if let result = ask({ $0.attempted }) { return Int(result) } }
    return nil
  }

  /// How often the thread has gone to sleep. Any thread.
  public var sleeps: UInt64 { core.sleeps.load(ordering: .relaxed) }
}
