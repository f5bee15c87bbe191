// Ends without a kernel device, to measure with: a source of frames, and a loop that gives a pair its own frames back. On
// the queues' thread.

import CLinux
import Glibc

/// Takes everything, and always has a frame: 64 bytes of UDP on the wire, to everybody.
@safe struct SourcePort: ~Copyable, PacketPort {
  // SAFETY: `length` bytes, made here and released with the port.
  private let frame: UnsafeMutableRawPointer
  private let length: Int

  init(header: Int) {
    let bytes = [UInt8](repeating: 0, count: header) + Self.datagram
    length = bytes.count
    unsafe frame = .allocate(byteCount: bytes.count, alignment: 16)
    // SAFETY: as many bytes as were allocated.
    unsafe frame.copyMemory(from: bytes, byteCount: bytes.count)
  }

  deinit { unsafe frame.deallocate() }

  var hasFrames: Bool { true }

  mutating func receive(_ vectors: UnsafePointer<iovec>, count: Int) -> Int {
    // SAFETY: the caller's vectors; no more than `length` bytes of the frame are read.
    unsafe scatter(frame, length, into: vectors, count: count)
  }

  mutating func send(_ vectors: UnsafePointer<iovec>, count: Int) -> Int { 1 }

  /// 60 bytes, without the checksum that the wire adds: UDP from 10.0.0.1 to 10.0.0.2, the discard port, no UDP checksum.
  private static let datagram: [UInt8] =
    [UInt8](repeating: 0xff, count: 6) + [0x02, 0, 0, 0, 0, 1, 8, 0]
    + [0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0x66, 0xbd, 10, 0, 0, 1, 10, 0, 0, 2]
    + [0, 9, 0, 9, 0, 26, 0, 0] + [UInt8](repeating: 0, count: 18)
}

/// Copies bytes into vectors, as far as they reach; how many fitted.
@unsafe func scatter(
  _ bytes: UnsafeRawPointer, _ length: Int, into vectors: UnsafePointer<iovec>, count: Int
) -> Int {
  var done = 0
  var i = 0
  while i < count, done < length {
    // SAFETY: i < count; the part is within the vector and within `length`.
    let part = unsafe min(length - done, vectors[i].iov_len)
    if let base = unsafe vectors[i].iov_base { unsafe clx_copy_once(base, bytes + done, UInt(part)) }
    done += part
    i += 1
  }
  return done
}

/// The frames between a pair's two workers: bytes, one frame behind another. A frame that finds no room is lost.
// SAFETY (Sendable): both workers of a pair are on one thread (NetDevice.group), and so is their making.
@safe final class LoopChannel: @unchecked Sendable {
  private static var capacity: Int { 1 << 20 }
  // SAFETY: `capacity` bytes, alive with the channel.
  private let bytes: UnsafeMutableRawPointer
  /// Where the next frame is read and written; records are {u64 length, bytes, padding to 8}, never cut in two.
  private var head = 0
  private var tail = 0
  private var used = 0

  init() { unsafe bytes = .allocate(byteCount: Self.capacity, alignment: 64) }
  deinit { unsafe bytes.deallocate() }

  var isEmpty: Bool { used == 0 }

  func clear() { (head, tail, used) = (0, 0, 0) }

  private static func room(for length: Int) -> Int { 8 + (length + 7) & ~7 }

  func push(_ vectors: UnsafePointer<iovec>, count: Int) -> Int {
    var length = 0
    for i in 0..<count { unsafe length += vectors[i].iov_len }
    let room = Self.room(for: length)
    let rest = Self.capacity - tail
    // A record that does not fit before the end begins at the start; what is left is marked by a length that none has.
    let skipped = rest < room ? rest : 0
    guard used + room + skipped <= Self.capacity else { return -Int(ENOBUFS) }
    if skipped > 0 {
      // SAFETY: records are multiples of 8, so at least 8 bytes are left.
      unsafe bytes.storeBytes(of: UInt64.max, toByteOffset: tail, as: UInt64.self)
      used += skipped
      tail = 0
    }
    unsafe bytes.storeBytes(of: UInt64(length), toByteOffset: tail, as: UInt64.self)
    var at = tail + 8
    for i in 0..<count {
      // SAFETY: the lengths were added up before, and there is room for their sum. The caller's array is its own: it does
      // not change, only what it names does.
      guard let base = unsafe vectors[i].iov_base else { continue }
      unsafe clx_copy_once(bytes + at, base, UInt(vectors[i].iov_len))
      unsafe at += vectors[i].iov_len
    }
    used += room
    tail += room
    if tail == Self.capacity { tail = 0 }
    return length
  }

  func pop(into vectors: UnsafePointer<iovec>, count: Int) -> Int {
    guard used > 0 else { return 0 }
    // SAFETY: a record or a mark is at `head`, as `push` wrote it.
    var length = unsafe bytes.load(fromByteOffset: head, as: UInt64.self)
    if length == .max {
      used -= Self.capacity - head
      head = 0
      unsafe length = bytes.load(fromByteOffset: 0, as: UInt64.self)
    }
    let bytesHere = Int(length)
    let done = unsafe scatter(bytes + head + 8, bytesHere, into: vectors, count: count)
    let room = Self.room(for: bytesHere)
    used -= room
    head += room
    if head == Self.capacity { head = 0 }
    // Begun anew when it is empty, so that few frames need few lines of the cache.
    if used == 0 { clear() }
    return done
  }
}

/// What a pair sends comes back to it.
struct LoopPort: PacketPort {
  let channel: LoopChannel

  var hasFrames: Bool { !channel.isEmpty }
  mutating func receive(_ vectors: UnsafePointer<iovec>, count: Int) -> Int {
    // SAFETY: the caller's vectors.
    unsafe channel.pop(into: vectors, count: count)
  }
  mutating func send(_ vectors: UnsafePointer<iovec>, count: Int) -> Int {
    // SAFETY: the caller's vectors.
    unsafe channel.push(vectors, count: count)
  }
}
