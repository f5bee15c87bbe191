// A frame on its way from a sender's memory to its receivers: what was copied out and decided on, and where the rest
// lies. Lives for one call on the switch's queue thread.

import CLinux
import Glibc
import NetBackend

/// Destination and source, then the type: always the copy that decisions were made on, never read again.
struct LinkHeader {
  /// Twelve bytes: destination, source, the first one lowest.
  var low: UInt64 = 0
  var high: UInt32 = 0
  /// As on the wire, the first byte lowest.
  var type: UInt16 = 0

  @inline(__always) var destination: UInt64 { low & 0xffff_ffff_ffff }
  @inline(__always) var source: UInt64 { low >> 48 | UInt64(high) << 16 }
  static let byteCount = 14
}

@safe struct Frame {
  // SAFETY: `count` segments of the sender's chain, which is out for as long as the frame is on its way; the memory map it
  // was read under stays with it.
  let segments: UnsafePointer<iovec>
  let count: Int
  /// Where what follows the link header (and the tag that was taken out) begins, in bytes of the segments, and how long it is.
  let payloadStart: Int
  let payload: Int
  var link: LinkHeader
  /// What is left undone: checksum and segmentation; its offsets count from the frame's start as it is without a tag of
  /// the switch's own.
  var header: NetHeader
  /// The network that the frame is in, 0: the transparent one; and the priority bits of the tag that was taken out.
  let network: UInt16
  let priority: UInt16

  /// Goes out with a tag that says `network`.
  var isTagged = false

  /// Bytes without a tag of the switch's own.
  var byteCount: Int { LinkHeader.byteCount + payload }

  /// Copies the first bytes of the payload out, once; how many there were.
  // SAFETY: `target` has room for `wanted` bytes.
  @unsafe func copyPayload(to target: UnsafeMutableRawPointer, _ wanted: Int) -> Int {
    var done = 0
    var skip = payloadStart
    for i in 0..<count where done < wanted {
      // SAFETY: i < count; the part ends within the segment and within `target`.
      let length = unsafe segments[i].iov_len
      if skip >= length {
        skip -= length
        continue
      }
      let part = min(length - skip, wanted - done)
      guard let base = unsafe segments[i].iov_base else { break }
      unsafe clx_copy_once(target + done, base + skip, UInt(part))
      done += part
      skip = 0
    }
    return done
  }
}
