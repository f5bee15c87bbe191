// Noting what a queue writes in a dirty log: kept out of the rings' fast paths, which only ask whether there is one. Owned by
// a ring, on the queue's thread.

import Glibc

/// A ring's end of a dirty log, if it has one.
@safe @usableFromInline struct WriteMarks: ~Copyable {
  /// What the fast paths ask.
  @usableFromInline private(set) var buffers = false
  @usableFromInline private(set) var ring = false
  private var target: QueueLog?
  private var fresh = false

  @usableFromInline init() {}

  mutating func set(_ log: QueueLog?) {
    target = log
    buffers = log?.marksBuffers ?? false
    ring = log?.marksRing ?? false
  }

  /// The first `bytes` of a chain's writable part were written.
  @inline(never)
  mutating func mark(_ slot: UnsafeMutablePointer<Slot>, bytes: UInt32, in map: GuestMemoryMap) {
    var left = UInt64(bytes)
    let first = unsafe Int(slot.pointee.readableCount)
    for i in unsafe first..<first + Int(slot.pointee.writableCount) where left > 0 {
      // SAFETY: a segment of the slot.
      let segment = unsafe slot.pointee.segments[i]
      let part = unsafe min(left, UInt64(segment.iov_len))
      left -= part
      guard let base = unsafe segment.iov_base else { continue }
      unsafe mark(base, part, in: map)
    }
  }

  /// Bytes at an address of this process, in a region of `map`, were written.
  @inline(never)
  mutating func mark(_ start: UnsafeMutableRawPointer, _ bytes: UInt64, in map: GuestMemoryMap) {
    guard let log = target?.log else { return }
    fresh = true
    // SAFETY: only the address is used.
    unsafe map.forEachGuestRange(at: start, bytes) { log.mark($0, $1) }
  }

  /// `bytes` of the used ring were written, `offset` bytes in; `host` is where they are.
  @inline(never)
  mutating func markUsed(
    offset: Int, _ bytes: UInt64, host: UnsafeMutableRawPointer, in map: GuestMemoryMap
  ) {
    guard let target else { return }
    guard let used = target.usedAddress else {
      // SAFETY: only the address is used; the offset is in the used area.
      unsafe mark(host + offset, bytes, in: map)
      return
    }
    fresh = true
    let (address, overflow) = used.addingReportingOverflow(UInt64(offset))
    if !overflow { target.log.mark(address, bytes) }
  }

  /// Tells whoever wants to know that there are new marks.
  @inline(never) mutating func announce() {
    guard fresh else { return }
    fresh = false
    target?.onMark?()
  }
}
