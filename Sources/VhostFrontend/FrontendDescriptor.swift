// A file descriptor that closes itself, and an eventfd made of one. Tests and drivers hold them; any thread.

import CLinux
import Glibc

/// Owns a descriptor; the last reference closes it. A class, because messages carry arrays of them.
public final class FrontendDescriptor: Sendable {
  public let raw: Int32

  /// Takes over a descriptor nobody else will close.
  public init(adopting raw: Int32) { self.raw = raw }

  deinit { if raw >= 0 { _ = close(raw) } }

  /// A second descriptor of the same open file.
  public func duplicate() throws(FrontendError) -> FrontendDescriptor {
    let copy = clx_fcntl_int(raw, F_DUPFD_CLOEXEC, 3)
    guard copy >= 0 else { throw .last("fcntl(F_DUPFD_CLOEXEC)") }
    return FrontendDescriptor(adopting: copy)
  }
}

/// An eventfd: what a kick, a call and an error notification travel through (vhost-user, "Vring
/// descriptors").
public final class Doorbell: Sendable {
  public let descriptor: FrontendDescriptor
  @inlinable public var raw: Int32 { descriptor.raw }

  public init() throws(FrontendError) {
    let raw = eventfd(0, Int32(0o2000000 | 0o4000))  // EFD_CLOEXEC | EFD_NONBLOCK
    guard raw >= 0 else { throw .last("eventfd") }
    descriptor = FrontendDescriptor(adopting: raw)
  }

  /// Rings once. Never blocks: a full counter is as good as one more.
  public func ring() {
    var one: UInt64 = 1
    // SAFETY: 8 bytes of a local value.
    _ = unsafe write(raw, &one, 8)
  }

  /// How often it was rung since the last take; sets the count to 0. Never blocks.
  @discardableResult
  public func take() -> UInt64 {
    var value: UInt64 = 0
    // SAFETY: 8 bytes of a local value.
    return unsafe read(raw, &value, 8) == 8 ? value : 0
  }

  /// Waits until it was rung; the count stays for `take`. False when the time is over.
  public func wait(timeout: Duration = .seconds(10)) -> Bool {
    Deadline(timeout).wait(for: POLLIN, on: raw) & POLLIN != 0
  }
}
