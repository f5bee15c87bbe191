// Messages from many threads to one, and an answer from one to another.

import CLinux
import Glibc
import Synchronization

/// Messages to one thread, which waits on `wakeDescriptor` among other things.
public final class Mailbox<Message: Sendable>: Sendable {
  private let waiting = Mutex<[Message]>([])
  private let event: EventFD

  public init() throws(HostError) { event = try EventFD() }

  /// Becomes readable when a message comes into the empty box. Never read: wait for its edge.
  public var wakeDescriptor: Int32 { event.raw }

  /// Any thread.
  public func post(_ message: sending Message) {
    let wasEmpty = waiting.withLock { waiting in
      waiting.append(message)
      return waiting.count == 1
    }
    if wasEmpty { event.signal() }
  }

  /// All messages, oldest first; the owner only.
  public func takeAll() -> [Message] {
    waiting.withLock { waiting in
      defer { waiting = [] }
      return waiting
    }
  }
}

/// One answer, given once by one thread and awaited by another.
@safe public final class Reply<Value: Sendable>: Sendable {
  private let answer = Mutex<Value?>(nil)
  // SAFETY: two pthread objects with fixed addresses, initialised in `init`, destroyed in `deinit`, used by their
  // functions only.
  private nonisolated(unsafe) let mutex: UnsafeMutablePointer<pthread_mutex_t>
  private nonisolated(unsafe) let condition: UnsafeMutablePointer<pthread_cond_t>

  public init() {
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
    unsafe pthread_cond_destroy(condition)
    unsafe pthread_mutex_destroy(mutex)
    unsafe condition.deallocate()
    unsafe mutex.deallocate()
  }

  /// Gives the answer; later ones are ignored.
  public func fulfil(_ value: Value) {
    answer.withLock { if $0 == nil { $0 = value } }
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
    var limit = timespec()
    unsafe clock_gettime(CLOCK_MONOTONIC, &limit)
    let (seconds, attoseconds) = timeout.components
    limit.tv_sec += Int(seconds)
    limit.tv_nsec += Int(attoseconds / 1_000_000_000)
    if limit.tv_nsec >= 1_000_000_000 {
      limit.tv_sec += 1
      limit.tv_nsec -= 1_000_000_000
    }
    unsafe pthread_mutex_lock(mutex)
    defer { unsafe pthread_mutex_unlock(mutex) }
    while true {
      if let value = answer.withLock({ $0 }) { return value }
      if unsafe pthread_cond_timedwait(condition, mutex, &limit) == ETIMEDOUT {
        return answer.withLock { $0 }
      }
    }
  }
}
