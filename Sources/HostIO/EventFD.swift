// A counter to wait on (eventfd(2)), non-blocking. Any thread.

import CLinux
import Glibc

public struct EventFD: ~Copyable, Sendable {
  private let descriptor: OwnedFD
  public var raw: Int32 { descriptor.raw }

  public init() throws(HostError) {
    let raw = eventfd(0, Int32(0o2000000 | 0o4000))  // EFD_CLOEXEC | EFD_NONBLOCK
    guard raw >= 0 else { throw .last("eventfd") }
    descriptor = OwnedFD(adopting: raw)
  }

  /// Wakes whoever waits. A counter that is full is as good as one more.
  public func signal() { Self.signal(raw) }

  /// Signals somebody else's eventfd; never blocks, whatever its flags are.
  public static func signal(_ raw: Int32) {
    guard Poll.one(raw, .writable, milliseconds: 0).contains(.writable) else { return }
    var one: UInt64 = 1
    // SAFETY: 8 bytes of a local value.
    _ = unsafe write(raw, &one, 8)
  }

  /// Sets the counter to 0; false where it was.
  @discardableResult
  public func drain() -> Bool {
    var value: UInt64 = 0
    // SAFETY: 8 bytes of a local value.
    return unsafe read(raw, &value, 8) == 8
  }

  /// Whether a foreign descriptor is an eventfd: it has no file type, and takes the 8-byte value 0, which changes
  /// nothing; no other kind takes that. One whose counter is full cannot be told, and is not taken for one.
  public static func isEventFD(_ descriptor: borrowing OwnedFD) -> Bool {
    var facts = stat()
    // SAFETY: fills the local value.
    guard unsafe fstat(descriptor.raw, &facts) == 0, facts.st_mode & S_IFMT == 0 else { return false }
    guard Poll.one(descriptor.raw, .writable, milliseconds: 0).contains(.writable) else { return false }
    var nothing: UInt64 = 0
    // SAFETY: 8 bytes of a local value.
    return unsafe write(descriptor.raw, &nothing, 8) == 8
  }
}
