// A thread for what would hold a queue thread up: system calls that no ring can do, one after another. Belongs to a queue
// thread; results go back to it by its mailbox.

import HostIO
import Synchronization

/// Runs blocking work in the order it came.
final class Helper: Sendable {
  private let work: Mailbox<@Sendable () -> Void>
  private let stop: EventFD
  private let thread = Mutex<PinnedThread?>(nil)

  init() throws(HostError) {
    work = try Mailbox()
    stop = try EventFD()
  }

  /// Starts the thread; work that came before has waited for it.
  func start(name: String) throws(HostError) {
    let started = try PinnedThread(name: name, cpus: []) { [self] in run() }
    thread.withLock { $0 = started }
  }

  /// Any thread.
  func post(_ body: @escaping @Sendable () -> Void) { work.post(body) }

  private func run() {
    while true {
      let ready = Poll.any([(work.wakeDescriptor, .readable), (stop.raw, .readable)], milliseconds: -1)
      for body in work.takeAll() { body() }
      if !ready[1].isEmpty { return }
    }
  }

  /// Ends the thread after the work that waits.
  func finish() {
    stop.signal()
    thread.withLock { thread in
      thread?.join()
      thread = nil
    }
  }
}
