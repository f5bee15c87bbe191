// Signals as something to wait on (signalfd(2)). Made on the main thread before any other thread starts.

import CLinux
import Glibc

public struct SignalFD: ~Copyable, Sendable {
  private let descriptor: OwnedFD
  /// Readable while a signal waits.
  public var raw: Int32 { descriptor.raw }

  /// Blocks the signals in the calling thread (and those it starts later) and queues them here.
  public init(_ signals: [Int32]) throws(HostError) {
    var set = sigset_t()
    // SAFETY: the local set.
    unsafe sigemptyset(&set)
    for signal in signals {
      guard unsafe sigaddset(&set, signal) == 0 else { throw .last("sigaddset(\(signal))") }
    }
    let code = unsafe pthread_sigmask(SIG_BLOCK, &set, nil)
    guard code == 0 else { throw .system(call: "pthread_sigmask", code: code) }
    let raw = unsafe clx_signalfd(&set)
    guard raw >= 0 else { throw .last("signalfd") }
    descriptor = OwnedFD(adopting: raw)
  }

  /// The next signal that came; nil where none did. On a thread that has the signals blocked.
  public func next() -> Int32? {
    let record = 128
    // SAFETY: a signalfd_siginfo is 128 bytes and begins with the number.
    return unsafe withUnsafeTemporaryAllocation(byteCount: record, alignment: 8) { buffer -> Int32? in
      guard unsafe read(raw, buffer.baseAddress, record) == record else { return nil }
      return unsafe buffer.load(as: Int32.self)
    }
  }
}
