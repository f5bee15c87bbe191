// The one thread from which guests are driven.

import Dispatch

/// Guest tests run here: driving a guest is waiting most of the time, and the threads of Swift's own pool, one for
/// each processor, are for tests that compute. It also keeps guests one after another.
@globalActor
public actor GuestThread {
  public static let shared = GuestThread()
  private nonisolated let executor = QueueExecutor()

  public nonisolated var unownedExecutor: UnownedSerialExecutor { executor.asUnownedSerialExecutor() }
}

/// A dispatch queue as an executor; the library on Linux brings none.
private final class QueueExecutor: SerialExecutor {
  private let queue = DispatchQueue(label: "guest")

  func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    queue.async { job.runSynchronously(on: self.asUnownedSerialExecutor()) }
  }
}
