// The arithmetic of notification suppression (virtio 1.3 §2.7.10, §2.8.10), apart from any memory. Called by the
// rings, and by the exhaustive model in the tests, so that what is modelled is what ships.

public enum EventIndex {
  /// Whether moving an index from `old` to `new` passed `event`: then the other side asked to be told.
  /// All three wrap at 2^16. (virtio 1.3 §2.7.10.1)
  @inlinable @inline(__always)
  public static func passed(event: UInt16, new: UInt16, old: UInt16) -> Bool {
    (new &- event &- 1) < (new &- old)
  }

  /// The same for positions in a packed ring of `size`, which wrap there: `event` is an offset and, in bit 15, the wrap
  /// counter it belongs to; `wrap` is the counter at `new`. An offset that no position has counts as passed: better a call
  /// too many than a driver that waits. (virtio 1.3 §2.8.10.1)
  @inlinable @inline(__always)
  public static func passed(event: UInt16, new: UInt16, old: UInt16, wrap: Bool, size: UInt16) -> Bool {
    let earlier = new <= old ? old &- size : old
    let offset = event & 0x7fff
    if offset >= size { return true }
    let target = (event >> 15 == 1) == wrap ? offset : offset &- size
    return passed(event: target, new: new, old: earlier)
  }

  /// Whether a split driver's flags ask for calls (virtio 1.3 §2.7.7.1).
  @inlinable @inline(__always)
  public static func wantsCall(flags: UInt16) -> Bool { flags & 1 == 0 }

  /// What a packed driver's event word, {le16 offset and wrap, le16 flags}, says of a batch from `old` to `new` (virtio
  /// 1.3 §2.8.10). A reserved value counts as enabled; so does DESC without EVENT_IDX.
  @inlinable @inline(__always)
  public static func wantsCall(
    word: UInt32, eventIndex: Bool, new: UInt16, old: UInt16, wrap: Bool, size: UInt16
  ) -> Bool {
    switch word >> 16 & 3 {
    case 1: false
    case 2 where eventIndex:
      passed(event: UInt16(truncatingIfNeeded: word), new: new, old: old, wrap: wrap, size: size)
    default: true
    }
  }
}
