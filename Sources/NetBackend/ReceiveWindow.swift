// The receive buffers that wait for the next frames: held chains, in the order they came, and one array of vectors over
// all of them, so that a frame is read straight into as many as it takes. On the queue's thread.

import CLinux
import Glibc
import VirtQueue

@safe struct ReceiveWindow: ~Copyable {
  /// The kernel takes 1024 vectors a call; one is for what runs over.
  static var mostSegments: Int { 1000 }

  struct Buffer {
    var head: UInt16
    var segments: UInt16
    var bytes: Int
  }

  // SAFETY: `capacity` vectors; `first`..<`first + segmentCount` are of held chains, whose memory stays mapped, and one more
  // is always there for the tail.
  private let vectors: UnsafeMutablePointer<iovec>
  private static var capacity: Int { 4 * mostSegments + 1 }
  private var first = 0
  private(set) var segmentCount = 0
  /// The chains, oldest first, in a circle.
  // SAFETY: `size` of them; indices are kept below it.
  private let buffers: UnsafeMutablePointer<Buffer>
  private let size: Int
  private var oldest = 0
  private(set) var count = 0
  /// Bytes in all of them.
  private(set) var bytes = 0

  init(size: UInt16) {
    self.size = max(1, Int(size))
    unsafe vectors = .allocate(capacity: Self.capacity)
    unsafe vectors.initialize(repeating: iovec(), count: Self.capacity)
    unsafe buffers = .allocate(capacity: self.size)
    unsafe buffers.initialize(repeating: Buffer(head: 0, segments: 0, bytes: 0), count: self.size)
  }

  deinit {
    unsafe vectors.deallocate()
    unsafe buffers.deallocate()
  }

  var isEmpty: Bool { count == 0 }
  /// More would not help: the queue has no more, or the kernel takes no more.
  var isExhausted: Bool { count >= size || segmentCount >= min(size, Self.mostSegments) }
  var hasRoom: Bool { count < size && segmentCount < Self.mostSegments }

  /// Notes a chain's writable part: as much of it as one call can take. Its bytes; `add` follows, with the head.
  mutating func note(_ chain: borrowing Chain) -> Buffer {
    let part = chain.writable
    let taken = min(part.count, Self.mostSegments)
    if first + segmentCount + taken >= Self.capacity {
      // SAFETY: both runs are within `capacity`: there are never more than 2 * mostSegments in use.
      unsafe memmove(vectors, vectors + first, segmentCount * MemoryLayout<iovec>.stride)
      first = 0
    }
    var sum = 0
    for i in 0..<taken {
      // SAFETY: i < part.count, and there is room, as above.
      // The walk stored base and length one by one just now; loaded as one, they would wait until both are in the cache.
      let base = unsafe UnsafeMutableRawPointer(bitPattern: UInt(clx_load_relaxed_u64(part.vectors + i)))
      let length = unsafe part.vectors[i].iov_len
      unsafe vectors[first + segmentCount + i] = iovec(iov_base: base, iov_len: length)
      sum += length
    }
    return Buffer(head: 0, segments: UInt16(taken), bytes: sum)
  }

  mutating func add(_ noted: Buffer, head: UInt16) {
    var buffer = noted
    buffer.head = head
    let place = oldest + count
    // SAFETY: below `size` after the wrap.
    unsafe buffers[place >= size ? place - size : place] = buffer
    count += 1
    segmentCount += Int(buffer.segments)
    bytes += buffer.bytes
  }

  /// How many buffers the first `bytes` take.
  func buffersNeeded(for bytes: Int) -> Int {
    var left = bytes
    var number = 0
    while number < count, left > 0 {
      let place = oldest + number
      // SAFETY: as above.
      unsafe left -= buffers[place >= size ? place - size : place].bytes
      number += 1
    }
    return number
  }

  /// Takes the oldest buffer out.
  mutating func popFirst() -> Buffer? {
    guard count > 0 else { return nil }
    // SAFETY: oldest < size.
    let buffer = unsafe buffers[oldest]
    oldest += 1
    if oldest == size { oldest = 0 }
    count -= 1
    first += Int(buffer.segments)
    segmentCount -= Int(buffer.segments)
    if segmentCount == 0 { first = 0 }
    bytes -= buffer.bytes
    return buffer
  }

