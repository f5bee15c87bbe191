// A block request between its chain's arrival and its completion: what is left to move, and where the status goes. On the
// queue's thread.

import Glibc
import VirtQueue

/// Vectors that are still to be moved. They are the chain's own segments, cut in place as the transfer goes on.
@safe struct VectorRun {
  // SAFETY: `count` entries of a held chain's segment array, which stays where it is until the chain is completed.
  private(set) var first: UnsafeMutablePointer<iovec>
  private(set) var count: Int

  /// All of one direction of a chain that is going to be held.
  init(_ part: borrowing Segments) {
    unsafe first = unsafe part.vectors
    count = part.count
  }

  /// Steps over bytes that were moved, or that are no data.
  mutating func dropFirst(_ bytes: Int) {
    var skip = bytes
    // SAFETY: stops at the end of the run.
    while count > 0, unsafe skip >= first.pointee.iov_len {
      skip -= unsafe first.pointee.iov_len
      unsafe first += 1
      count -= 1
    }
    if count > 0, skip > 0 {
      unsafe first.pointee.iov_base = unsafe first.pointee.iov_base.map { unsafe $0 + skip }
      unsafe first.pointee.iov_len -= skip
    }
  }

  /// Whether every vector begins and ends at a multiple of `unit`, a power of two.
  func isAligned(to unit: UInt) -> Bool {
    for i in 0..<count {
      // SAFETY: i < count.
      let vector = unsafe first[i]
      if unsafe (UInt(bitPattern: vector.iov_base) | UInt(vector.iov_len)) & (unit - 1) != 0 { return false }
    }
    return true
  }

  /// Leaves off the last byte: the status's place.
  mutating func dropLastByte() {
    guard count > 0 else { return }
    // SAFETY: a segment is never empty.
    unsafe first[count - 1].iov_len -= 1
    if unsafe first[count - 1].iov_len == 0 { count -= 1 }
  }
}

/// The status byte's place in guest memory: the last byte a chain lets us write, wherever the driver cut it.
@safe struct StatusPlace {
  // SAFETY: in the writable part of a chain that is not completed yet.
  let byte: UnsafeMutableRawPointer

  /// Nil where there is no such byte, or none in guest memory.
  init?(in writable: borrowing Segments) {
    guard writable.count > 0 else { return nil }
    // SAFETY: a segment is never empty, so its last byte is inside it.
    let last = unsafe writable[writable.count - 1]
    guard let base = last.baseAddress else { return nil }
    unsafe byte = unsafe base + (last.count - 1)
  }
}

/// A request whose I/O runs.
struct BlockRequest {
  enum Kind: Sendable { case read, write, flush }

  let kind: Kind
  let status: StatusPlace
  var data: VectorRun
  /// Where the rest of the data begins, and how much of `total` it is. Bytes.
  var offset: UInt64 = 0
  var left: UInt32 = 0
  var total: UInt32 = 0
  var retries: UInt8 = 0
  /// The number of the array that holds the vectors of the run that begins here.
  var runArray: UInt8 = 0
  /// The next request of the same run, which one operation moves; `none` at its end, and for a request by itself.
  var follower = BlockRequest.none

  /// No head: those are below 32768.
  static let none = UInt16.max
}
