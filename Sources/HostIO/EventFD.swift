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

  /// Wakes whoever waits. A counter that is full (EAGAIN) is as good as one more.
  public func signal() { Self.add(1, to: raw) }

  /// Signals somebody else's eventfd, whatever its flags are: one whose counter is full is left alone, a
  /// write would block. Who shares the descriptor can still fill it between the look and the write, so a
  /// thread that serves others too writes through its io_uring instead.
  public static func signal(_ raw: Int32) {
    guard Poll.one(raw, .writable, milliseconds: 0).contains(.writable) else { return }
    add(1, to: raw)
  }

  /// Sets the counter to 0; false where it was.
  @discardableResult
  public func drain() -> Bool {
    var value: UInt64 = 0
    // SAFETY: 8 bytes of a local value.
    return unsafe read(raw, &value, 8) == 8
  }

  /// Whether a foreign descriptor is an eventfd, told without /proc, which a sandbox hides: it has no file
  /// type, and takes the 8-byte value 0, which changes nothing; the other kinds without a type (timers,
  /// polls, signals, rings) cannot be written, or not so.
  ///
  /// The write does not block, not even for a blocking descriptor whose counter is full: full is 2^64 - 2,
  /// one below the limit, and adding 0 waits only at the limit itself, where writes cannot bring it and
  /// poll(2) says `error`.
  public static func isEventFD(_ descriptor: borrowing OwnedFD) -> Bool {
    var facts = stat()
    // SAFETY: fills the local value.
    guard unsafe fstat(descriptor.raw, &facts) == 0, facts.st_mode & S_IFMT == 0 else { return false }
    let ready = Poll.one(descriptor.raw, [.readable, .writable], milliseconds: 0)
    guard ready.isDisjoint(with: [.error, .invalid]) else { return false }
    return add(0, to: descriptor.raw)
  }

  @discardableResult
  private static func add(_ count: UInt64, to raw: Int32) -> Bool {
    var count = count
    // SAFETY: 8 bytes of a local value.
    return unsafe write(raw, &count, 8) == 8
  }
}
