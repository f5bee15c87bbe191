// poll(2). Any thread.

import CLinux
import Glibc

/// What a descriptor is ready for.
public struct Readiness: OptionSet, Sendable {
  public let rawValue: Int16
  public init(rawValue: Int16) { self.rawValue = rawValue }
  public static let readable = Readiness(rawValue: Int16(POLLIN))
  public static let writable = Readiness(rawValue: Int16(POLLOUT))
  public static let error = Readiness(rawValue: Int16(POLLERR))
  public static let hangUp = Readiness(rawValue: Int16(POLLHUP))
  /// The descriptor is not open.
  public static let invalid = Readiness(rawValue: Int16(POLLNVAL))
}

public enum Poll {
  /// What one descriptor is ready for; empty after the time, which -1 leaves open.
  public static func one(_ descriptor: Int32, _ events: Readiness, milliseconds: Int32) -> Readiness {
    any([(descriptor, events)], milliseconds: milliseconds).first ?? []
  }

  /// The same for several, in order. Negative descriptors are passed over. `error`, `hangUp` and `invalid`
  /// come without being asked for. A signal does not end the wait.
  public static func any(
    _ wanted: [(descriptor: Int32, events: Readiness)], milliseconds: Int32
  ) -> [Readiness] {
    let deadline = Deadline(after: milliseconds < 0 ? nil : .milliseconds(Int64(milliseconds)))
    var entries = wanted.map { pollfd(fd: $0.descriptor, events: $0.events.rawValue, revents: 0) }
    var left = milliseconds
    while true {
      // SAFETY: the array's own storage.
      let count = unsafe poll(&entries, nfds_t(entries.count), left)
      if count >= 0 || errno != EINTR {
        return entries.map { count > 0 ? Readiness(rawValue: $0.revents) : [] }
      }
      left = deadline.milliseconds
    }
  }
}