  /// Takes the newest buffer out.
  mutating func popLast() -> Buffer? {
    guard count > 0 else { return nil }
    let place = oldest + count - 1
    // SAFETY: as above.
    let buffer = unsafe buffers[place >= size ? place - size : place]
    count -= 1
    segmentCount -= Int(buffer.segments)
    bytes -= buffer.bytes
    return buffer
  }

  /// The vectors of all buffers, and behind them one over `spare`, for what runs over.
  @unsafe mutating func target(
    spare: UnsafeMutableRawPointer, _ length: Int
  ) -> (first: UnsafePointer<iovec>, count: Int) {
    guard length > 0 else { return unsafe (UnsafePointer(vectors + first), segmentCount) }
    // SAFETY: the place behind the last vector is within `capacity`.
    unsafe vectors[first + segmentCount] = iovec(iov_base: spare, iov_len: length)
    return unsafe (UnsafePointer(vectors + first), segmentCount + 1)
  }

  /// Copies the vectors of all buffers but for the first bytes; how many they are, at most `mostSegments`.
  // SAFETY: `list` has room for `mostSegments`.
  @unsafe func copyVectors(to list: UnsafeMutablePointer<iovec>, skipping bytes: Int) -> Int {
    var skip = bytes
    var used = 0
    for i in first..<first + segmentCount {
      // SAFETY: i is of a held chain's vector; what is skipped is within it.
      let (base, length) = unsafe (vectors[i].iov_base, vectors[i].iov_len)
      if skip >= length {
        skip -= length
        continue
      }
      guard used < Self.mostSegments else { break }
      unsafe list[used] = iovec(iov_base: base.map { unsafe $0 + skip }, iov_len: length - skip)
      used += 1
      skip = 0
    }
    return used
  }

  /// Makes the first bytes zeros.
  mutating func wipe(_ length: Int) {
    var left = length
    for i in first..<first + segmentCount where left > 0 {
      // SAFETY: i is of a held chain's vector.
      let part = unsafe min(left, vectors[i].iov_len)
      if let base = unsafe vectors[i].iov_base { unsafe memset(base, 0, part) }
      left -= part
    }
  }

  /// Copies bytes into the buffers, from the start of the oldest plus `offset`.
  @inline(__always)
  mutating func write(_ source: UnsafeRawPointer, _ length: Int, at offset: Int) {
    if let place = unsafe straight(offset, length) {
      unsafe clx_copy_once(place, source, UInt(length))
      return
    }
    unsafe move(UnsafeMutableRawPointer(mutating: source), length, offset: offset, outward: false)
  }

  /// Copies bytes out of the buffers.
  @inline(__always)
  func read(_ target: UnsafeMutableRawPointer, _ length: Int, at offset: Int) {
    if let place = unsafe straight(offset, length) {
      unsafe clx_copy_once(target, place, UInt(length))
      return
    }
    unsafe move(target, length, offset: offset, outward: true)
  }

  /// Where bytes of the first segment are; nil where not all of them are in it.
  @inline(__always)
  private func straight(_ offset: Int, _ length: Int) -> UnsafeMutableRawPointer? {
    // SAFETY: the first vector is always there, and of a held chain while there is a segment.
    guard segmentCount > 0, unsafe vectors[first].iov_len >= offset + length else { return nil }
    return unsafe vectors[first].iov_base.map { unsafe $0 + offset }
  }

  @inline(never)
  private func move(_ near: UnsafeMutableRawPointer, _ length: Int, offset: Int, outward: Bool) {
    var skip = offset
    var done = 0
    var i = first
    while i < first + segmentCount, done < length {
      // SAFETY: i is of a held chain's vector; the part is within it and within `length`.
      let (start, here) = unsafe (vectors[i].iov_base, vectors[i].iov_len)
      i += 1
      if skip >= here {
        skip -= here
        continue
      }
      let part = min(here - skip, length - done)
      guard let base = unsafe start else { return }
      if outward {
        unsafe clx_copy_once(near + done, base + skip, UInt(part))
      } else {
        unsafe clx_copy_once(base + skip, near + done, UInt(part))
      }
      done += part
      skip = 0
    }
  }
}
