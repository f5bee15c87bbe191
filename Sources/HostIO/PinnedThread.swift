// A POSIX thread of our own: named, on chosen processors, with every signal blocked. Started and joined by
// the control side.

import CLinux
import Glibc
import Synchronization

public final class PinnedThread: Sendable {
  private final class Body: Sendable {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
  }

  private let thread: pthread_t
  private let joined = Mutex(false)
  /// Set where not all the processors asked for can be had, to be told to the user: the thread runs on the
  /// others, or, where none is left, wherever the caller may.
  public let affinityError: HostError?

  /// Starts `body` at once, on its processors from its first instruction. Names are cut to 15 bytes; no
  /// processors: wherever the caller may run. Throws EAGAIN where the system has no room for a thread.
  public init(name: String, cpus: [Int], body: @escaping @Sendable () -> Void) throws(HostError) {
    var thread = pthread_t()
    let processors = cpus.map { UInt16(exactly: $0) ?? .max }
    var missing = [UInt8](repeating: 0, count: cpus.count)
    let context = unsafe Unmanaged.passRetained(Body(body)).toOpaque()
    // SAFETY: the context is retained until the thread takes it, which it does exactly once if it starts.
    let code = unsafe clx_thread_start(
      &thread, Self.fitting(name), processors, processors.count,
      { context in
        guard let context = unsafe context else { return }
        unsafe Unmanaged<Body>.fromOpaque(context).takeRetainedValue().run()
      }, context, &missing)
    guard code == 0 else {
      unsafe Unmanaged<Body>.fromOpaque(context).release()
      throw .system(call: "pthread_create", code: code)
    }
    self.thread = thread
    let lost = zip(cpus, missing).filter { $0.1 != 0 }.map(\.0)
    affinityError = lost.isEmpty ? nil : .processorsUnavailable(lost)
  }

  // A thread that nobody joined cleans up after itself.
  deinit { if !joined.withLock({ $0 }) { pthread_detach(thread) } }

  /// Waits for the thread's end; returns at once where it was joined before. Not from the thread itself.
  public func join() {
    joined.withLock { joined in
      if !joined { pthread_join(thread, nil) }
      joined = true
    }
  }

  /// As much of a name as the kernel keeps: whole characters in 15 bytes.
  private static func fitting(_ name: String) -> String {
    var kept = name.prefix(15)
    while kept.utf8.count > 15 { kept.removeLast() }
    return String(kept)
  }
}
