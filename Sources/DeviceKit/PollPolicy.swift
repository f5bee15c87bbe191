// How a queue thread waits for work. Chosen at start, read by the thread.

/// When to spin and when to sleep.
public enum PollPolicy: Sendable, Equatable {
  /// Sleep as soon as there is nothing to do; each burst costs the driver a kick.
  case interrupt
  /// Spin for a time after the last work, then ask for kicks and sleep. For how long, up to this, the thread finds out
  /// (`SpinTime`). The default.
  case adaptive(spinNanoseconds: UInt64)
  /// Never sleep while a queue is running: the lowest latency, for one processor all the time.
  case busy

  /// 32 µs: about what a sleep and its wake-up cost, so that waiting is never worse than twice the best choice.
  public static let adaptive = PollPolicy.adaptive(spinNanoseconds: 32_000)
}

/// How long a thread spins before it sleeps, from how long it waited for work before. Where work comes later than the longest
/// spin would have waited for it, spinning is time on the processor for nothing, and shrinks to none; where it comes soon after
/// the thread has gone to sleep, it grows again. One thread.
package struct SpinTime {
  /// So many sleeps in a row come too late for any spin before it is made shorter: one may be an accident of the machine's.
  package static let patience = 4

  let limit: UInt64
  package private(set) var nanoseconds: UInt64
  private var late = 0

  package init(limit: UInt64) {
    self.limit = limit
    nanoseconds = limit
  }

  /// The thread slept, and had work `waited` nanoseconds after the last, being woken included: within the longest spin, which would
  /// have saved the sleep, or later.
  package mutating func slept(_ waited: UInt64) {
    if waited <= limit {
      late = 0
      nanoseconds = limit
    } else if late < Self.patience - 1 {
      late += 1
    } else {
      nanoseconds = nanoseconds > limit / 8 ? nanoseconds / 2 : 0
    }
  }
}
