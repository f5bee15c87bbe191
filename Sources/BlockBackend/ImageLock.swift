// The lock that keeps two writers from one image, on this machine or, where the file system carries locks, on another: taken
// when a disk's first ring starts, given back when its last has stopped, so that a migration hands it over. An open file
// description lock over the whole file; QEMU's own image locks conflict with it, as they should. Called by the
// control thread.

import CLinux
import Glibc

/// What an operator decides about the lock.
public struct ImageLockPolicy: Sendable {
  /// False: never lock.
  public var isOn = true
  /// How long a starting ring waits for another holder to let go.
  public var wait = Duration.seconds(5)
  public init() {}
}

struct ImageLock: Sendable {
  let raw: Int32
  /// Readers share the image with each other.
  let shared: Bool

  private func record(_ type: Int32) -> flock {
    var record = flock()
    record.l_type = Int16(type)
    record.l_whence = Int16(SEEK_SET)
    return record
  }

  /// Whether somebody else holds a lock that ours would conflict with.
  var isTakenElsewhere: Bool {
    var record = record(shared ? F_RDLCK : F_WRLCK)
    // SAFETY: reads and fills the local record.
    guard unsafe clx_fcntl_lock(raw, Int32(CLX_F_OFD_GETLK), &record) == 0 else { return false }
    return record.l_type != Int16(F_UNLCK)
  }

  /// Waits until nobody else holds it; false after the time. A killed process holds it until the kernel has taken its rings
  /// apart, which takes a while after its end is seen.
  func waitUntilFree(within limit: Duration) -> Bool {
    let deadline = ContinuousClock.now + limit
    while isTakenElsewhere {
      if ContinuousClock.now >= deadline { return false }
      Self.pause()
    }
    return true
  }

  /// Nobody tells when a lock is free: look again soon.
  private static func pause() { _ = poll(nil, 0, 20) }

  /// Takes the lock, waiting at most so long; false where it cannot be had. File systems without locks have none to give.
  func take(within limit: Duration) -> Bool {
    let deadline = ContinuousClock.now + limit
    while true {
      var record = record(shared ? F_RDLCK : F_WRLCK)
      // SAFETY: reads the local record.
      if unsafe clx_fcntl_lock(raw, Int32(CLX_F_OFD_SETLK), &record) == 0 { return true }
      guard errno == EAGAIN || errno == EACCES || errno == EINTR else { return true }
      if ContinuousClock.now >= deadline { return false }
      Self.pause()
    }
  }

  func release() {
    var record = record(F_UNLCK)
    // SAFETY: reads the local record.
    _ = unsafe clx_fcntl_lock(raw, Int32(CLX_F_OFD_SETLK), &record)
  }
}
