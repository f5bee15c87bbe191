// What travels through the ring with each operation and comes back with its completion. On the queue's thread.

/// Kind, seat, epoch, part and head in 64 bits. The epoch makes completions from before a stop recognisable.
@usableFromInline struct Token: Equatable {
  @usableFromInline enum Kind: UInt8 {
    /// A worker's operation.
    case work = 1
    /// The kick descriptor's poll.
    case kick = 2
    /// A write to the call descriptor.
    case call = 3
    /// The thread's mailbox.
    case mail = 4
    /// The end of something that nobody waits for.
    case ignored = 5
  }

  @usableFromInline let raw: UInt64
  @inlinable init(raw: UInt64) { self.raw = raw }

  @inlinable init(_ kind: Kind, seat: UInt16, epoch: UInt16, part: UInt8 = 0, head: UInt16 = 0) {
    raw =
      UInt64(kind.rawValue) << 56 | UInt64(seat) << 40 | UInt64(epoch) << 24 | UInt64(part) << 16
      | UInt64(head)
  }

  @inlinable var kind: Kind? { Kind(rawValue: UInt8(truncatingIfNeeded: raw >> 56)) }
  @inlinable var seat: UInt16 { UInt16(truncatingIfNeeded: raw >> 40) }
  @inlinable var part: UInt8 { UInt8(truncatingIfNeeded: raw >> 16) }
  @inlinable var head: UInt16 { UInt16(truncatingIfNeeded: raw) }
  /// Kind, seat and epoch: equal for all operations of one runner of one kind.
  @inlinable var stem: UInt64 { raw >> 24 }

  @inlinable func with(part: UInt8, head: UInt16) -> UInt64 {
    raw & ~0xff_ffff | UInt64(part) << 16 | UInt64(head)
  }
}

/// One of a worker's operations has ended.
public struct Completion: Sendable {
  /// The head the operation was submitted under.
  public let head: UInt16
  /// The part number it was submitted with.
  public let part: UInt8
  /// Bytes moved, or a negated errno; of a poll, the events.
  public let result: Int32
  /// A poll goes on, and will complete again.
  public let more: Bool

  @inlinable init(head: UInt16, part: UInt8, result: Int32, more: Bool = false) {
    self.head = head
    self.part = part
    self.result = result
    self.more = more
  }
}
