// One descriptor chain that the driver made available, from `next()` to `complete()`. Move-only: it is given out
// once and goes back once. On the queue's thread only.

import CLinux
import Glibc

/// A chain: what the driver offers to read and to write, under one head.
///
/// A device ends it by `complete`; one that is to wait for I/O is held (`hold`) under its head and taken back
/// (`VirtRing.take`) when the I/O is done. A chain that is dropped instead breaks its queue with `QueueFault.chainDropped`.
@safe @frozen public struct Chain: ~Copyable {
  /// The driver's name for the chain while it is out: the head descriptor's index (packed: the buffer id), below the
  /// queue size. A device keeps per-request state in an array indexed by it.
  public let head: UInt16
  // SAFETY: a slot of the ring's table, which outlives its chains: a ring is torn down only when none is out, and leaves
  // its slots behind should a device have kept one.
  @usableFromInline let slot: UnsafeMutablePointer<Slot>

  @inlinable init(head: UInt16, slot: UnsafeMutablePointer<Slot>) {
    self.head = head
    unsafe self.slot = unsafe slot
  }

  deinit {
    // SAFETY: slots are an array indexed by head, with the counting slot before the first (SlotTable).
    unsafe slot.pointee.state = .dropped
    unsafe (slot - Int(head) - 1).pointee.readableCount &+= 1
  }

  /// What the device may read.
  @inlinable public var readable: Segments {
    @_lifetime(borrow self) get {
      // SAFETY: the slot is live while the chain is.
      let part = unsafe Segments(
        first: slot.pointee.segments, count: Int(slot.pointee.readableCount),
        byteCount: slot.pointee.readableBytes)
      return unsafe _overrideLifetime(part, borrowing: self)
    }
  }

  /// What the device may write.
  @inlinable public var writable: Segments {
    @_lifetime(borrow self) get {
      // SAFETY: the slot is live while the chain is; the writable segments follow the readable ones.
      let part = unsafe Segments(
        first: slot.pointee.segments + Int(slot.pointee.readableCount),
        count: Int(slot.pointee.writableCount), byteCount: slot.pointee.writableBytes)
      return unsafe _overrideLifetime(part, borrowing: self)
    }
  }

  /// Asks for the first two lines of what the device may read, which the driver's processor had last: worth it where other work is done
  /// before they are looked at.
  @inlinable @inline(__always)
  public func prefetchReadable() {
    let part = readable
    // SAFETY: asked for, not touched: the second line may be anywhere.
    guard part.count > 0, let base = unsafe part.vectors[0].iov_base else { return }
    unsafe clx_prefetch_read(base)
    unsafe clx_prefetch_read(base + 64)
  }

  /// The same of what it may write, to write there.
  @inlinable @inline(__always)
  public func prefetchWritable() {
    let part = writable
    // SAFETY: as above.
    guard part.count > 0, let base = unsafe part.vectors[0].iov_base else { return }
    unsafe clx_prefetch_write(base)
    unsafe clx_prefetch_write(base + 64)
  }

  /// Bytes in both parts together.
  @inlinable public var byteCount: Int {
    // SAFETY: the slot is live while the chain is.
    unsafe Int(slot.pointee.readableBytes) &+ Int(slot.pointee.writableBytes)
  }

  /// Whether some of its bytes are not in guest memory. Such a request fails; what can be reached of it may still
  /// carry the news (a status byte).
  @inlinable public var hasHole: Bool { unsafe slot.pointee.hasHole }

  /// Sets the chain aside under its head; `VirtRing.take` brings it back. Its memory stays valid meanwhile.
  @inlinable public consuming func hold() -> UInt16 {
    unsafe slot.pointee.state = .held
    return release()
  }

  /// Ends the chain's life here without a report: for the ring, which completes it.
  @usableFromInline @inline(__always) consuming func release() -> UInt16 {
    let head = self.head
    discard self
    return head
  }
}
