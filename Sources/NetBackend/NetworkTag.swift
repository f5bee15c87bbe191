// A guest's network: the tag of IEEE 802.1Q that its frames carry at the tap and that the guest does not see. What a tag
// does to the fields of a header that count from the frame's start. On the queues' threads.

import CLinux
import Glibc
import VirtQueue

/// The network of one card (`--vlan`).
public struct NetworkTag: Sendable, Equatable {
  /// 1 to 4094.
  public let number: UInt16

  public init?(_ number: Int) {
    guard (1...4094).contains(number) else { return nil }
    self.number = UInt16(number)
  }

  @inlinable package static var byteCount: Int { 4 }
  /// As on the wire, the first byte lowest.
  @inlinable package static var type: UInt16 { 0x0081 }
  /// Whether it is the type of a tag, of a provider's tag, or of the one that came before that.
  @inlinable package static func isTag(_ type: UInt16) -> Bool {
    type == Self.type || type == 0xa888 || type == 0x0091
  }

  /// The tag's four bytes.
  var bytes: [UInt8] { [0x81, 0, UInt8(number >> 8), UInt8(truncatingIfNeeded: number)] }

  /// Puts the tag into the copied head of a frame that a guest sends. A tag of its own is taken as a priority where it names no
  /// network, and is no frame of this network where it does, or where another one follows it.
  // SAFETY: `head` holds header, addresses and type, and has room for 8 more.
  @unsafe func put(
    into head: UnsafeMutableRawPointer, headerBytes: Int, of chain: borrowing Chain, _ header: inout NetHeader
  ) -> OutgoingFrame.Verdict {
    let place = unsafe head + headerBytes + 12
    let type = unsafe UInt16(littleEndian: place.loadUnaligned(as: UInt16.self))
    var control = number
    let untagged = headerBytes + EthernetFrame.headerBytes
    let tagged = untagged + Self.byteCount
    if type == Self.type {
      let rest = unsafe UnsafeMutableRawBufferPointer(start: place + 2, count: Self.byteCount)
      guard unsafe chain.readable.copyOut(to: rest, from: untagged) == Self.byteCount else {
        return .drop(.malformed)
      }
      let own = unsafe UInt16(bigEndian: place.loadUnaligned(fromByteOffset: 2, as: UInt16.self))
      let inner = unsafe UInt16(littleEndian: place.loadUnaligned(fromByteOffset: 4, as: UInt16.self))
      guard own & 0xfff == 0, !Self.isTag(inner) else { return .drop(.wrongNetwork) }
      control |= own
    } else {
      guard !Self.isTag(type) else { return .drop(.wrongNetwork) }
      guard header.grow(by: Self.byteCount) else { return .drop(.badHeader) }
      unsafe place.storeBytes(of: type.littleEndian, toByteOffset: 4, as: UInt16.self)
      unsafe place.storeBytes(of: Self.type.littleEndian, as: UInt16.self)
    }
    unsafe place.storeBytes(of: control.bigEndian, toByteOffset: 2, as: UInt16.self)
    return .send(.init(replaced: type == Self.type ? tagged : untagged, count: tagged))
  }
}

extension NetHeader {
  /// The frame has become longer by so many bytes before what the fields point at. False where they cannot say so.
  package mutating func grow(by bytes: Int) -> Bool {
    let count = UInt16(bytes)
    if flags.contains(.needsChecksum) {
      guard checksumStart <= .max - count else { return false }
      checksumStart += count
    }
    if headerLength > 0 { headerLength = headerLength > .max - count ? .max : headerLength + count }
    return true
  }

  /// The frame has become shorter. False where the checksum is one over what was taken out.
  package mutating func shrink(by bytes: Int) -> Bool {
    let count = UInt16(bytes)
    if flags.contains(.needsChecksum) {
      guard Int(checksumStart) >= EthernetFrame.headerBytes + bytes else { return false }
      checksumStart -= count
    }
    headerLength = headerLength > count ? headerLength - count : 0
    return true
  }

  /// The first eight bytes, as `init(low:high:)` reads them.
  @inlinable package var low: UInt64 {
    UInt64(flags.rawValue) | UInt64(segmentationType) << 8 | UInt64(headerLength) << 16
      | UInt64(segmentSize) << 32 | UInt64(checksumStart) << 48
  }
}

/// Reads frames of one network straight into the receive window, without their tag: header, addresses and tag come into
/// memory of our own, and what follows the tag to its place in the window. Frames of other networks are found out then,
/// and what they left in the window is wiped.
@safe final class TaggedReader {
  private let tag: NetworkTag
  private let headerBytes: Int
  /// Header, addresses, and the tag behind them.
  private let headBytes: Int
  // SAFETY: `headBytes` within 64; one vector for the head, those of a window, and one for what runs over.
  private let head: UnsafeMutableRawPointer
  private let vectors: UnsafeMutablePointer<iovec>

  init(_ tag: NetworkTag, headerBytes: Int) {
    self.tag = tag
    self.headerBytes = headerBytes
    headBytes = headerBytes + 12 + NetworkTag.byteCount
    unsafe head = .allocate(byteCount: 64, alignment: 16)
    unsafe head.initializeMemory(as: UInt8.self, repeating: 0, count: 64)
    unsafe vectors = .allocate(capacity: ReceiveWindow.mostSegments + 2)
  }

  deinit {
    unsafe head.deallocate()
    unsafe vectors.deallocate()
  }

  /// Bytes of the window that are written from the copy: it has to hold as many before a frame is read.
  var copiedBytes: Int { headBytes - NetworkTag.byteCount }

  /// Where the next frame is read to, or the last one was.
  @unsafe func target(
    _ window: borrowing ReceiveWindow, spare: UnsafeMutableRawPointer, _ length: Int
  ) -> (first: UnsafePointer<iovec>, count: Int) {
    unsafe vectors[0] = iovec(iov_base: head, iov_len: headBytes)
    var count = 1 + (unsafe window.copyVectors(to: vectors + 1, skipping: copiedBytes))
    if length > 0 {
      // SAFETY: a window has at most `mostSegments`.
      unsafe vectors[count] = iovec(iov_base: spare, iov_len: length)
      count += 1
    }
    return unsafe (UnsafePointer(vectors), count)
  }

  /// Takes the tag out of a frame of so many bytes, tag and header included. What is wrong with it, or nil.
  func strip(_ bytes: Int, in window: inout ReceiveWindow) -> NetCounter? {
    // SAFETY: offsets within the head.
    guard bytes >= headBytes + 2 else { return .runts }
    let place = unsafe head + headerBytes + 12
    let type = unsafe place.load(as: UInt16.self)
    let control = unsafe UInt16(bigEndian: place.load(fromByteOffset: 2, as: UInt16.self))
    guard UInt16(littleEndian: type) == NetworkTag.type, control & 0xfff == tag.number else {
      return .wrongNetwork
    }
    let low = unsafe UInt64(littleEndian: head.load(as: UInt64.self))
    let offset = unsafe UInt16(littleEndian: head.load(fromByteOffset: 8, as: UInt16.self))
    var header = NetHeader(low: low, high: UInt32(offset))
    guard header.shrink(by: NetworkTag.byteCount) else { return .badHeader }
    unsafe head.storeBytes(of: header.low.littleEndian, as: UInt64.self)
    unsafe window.write(head, copiedBytes, at: 0)
    return nil
  }

  /// The type of segmentation of the frame that was read last.
  var segmentation: UInt8 { unsafe head.load(fromByteOffset: 1, as: UInt8.self) }
}
