// A thread beside the test's, and a bell to sleep by: two sides of a queue as they are in life.

import CLinux
import Dispatch
import Foundation
import Glibc
import Synchronization

/// A thread that runs once; its result is waited for.
final class TestThread<T: Sendable>: Sendable {
  private let result = Mutex<T?>(nil)
  private let done = DispatchSemaphore(value: 0)

  init(_ body: @escaping @Sendable () throws -> T) {
    Thread.detachNewThread {
      let value = try? body()
      self.result.withLock { $0 = value }
      self.done.signal()
    }
  }

  /// Nil where it threw, or did not end within two minutes.
  func join() -> T? {
    guard done.wait(timeout: .now() + 120) == .success else { return nil }
    return result.withLock { $0 }
  }
}

/// An eventfd: what a kick or a call is between processes.
final class Bell: Sendable {
  private let descriptor = eventfd(0, Int32(EFD_CLOEXEC | EFD_NONBLOCK))
  deinit { close(descriptor) }

  func ring() {
    var one: UInt64 = 1
    _ = Glibc.write(descriptor, &one, 8)
  }

  /// Sleeps until it rings, and takes that. False where it does not within half a minute.
  func wait() -> Bool {
    var asked = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    guard poll(&asked, 1, 30_000) == 1 else { return false }
    var count: UInt64 = 0
    return Glibc.read(descriptor, &count, 8) == 8
  }
}
