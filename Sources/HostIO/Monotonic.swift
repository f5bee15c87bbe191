// The clock that timers and rate limits count by. Any thread.

import Glibc

/// CLOCK_MONOTONIC, which nobody sets.
public enum Monotonic {
  /// Nanoseconds since a moment before this process. No system call.
  public static var now: UInt64 {
    var time = timespec()
    // SAFETY: fills the local value.
    unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
  }
}
