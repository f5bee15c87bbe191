// The words of a packed ring: a position with its wrap counter, and a descriptor's second half (virtio 1.3 §2.8). Values.

/// A place in the ring and the wrap counter it is read under.
@usableFromInline struct PackedPosition {
  @usableFromInline var index: UInt16
  /// The wrap counter as the device marks a used descriptor under it: AVAIL and USED both as the counter is.
  @usableFromInline var marks: UInt16

  @inlinable init(index: UInt16, wrap: Bool) {
    self.index = index
    marks = wrap ? PackedWord.marks : 0
  }

  @inlinable var wrap: Bool { marks != 0 }

  /// From, and to, the 16 bits that SET_VRING_BASE and the event areas use: 15 of index, one of wrap.
  @inlinable init(_ bits: UInt16) { self.init(index: bits & 0x7fff, wrap: bits >> 15 == 1) }
  @inlinable var bits: UInt16 { index | (marks & 0x8000) }

  /// `count` is at most `size`, so one wrap is enough.
  @inlinable @inline(__always)
  mutating func advance(by count: UInt16, size: UInt16) {
    let sum = UInt32(index) &+ UInt32(count)
    if sum >= UInt32(size) {
      index = UInt16(truncatingIfNeeded: sum &- UInt32(size))
      marks ^= PackedWord.marks
    } else {
      index = UInt16(truncatingIfNeeded: sum)
    }
  }

  /// The way back, as far as `advance` went.
  mutating func retreat(by count: UInt16, size: UInt16) {
    if count > index {
      index = UInt16(truncatingIfNeeded: UInt32(index) &+ UInt32(size) &- UInt32(count))
      marks ^= PackedWord.marks
    } else {
      index &-= count
    }
  }
}

/// The second half of a packed descriptor, {le32 length, le16 id, le16 flags}, as one word.
@usableFromInline struct PackedWord {
  @usableFromInline static var available: UInt16 { 1 << 7 }
  @usableFromInline static var used: UInt16 { 1 << 15 }
  @usableFromInline static var marks: UInt16 { available | used }

  @usableFromInline let raw: UInt64
  @inlinable init(raw: UInt64) { self.raw = raw }
  @inlinable var length: UInt32 { UInt32(truncatingIfNeeded: raw) }
  @inlinable var id: UInt16 { UInt16(truncatingIfNeeded: raw >> 32) }
  @inlinable var flags: UInt16 { UInt16(truncatingIfNeeded: raw >> 48) }

  /// Available and not used, under the wrap counter of a position (virtio 1.3 §2.8.1).
  @inlinable @inline(__always)
  func isAvailable(at position: PackedPosition) -> Bool {
    (flags ^ position.marks) & Self.marks == Self.used
  }

  /// Used, under the wrap counter of a position.
  func isUsed(at position: PackedPosition) -> Bool { flags & Self.marks == position.marks }

  /// What the device writes: WRITE says that `length` bytes were written; both marks equal the wrap counter.
  @inlinable init(used id: UInt16, length: UInt32, at position: PackedPosition) {
    let flags = position.marks | (length > 0 ? DescriptorFlag.write : 0)
    raw = UInt64(length) | UInt64(id) << 32 | UInt64(flags) << 48
  }
}
