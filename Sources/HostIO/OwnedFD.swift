// A file descriptor with one owner, and the descriptors that came with a message. Any thread.

import CLinux
import Glibc

/// Closes its descriptor when it goes out of scope.
@frozen public struct OwnedFD: ~Copyable, Sendable {
  public let raw: Int32

  /// Takes over a descriptor that nobody else will close; a negative one stands for none.
  @inlinable public init(adopting raw: Int32) { self.raw = raw }

  @inlinable deinit { if raw >= 0 { close(raw) } }

  /// Gives the descriptor up, open.
  @inlinable public consuming func release() -> Int32 {
    let raw = self.raw
    discard self
    return raw
  }

  /// A second descriptor of the same open file, close-on-exec. Throws EMFILE where the process has too many.
  public func duplicate() throws(HostError) -> OwnedFD { try Self.duplicate(of: raw) }

  /// The same for a descriptor that another owns.
  public static func duplicate(of raw: Int32) throws(HostError) -> OwnedFD {
    let copy = clx_fcntl_int(raw, F_DUPFD_CLOEXEC, 3)
    guard copy >= 0 else { throw .last("fcntl(F_DUPFD_CLOEXEC)") }
    return OwnedFD(adopting: copy)
  }
}

/// Descriptors that came with a message, in their order; those that nobody took are closed.
public struct DescriptorBag: ~Copyable, Sendable {
  private var waiting: [Int32] = []
  public init() {}

  deinit { for descriptor in waiting { close(descriptor) } }

  public var count: Int { waiting.count }

  /// Puts one in, behind the others.
  public mutating func add(_ descriptor: consuming OwnedFD) { waiting.append(descriptor.release()) }

  /// The next one; nil when all were taken.
  public mutating func takeFirst() -> OwnedFD? {
    waiting.isEmpty ? nil : OwnedFD(adopting: waiting.removeFirst())
  }

  /// Closes what is left.
  public mutating func removeAll() {
    for descriptor in waiting { close(descriptor) }
    waiting = []
  }
}
