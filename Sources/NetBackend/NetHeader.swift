// The header before every frame on a virtio-net queue (virtio 1.3 §5.1.6), in all the sizes it has. Values; copied out of
// guest memory once before anything is decided on them.

/// How a header is laid out: which features make it longer. Both directions of a device use the same.
public struct NetHeaderLayout: Sendable, Equatable {
  /// Bytes: 10, 12 or 20.
  public let byteCount: Int

  /// - modern: VIRTIO_F_VERSION_1 was negotiated.
  /// - mergeable: VIRTIO_NET_F_MRG_RXBUF was.
  /// - hashReport: VIRTIO_NET_F_HASH_REPORT was.
  public init(modern: Bool, mergeable: Bool, hashReport: Bool) {
    byteCount = hashReport ? 20 : modern || mergeable ? 12 : 10
  }

  /// Whether the header has `num_buffers`.
  public var countsBuffers: Bool { byteCount >= 12 }
}

/// The fields of a header. Offsets and sizes in bytes; integers little-endian on the wire.
public struct NetHeader: Sendable, Equatable {
  /// What is to be done with checksums.
  public struct Flags: OptionSet, Sendable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    /// The checksum from `checksumStart` on is yet to be made, at `checksumOffset` from there.
    public static let needsChecksum = Flags(rawValue: 1)
    /// The checksum has been verified.
    public static let dataValid = Flags(rawValue: 2)
  }

  /// How a large packet is to be cut. A raw value that is none of these is the peer's mistake.
  public enum Segmentation: UInt8, Sendable {
    case none = 0
    case tcp4 = 1
    case udp = 3
    case tcp6 = 4
    case udpL4 = 5
  }
  /// Marks a TCP packet that carries congestion notification.
  public static let congestionBit: UInt8 = 0x80

  public var flags: Flags = []
  /// `Segmentation`, and maybe `congestionBit`.
  public var segmentationType: UInt8 = 0
  public var headerLength: UInt16 = 0
  public var segmentSize: UInt16 = 0
  public var checksumStart: UInt16 = 0
  public var checksumOffset: UInt16 = 0
  /// Buffers that a received frame takes; only where the layout counts them.
  public var bufferCount: UInt16 = 0

  public init() {}

  /// Reads a header; nil where the bytes are fewer than the layout's.
  public init?(_ bytes: [UInt8], layout: NetHeaderLayout) {
    guard bytes.count >= layout.byteCount else { return nil }
    func word(_ at: Int) -> UInt16 { UInt16(bytes[at]) | UInt16(bytes[at + 1]) << 8 }
    flags = Flags(rawValue: bytes[0])
    segmentationType = bytes[1]
    headerLength = word(2)
    segmentSize = word(4)
    checksumStart = word(6)
    checksumOffset = word(8)
    if layout.countsBuffers { bufferCount = word(10) }
  }

  /// From the first twelve bytes, as two little-endian words; `high` of a shorter header is zero where it ends.
  public init(low: UInt64, high: UInt32) {
    flags = Flags(rawValue: UInt8(truncatingIfNeeded: low))
    segmentationType = UInt8(truncatingIfNeeded: low >> 8)
    headerLength = UInt16(truncatingIfNeeded: low >> 16)
    segmentSize = UInt16(truncatingIfNeeded: low >> 32)
    checksumStart = UInt16(truncatingIfNeeded: low >> 48)
    checksumOffset = UInt16(truncatingIfNeeded: high)
    bufferCount = UInt16(truncatingIfNeeded: high >> 16)
  }

  /// The header's bytes; fields past `num_buffers` are zero.
  public func bytes(layout: NetHeaderLayout) -> [UInt8] {
    var bytes = [flags.rawValue, segmentationType]
    for word in [headerLength, segmentSize, checksumStart, checksumOffset] {
      bytes += [UInt8(truncatingIfNeeded: word), UInt8(truncatingIfNeeded: word >> 8)]
    }
    if layout.countsBuffers {
      bytes += [UInt8(truncatingIfNeeded: bufferCount), UInt8(truncatingIfNeeded: bufferCount >> 8)]
    }
    return bytes + [UInt8](repeating: 0, count: layout.byteCount - bytes.count)
  }

  /// What the type says, without the congestion bit; nil for a value that means nothing.
  public var segmentation: Segmentation? { Segmentation(rawValue: segmentationType & ~Self.congestionBit) }
}
