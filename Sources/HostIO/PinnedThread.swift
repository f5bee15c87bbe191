// A POSIX thread of our own: named, on chosen processors, with every signal blocked. Started and joined by the control
// side.

import CLinux
import Glibc

public final class PinnedThread: Sendable {
  private final class Body: Sendable {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
  }

  private let thread: pthread_t
  /// Set where the processors asked for could not be had; the thread runs where it may.
  public let affinityError: HostError?

  /// Starts `body` at once. Names are cut to 15 bytes; no processors: wherever the caller may run.
  public init(name: String, cpus: [Int], body: @escaping @Sendable () -> Void) throws(HostError) {
    var thread = pthread_t()
    var refused: Int32 = 0
    let processors = cpus.map { UInt16(clamping: $0) }
    let context = unsafe Unmanaged.passRetained(Body(body)).toOpaque()
    // SAFETY: the context is retained until the thread takes it, which it does exactly once if it starts.
    let code = unsafe clx_thread_start(
      &thread, String(name.prefix(15)), processors, processors.count,
      { context in
        guard let context = unsafe context else { return }
        unsafe Unmanaged<Body>.fromOpaque(context).takeRetainedValue().run()
      }, context, &refused)
    guard code == 0 else {
      unsafe Unmanaged<Body>.fromOpaque(context).release()
      throw .system(call: "pthread_create", code: code)
    }
    self.thread = thread
    affinityError = refused == 0 ? nil : .system(call: "pthread_setaffinity_np", code: refused)
  }

  /// Waits for the thread's end; once.
  public func join() { pthread_join(thread, nil) }
}
