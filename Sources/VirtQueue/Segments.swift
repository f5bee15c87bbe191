// The readable or the writable part of a chain: bytes of guest memory, in order, however the driver cut them.
// Borrowed from a chain, on the queue's thread.
//
// The guest may change these bytes at any moment. What a device decides on, it copies out first, once
// (`copyOut`), and decides on the copy.

import CLinux
import Glibc

/// A view of one direction of a chain. Cannot outlive the chain it was borrowed from.
@safe public struct Segments: ~Escapable {
  // SAFETY: points into a live slot's segment array; the lifetime dependence on the chain keeps it there, and
  // the slot's generation keeps the memory that the segments name mapped.
  @usableFromInline let first: UnsafeMutablePointer<iovec>
  /// How many runs of host memory the bytes lie in.
  public let count: Int
  /// The bytes in all of them.
  public let byteCount: UInt32

  @inlinable @_lifetime(immortal)
  init(first: UnsafeMutablePointer<iovec>, count: Int, byteCount: UInt32) {
    unsafe self.first = unsafe first
    self.count = count
    self.byteCount = byteCount
  }

  /// The segments as the kernel takes them: `count` entries, for vectored I/O. An entry with a nil base
  /// is a hole, present only where the chain says `hasHole`.
  @unsafe @inlinable public var vectors: UnsafeMutablePointer<iovec> { unsafe first }

  /// One run of bytes; for a hole, no bytes at no address. `index` must be below `count`.
  @unsafe @inlinable public subscript(index: Int) -> UnsafeMutableRawBufferPointer {
    guard let base = unsafe first[index].iov_base else {
      return unsafe UnsafeMutableRawBufferPointer(start: nil, count: 0)
    }
    return unsafe UnsafeMutableRawBufferPointer(start: base, count: first[index].iov_len)
  }

  /// Copies bytes out, each read once, starting `offset` bytes in. Returns how many there were: fewer than
  /// `target` holds at the end of the segments or at a hole.
  @inlinable @inline(__always)
  public func copyOut(to target: UnsafeMutableRawBufferPointer, from offset: Int = 0) -> Int {
    // SAFETY: the bounds of both sides are checked just before each copy.
    if offset == 0, count > 0, let base = target.baseAddress, unsafe first[0].iov_len >= target.count,
      let source = unsafe first[0].iov_base
    {
      unsafe clx_copy_once(base, source, UInt(target.count))
      return target.count
    }
    return unsafe transfer(target, offset: offset, outward: true)
  }

  /// Copies bytes in, starting `offset` bytes into the segments. Returns how many fitted.
  @inlinable
  public func copyIn(from source: UnsafeRawBufferPointer, at offset: Int = 0) -> Int {
    // SAFETY: `transfer` only reads the buffer in this direction.
    unsafe transfer(UnsafeMutableRawBufferPointer(mutating: source), offset: offset, outward: false)
  }

  /// Calls `body` with each run of bytes in order, to be filled by it. Holes are passed over.
  /// Returns the bytes of the runs that `body` accepted; ends with the first that it did not.
  @inlinable
  public func fill(_ body: (inout MutableRawSpan) -> Bool) -> UInt32 {
    var written: UInt32 = 0
    for i in 0..<count {
      // SAFETY: a run of the chain's memory, alive as long as `self`; the span does not leave this call. The guest may
      // write there meanwhile: the bytes are for the guest, and nothing here reads them back.
      guard unsafe first[i].iov_base != nil else { continue }
      var span = unsafe MutableRawSpan(_unsafeStart: first[i].iov_base, byteCount: first[i].iov_len)
      guard body(&span) else { break }
      written &+= unsafe UInt32(truncatingIfNeeded: first[i].iov_len)
    }
    return written
  }

  @usableFromInline @inline(never)
  func transfer(_ buffer: UnsafeMutableRawBufferPointer, offset: Int, outward: Bool) -> Int {
    guard offset >= 0 else { return 0 }
    var skip = offset
    var done = 0
    var i = 0
    while i < count, done < buffer.count {
      // SAFETY: i < count; skip < iov_len; the length is the smaller of what both sides have left.
      let length = unsafe first[i].iov_len
      if skip >= length {
        skip -= length
      } else {
        guard let base = unsafe first[i].iov_base else { return done }
        let part = min(length - skip, buffer.count - done)
        guard let near = buffer.baseAddress else { return done }
        if outward {
          unsafe clx_copy_once(near + done, base + skip, UInt(part))
        } else {
          unsafe clx_copy_once(base + skip, near + done, UInt(part))
        }
        done += part
        skip = 0
      }
      i += 1
    }
    return done
  }
}

extension Segments {
  /// A value of a trivial type, each byte read once, `offset` bytes in; nil where the segments end before it does.
  @inlinable @inline(__always)
  public func load<T: BitwiseCopyable & ExpressibleByIntegerLiteral>(_ type: T.Type, at offset: Int = 0) -> T?
  {
    var value: T = 0
    // SAFETY: the buffer is the local value.
    let done = unsafe withUnsafeMutableBytes(of: &value) { unsafe copyOut(to: $0, from: offset) }
    return done == MemoryLayout<T>.size ? value : nil
  }

  /// Writes one byte, `offset` bytes in. False where there is no such byte.
  @inlinable public func store(_ byte: UInt8, at offset: Int) -> Bool {
    // SAFETY: the buffer is the local value.
    unsafe withUnsafeBytes(of: byte) { unsafe copyIn(from: $0, at: offset) } == 1
  }
}
