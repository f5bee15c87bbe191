// A receiver's buffers, gathered for one frame and filled in order. On the queue thread of all ports.
//
// The receiver may write there meanwhile. Nothing here decides by what is read back; a checksum that the guest spoils is its
// own loss.

import CLinux
import DeviceKit
import Glibc
import VirtQueue

@safe struct FrameSink: ~Copyable {
  /// Buffers one frame may take: a 64 KiB frame in buffers of 512 bytes.
  static let chainLimit = 128
  private static let vectorLimit = 2048

  // SAFETY: `vectorLimit` vectors, of which `vectorCount` name memory of chains that are held; heads and sizes of
  // `chainLimit` chains. Alive with the sink.
  private let vectors: UnsafeMutablePointer<iovec>
  private let chains: UnsafeMutablePointer<(head: UInt16, bytes: Int)>
  private var vectorCount = 0
  private(set) var chainCount = 0
  /// Room in all of them.
  private(set) var bytes = 0
  /// Where the next byte goes: a vector and a place in it.
  private var vector = 0
  private var place = 0

  init() {
    unsafe vectors = .allocate(capacity: Self.vectorLimit)
    unsafe chains = .allocate(capacity: Self.chainLimit)
  }

  deinit {
    unsafe vectors.deallocate()
    unsafe chains.deallocate()
  }

  mutating func clear() {
    (vectorCount, chainCount, bytes, vector, place) = (0, 0, 0, 0, 0)
  }

  /// Whether another chain, in as many pieces as this one, has a place.
  @inline(__always)
  func hasRoom(for chain: borrowing Chain) -> Bool {
    chainCount < Self.chainLimit && vectorCount &+ chain.writable.count <= Self.vectorLimit
  }

  /// Takes a chain, which is held.
  @inline(__always)
  mutating func add(_ chain: consuming Chain) {
    let size = chain.byteCount
    do {
      let part = chain.writable
      for i in 0..<part.count {
        // SAFETY: there is room (`hasRoom`); i is below the part's count.
        unsafe vectors[vectorCount &+ i] = unsafe part.vectors[i]
      }
      vectorCount &+= part.count
    }
    bytes &+= size
    unsafe chains[chainCount] = (chain.hold(), size)
    chainCount &+= 1
  }

  /// Completes the chains, the first ones full, with `total` bytes in all.
  @inline(__always)
  mutating func complete<R: VirtRing & ~Copyable>(_ total: Int, _ q: inout QueueIO<R>) {
    var left = total
    for i in 0..<chainCount {
      // SAFETY: i < chainCount.
      let (head, size) = unsafe chains[i]
      let part = min(left, size)
      left &-= part
      if let chain = q.take(head) { q.complete(chain, written: UInt32(truncatingIfNeeded: part)) }
    }
    clear()
  }

  /// Puts the chains back where they were, the last one first.
  mutating func giveBack<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    for i in (0..<chainCount).reversed() {
      // SAFETY: i < chainCount.
      if let chain = q.take(unsafe chains[i].head) { q.untake(chain) }
    }
    clear()
  }

  // MARK: Filling

  /// Copies `count` bytes to the next place. The sink has room for them.
  @unsafe @inline(__always)
  mutating func put(_ source: UnsafeRawPointer, _ count: Int) {
    var done = 0
    while done < count, vector < vectorCount {
      // SAFETY: vector < vectorCount; the part ends within the vector and within the source.
      let room = unsafe vectors[vector].iov_len &- place
      let part = min(room, count &- done)
      if let base = unsafe vectors[vector].iov_base {
        unsafe clx_copy_once(base + place, source + done, UInt(bitPattern: part))
      }
      done &+= part
      place &+= part
      if part == room {
        vector &+= 1
        place = 0
      }
    }
  }

  /// Copies `count` bytes of a sender's segments, `offset` bytes into them, to the next place: the one copy of a frame.
  @inline(__always)
  mutating func put(_ frame: borrowing Frame, from offset: Int, _ count: Int) {
    var skip = offset
    var left = count
    for i in 0..<frame.count {
      guard left > 0 else { return }
      // SAFETY: i < count; the part ends within the segment. A segment without memory (`hasHole`) is in no frame.
      let length = unsafe frame.segments[i].iov_len
      if skip >= length {
        skip &-= length
        continue
      }
      let part = min(length &- skip, left)
      if let base = unsafe frame.segments[i].iov_base { unsafe put(base + skip, part) }
      left &-= part
      skip = 0
    }
  }

  // MARK: Checksums

  /// The sum of the 16-bit words from `start` to `end` of what was filled, as they lie in memory, not yet folded to the end.
  func sum(from start: Int, to end: Int) -> UInt16 {
    var total: UInt32 = 0
    var at = 0
    for i in 0..<vectorCount {
      // SAFETY: i < vectorCount; first..<last is within the vector.
      let length = unsafe vectors[i].iov_len
      let first = max(start, at)
      let last = min(end, at &+ length)
      if first < last, let base = unsafe vectors[i].iov_base {
        let part = unsafe clx_checksum(base + (first &- at), UInt(last &- first))
        // A piece that begins in the middle of a word has its bytes the other way round (RFC 1071 §2).
        total &+= UInt32((first &- start) & 1 == 0 ? part : part.byteSwapped)
      }
      at &+= length
      if at >= end { break }
    }
    return Checksum.folded(total)
  }

  /// Writes a 16-bit word as it is to lie in memory, `offset` bytes into what was filled.
  mutating func store(_ word: UInt16, at offset: Int) {
    let (oldVector, oldPlace) = (vector, place)
    vector = 0
    place = offset
    // SAFETY: vector < vectorCount.
    while vector < vectorCount, unsafe place >= vectors[vector].iov_len {
      place &-= unsafe vectors[vector].iov_len
      vector &+= 1
    }
    // SAFETY: two bytes of the local value.
    unsafe withUnsafeBytes(of: word) { bytes in
      if let base = bytes.baseAddress { unsafe put(base, 2) }
    }
    (vector, place) = (oldVector, oldPlace)
  }
}

/// The arithmetic of RFC 1071, on words as they lie in memory: a sum keeps its byte order.
enum Checksum {
  static func folded(_ sum: UInt32) -> UInt16 {
    let once = (sum & 0xffff) &+ (sum >> 16)
    return UInt16(truncatingIfNeeded: (once & 0xffff) &+ (once >> 16))
  }

  /// What goes into a field whose sum, without it, is this. Never 0, which means "none" in UDP.
  static func field(_ sum: UInt16) -> UInt16 { sum == 0xffff ? 0xffff : ~sum }
}
