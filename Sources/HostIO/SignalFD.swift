// Signals as something to wait on (signalfd(2)). Made on the main thread before any other thread starts.

import CLinux
import Glibc

public struct SignalFD: ~Copyable, Sendable {
  private let descriptor: OwnedFD
  public var raw: Int32 { descriptor.raw }

  /// Blocks the signals in the calling thread (and those it starts later) and queues them here.
  public init(_ signals: [Int32]) throws(HostError) {
    var set = sigset_t()
    // SAFETY: the local set.
    unsafe sigemptyset(&set)
    for signal in signals { unsafe sigaddset(&set, signal) }
    unsafe pthread_sigmask(SIG_BLOCK, &set, nil)
    let raw = unsafe clx_signalfd(&set)
    guard raw >= 0 else { throw .last("signalfd") }
    descriptor = OwnedFD(adopting: raw)
  }

  /// The next signal that came; nil where none did.
  public func next() -> Int32? {
    var record: (Int32, [UInt8]) = (0, [])
    record.1 = Array(repeating: 0, count: 128)
    // SAFETY: a signalfd_siginfo is 128 bytes and begins with the number.
    let count = unsafe record.1.withUnsafeMutableBytes { unsafe read(raw, $0.baseAddress, 128) }
    guard count == 128 else { return nil }
    return unsafe record.1.withUnsafeBytes { unsafe $0.loadUnaligned(as: Int32.self) }
  }
}
