// What a packed ring notes in a dirty log: buffers as devices tell, and its own descriptors and event area. On the queue's thread.

extension PackedRing {
  public mutating func setLog(_ log: QueueLog?) { marks.set(log) }

  @inlinable public var marksBuffers: Bool { marks.buffers }

  @inline(never)
  public mutating func mark(_ chain: borrowing Chain, bytes: UInt32) {
    // SAFETY: a chain's slot is live while the chain is.
    unsafe marks.mark(chain.slot, bytes: bytes, in: table.map(of: chain.slot))
  }

  @inline(never)
  public mutating func mark(_ chain: borrowing Chain, byte: UnsafeMutableRawPointer) {
    // SAFETY: only the address is used.
    unsafe marks.mark(byte, 1, in: table.map(of: chain.slot))
  }

  /// The descriptors from `start` to the next used one were written, as far as each was.
  @usableFromInline @inline(never)
  mutating func markPublished(since start: PackedPosition) {
    if marks.ring {
      let map = table.map
      let wraps = nextUsed.wrap != start.wrap
      let straight = (wraps ? Int(size) : Int(nextUsed.index)) - Int(start.index)
      // SAFETY: both runs are within the ring's `size` descriptors.
      unsafe marks.mark(descriptors + 16 * Int(start.index), 16 * UInt64(straight), in: map)
      if wraps { unsafe marks.mark(descriptors, 16 * UInt64(nextUsed.index), in: map) }
    }
    marks.announce()
  }

  /// The device event area was written.
  @usableFromInline @inline(never)
  mutating func markNotification() {
    // SAFETY: only the address is used.
    unsafe marks.mark(deviceEvent, 4, in: table.map)
    marks.announce()
  }
}
