// An answer from one thread to another, such as a queue thread's to the control thread that posted to it.

import CLinux
import Glibc
import Synchronization

/// One answer, given once by one thread and awaited by others.
@safe public final class Reply<Value: Sendable>: Sendable {
  private let answer = Mutex<Value?>(nil)
  // SAFETY: two pthread objects with fixed addresses, initialised in `init`, destroyed in `deinit`, used by
  // their functions only.
  private nonisolated(unsafe) let mutex: UnsafeMutablePointer<pthread_mutex_t>
  private nonisolated(unsafe) let condition: UnsafeMutablePointer<pthread_cond_t>

  public init() {
    // SAFETY: the cells are new and nobody else's yet.
    unsafe mutex = .allocate(capacity: 1)
    unsafe condition = .allocate(capacity: 1)
    unsafe pthread_mutex_init(mutex, nil)
    var attributes = pthread_condattr_t()
    unsafe pthread_condattr_init(&attributes)
    unsafe pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
    unsafe pthread_cond_init(condition, &attributes)
    unsafe pthread_condattr_destroy(&attributes)
  }

  deinit {
    // SAFETY: whoever waited or fulfilled held a reference, so nobody is in either object.
    unsafe pthread_cond_destroy(condition)
    unsafe pthread_mutex_destroy(mutex)
    unsafe condition.deallocate()
    unsafe mutex.deallocate()
  }

  /// Gives the answer; later ones are ignored.
  public func fulfil(_ value: Value) {
    answer.withLock { if $0 == nil { $0 = value } }
    // SAFETY: a live mutex and condition. Taken after the answer is there: a waiter either sees it or is
    // already waiting.
    unsafe pthread_mutex_lock(mutex)
    unsafe pthread_cond_broadcast(condition)
    unsafe pthread_mutex_unlock(mutex)
  }

  /// The answer, however long it takes.
  public func wait() -> Value {
    while true { if let value = wait(timeout: .seconds(3600)) { return value } }
  }

  /// The answer, or nil after the time.
  public func wait(timeout: Duration) -> Value? {
    let deadline = Deadline(after: timeout)
    var moment = deadline.moment
    // SAFETY: a live mutex, held around the wait as the condition asks.
    unsafe pthread_mutex_lock(mutex)
    defer { unsafe pthread_mutex_unlock(mutex) }
    while true {
      if let value = answer.withLock({ $0 }) { return value }
      if unsafe pthread_cond_timedwait(condition, mutex, &moment) == ETIMEDOUT {
        return answer.withLock { $0 }
      }
    }
  }
}
