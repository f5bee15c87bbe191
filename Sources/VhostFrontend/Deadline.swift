// A point in time no wait of this library goes beyond. Made at the start of a call from its timeout; any
// thread.

import CLinux
import Glibc

/// A moment of the monotonic clock, in nanoseconds.
struct Deadline: Sendable {
  private let at: UInt64

  /// `timeout` from now; a negative one is now.
  init(_ timeout: Duration) {
    let (seconds, attoseconds) = timeout.components
    guard seconds >= 0, attoseconds >= 0 else {
      at = 0
      return
    }
    let whole = UInt64(seconds).multipliedReportingOverflow(by: 1_000_000_000)
    let length = whole.partialValue.addingReportingOverflow(UInt64(attoseconds / 1_000_000_000))
    let end = Self.now.addingReportingOverflow(length.partialValue)
    at = whole.overflow || length.overflow || end.overflow ? .max : end.partialValue
  }

  private static var now: UInt64 {
    var time = timespec()
    // SAFETY: fills the local value.
    _ = unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
  }

  var hasPassed: Bool { Self.now >= at }

  /// What is left for poll(2): rounded up, so that a wait never ends before its time and then spins.
  var milliseconds: Int32 {
    let now = Self.now
    guard at > now else { return 0 }
    return Int32(clamping: (at &- now) / 1_000_000 &+ 1)
  }

  /// Waits for `events` on a descriptor; the events that are there, or 0 when the time is over.
  func wait(for events: Int32, on raw: Int32) -> Int32 {
    wait(for: events, on: raw, and: -1).0
  }

  /// The same for two descriptors, of which -1 is passed over.
  func wait(for events: Int32, on first: Int32, and second: Int32) -> (Int32, Int32) {
    let wanted = Int16(truncatingIfNeeded: events)
    while true {
      var entries = (
        pollfd(fd: first, events: wanted, revents: 0), pollfd(fd: second, events: wanted, revents: 0)
      )
      // SAFETY: a homogeneous tuple of two is laid out as an array of two.
      let count = unsafe withUnsafeMutableBytes(of: &entries) { bytes in
        unsafe poll(bytes.baseAddress?.assumingMemoryBound(to: pollfd.self), 2, milliseconds)
      }
      if count > 0 { return (Int32(entries.0.revents), Int32(entries.1.revents)) }
      if count == 0 && hasPassed { return (0, 0) }
      if count < 0 && errno != EINTR { return (0, 0) }
    }
  }
}
