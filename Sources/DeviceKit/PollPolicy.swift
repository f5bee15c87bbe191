// How a queue thread waits for work. Chosen at start, read by the thread.

/// When to spin and when to sleep.
public enum PollPolicy: Sendable, Equatable {
  /// Sleep as soon as there is nothing to do; each burst costs the driver a kick.
  case interrupt
  /// Spin for a bounded time after the last work, then ask for kicks and sleep. The default.
  case adaptive(spinNanoseconds: UInt64)
  /// Never sleep while a queue is running: the lowest latency, for one processor all the time.
  case busy

  /// 32 µs: about what a sleep and its wake-up cost, so that waiting is never worse than twice the best choice.
  public static let adaptive = PollPolicy.adaptive(spinNanoseconds: 32_000)
}
