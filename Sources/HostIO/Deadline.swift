// A moment by which a wait must end, on the monotonic clock. Any thread.

import Glibc

struct Deadline {
  /// Nanoseconds of CLOCK_MONOTONIC; nil: never.
  private let end: UInt64?

  /// Nil, and a time longer than the clock can say, mean never; a negative one means now.
  init(after timeout: Duration?) {
    guard let timeout, timeout > .zero else {
      end = timeout == nil ? nil : 0
      return
    }
    let (seconds, attoseconds) = timeout.components
    let whole = UInt64(seconds).multipliedReportingOverflow(by: 1_000_000_000)
    let part = whole.partialValue.addingReportingOverflow(UInt64(attoseconds / 1_000_000_000))
    let sum = part.partialValue.addingReportingOverflow(Self.now)
    end = whole.overflow || part.overflow || sum.overflow ? nil : sum.partialValue
  }

  private static var now: UInt64 {
    var time = timespec()
    // SAFETY: fills the local value.
    unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
  }

  var isOver: Bool { end.map { $0 <= Self.now } ?? false }

  /// What is left of it for poll(2): rounded up, 0 when it is over, -1 where it never comes.
  var milliseconds: Int32 {
    guard let end else { return -1 }
    let now = Self.now
    return end <= now ? 0 : Int32(clamping: (end - now) / 1_000_000 + 1)
  }

  /// The moment itself, for calls that take one; in 68 years where it never comes.
  var moment: timespec {
    let nanoseconds = end ?? Self.now &+ UInt64(Int32.max) * 1_000_000_000
    return timespec(
      tv_sec: Int(nanoseconds / 1_000_000_000), tv_nsec: Int(nanoseconds % 1_000_000_000))
  }
}
