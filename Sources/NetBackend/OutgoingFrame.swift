// A frame on its way out of a guest: its head copied and held against the rules, and the vectors it is sent from. Used by
// both transmit workers, on the queue's thread.

import CLinux
import Glibc
import VirtQueue

/// How frames are read from chains in one session.
struct OutgoingFrame: Sendable {
  /// Room that a head takes: header and addresses.
  static var headRoom: Int { 64 }

  let headerBytes: Int
  private let rules: HeaderRules
  /// The only address that frames may come from; nil: any.
  private let source: MACAddress?
  /// What frames carry at the tap.
  private let tag: NetworkTag?

  init(terms: NetTerms, source: MACAddress?, tag: NetworkTag?) {
    headerBytes = terms.layout.byteCount
    rules = terms.rules
    self.source = source
    self.tag = tag
  }

  /// A head that was found right: what goes out in place of a chain's first bytes.
  struct Head: Sendable {
    /// Bytes of the chain, and bytes of the copy that stand for them.
    let replaced: Int
    let count: Int
  }

  enum Verdict {
    /// What is wrong, as it is counted.
    case drop(NetCounter)
    case send(Head)
  }

  /// Copies a chain's head to `head` and holds it against the rules; what is sent is the copy.
  // SAFETY: `head` has `headRoom` bytes at 8-byte alignment.
  @unsafe func examine(_ chain: borrowing Chain, head: UnsafeMutableRawPointer) -> Verdict {
    let bytes = Int(chain.readable.byteCount)
    let headBytes = headerBytes + EthernetFrame.headerBytes
    guard bytes >= headBytes, bytes <= headerBytes + NetTerms.longestFrame, chain.writable.byteCount == 0,
      !chain.hasHole
    else { return .drop(.malformed) }
    let target = unsafe UnsafeMutableRawBufferPointer(start: head, count: headBytes)
    guard unsafe chain.readable.copyOut(to: target) == headBytes else { return .drop(.malformed) }
    let low = unsafe UInt64(littleEndian: head.load(as: UInt64.self))
    let checksumOffset = unsafe UInt16(littleEndian: head.load(fromByteOffset: 8, as: UInt16.self))
    var header = NetHeader(low: low, high: UInt32(checksumOffset))
    if let source, unsafe Self.address(head + headerBytes + 6) != source.value { return .drop(.spoofed) }
    var out = Head(replaced: headBytes, count: headBytes)
    if let tag {
      let verdict = unsafe tag.put(into: head, headerBytes: headerBytes, of: chain, &header)
      guard case .send(let tagged) = verdict else { return verdict }
      out = tagged
    }
    if rules.fault(in: header, frameLength: bytes - headerBytes + out.count - out.replaced) != nil {
      return .drop(.badHeader)
    }
    // A checksum over addresses or tag is none, and making it would write what was checked anew.
    if header.flags.contains(.needsChecksum), Int(header.checksumStart) < out.count - headerBytes {
      return .drop(.badHeader)
    }
    // Flags that mean nothing here, and fields that are not the driver's, stay behind.
    header.flags.formIntersection(.needsChecksum)
    unsafe head.storeBytes(of: header.low.littleEndian, as: UInt64.self)
    for place in 10..<max(10, headerBytes) {
      unsafe head.storeBytes(of: 0, toByteOffset: place, as: UInt8.self)
    }
    return .send(out)
  }

  private static func address(_ place: UnsafeMutableRawPointer) -> UInt64 {
    // SAFETY: six bytes of a head.
    let low = unsafe UInt32(littleEndian: place.loadUnaligned(as: UInt32.self))
    let high = unsafe UInt16(littleEndian: place.loadUnaligned(fromByteOffset: 4, as: UInt16.self))
    return UInt64(low) | UInt64(high) << 32
  }

  /// The frame as vectors: the checked head, then the rest where it is. How many they are; nil where it has more pieces than
  /// `room` allows.
  // SAFETY: `vectors` has room for `room` and one more.
  @unsafe func gather(
    _ chain: borrowing Chain, _ out: Head, head: UnsafeMutableRawPointer,
    into vectors: UnsafeMutablePointer<iovec>, room: Int
  ) -> Int? {
    let parts = chain.readable
    guard parts.count <= room else { return nil }
    unsafe vectors[0] = iovec(iov_base: head, iov_len: out.count)
    var skip = out.replaced
    var count = 1
    for i in 0..<parts.count {
      let (start, length) = unsafe (parts.vectors[i].iov_base, parts.vectors[i].iov_len)
      if skip >= length {
        skip -= length
        continue
      }
      guard let base = unsafe start else { continue }
      unsafe vectors[count] = iovec(iov_base: base + skip, iov_len: length - skip)
      count += 1
      skip = 0
    }
    return count
  }

  /// What a port said of a frame it did not take, as it is counted.
  static func counter(for code: Int) -> NetCounter {
    switch Int32(truncatingIfNeeded: code) {
    case EIO, EBADFD, ENODEV, ENXIO, ENETDOWN: .linkDown
    case EAGAIN, ENOBUFS, ENOMEM: .noRoom
    default: .refused
    }
  }
}
