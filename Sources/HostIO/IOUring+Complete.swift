// Taking completions. On the owner's thread only.

import CLinux
import CLiburing

extension IOUring {
  /// What the kernel says of one entry.
  public struct Event: Sendable {
    public let token: UInt64
    /// Bytes, or a negated errno.
    public let result: Int32
    @usableFromInline let flags: UInt32
    /// A multishot poll goes on; without it the poll has ended.
    @inlinable public var more: Bool { flags & 2 != 0 }

    @inlinable init(token: UInt64, result: Int32, flags: UInt32) {
      self.token = token
      self.result = result
      self.flags = flags
    }
  }

  /// The oldest completion, left in place; nil where there is none. Memory reads only.
  @inlinable @inline(__always)
  public func peek() -> Event? {
    // SAFETY: the completion ring is mapped while `self` lives; the index is masked. The acquire pairs with the kernel's
    // release of the tail.
    let head = unsafe ring.pointee.cq.khead.pointee
    let tail = unsafe clx_load_acquire_u32(ring.pointee.cq.ktail)
    guard head != tail else { return nil }
    let cqe = unsafe ring.pointee.cq.cqes + Int(head & ring.pointee.cq.ring_mask)
    return unsafe Event(token: cqe.pointee.user_data, result: cqe.pointee.res, flags: cqe.pointee.flags)
  }

  /// Gives the oldest completion's place back to the kernel.
  @inlinable @inline(__always)
  public mutating func advance() {
    // SAFETY: as `peek`; only this thread moves the head.
    unsafe clx_store_release_u32(ring.pointee.cq.khead, ring.pointee.cq.khead.pointee &+ 1)
  }

  /// Whether the kernel has completions that it delivers only on a call (deferred task work, or an overflow).
  @inlinable @inline(__always)
  public var needsCall: Bool {
    // IORING_SQ_CQ_OVERFLOW | IORING_SQ_TASKRUN. SAFETY: mapped, written by the kernel.
    unsafe clx_load_relaxed_u32(ring.pointee.sq.kflags) & 6 != 0
  }

  /// Runs what the kernel has ready, without waiting.
  @inlinable public mutating func collect() {
    // SAFETY: the owner's thread, an enabled ring.
    _ = unsafe io_uring_get_events(ring)
  }
}
