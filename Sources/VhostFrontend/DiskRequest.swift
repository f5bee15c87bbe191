// A virtio-blk request as a driver thinks of it (virtio 1.3 §5.2.6), before it is cut into descriptors. Used
// with BlockQueue and BlockDriver; any thread.

/// A range for discard, write zeroes and secure erase.
public struct DiskSegment: Equatable, Sendable {
  public var sector: UInt64
  public var sectors: UInt32
  /// Bit 0: unmap.
  public var flags: UInt32

  public init(sector: UInt64, sectors: UInt32, flags: UInt32 = 0) {
    (self.sector, self.sectors, self.flags) = (sector, sectors, flags)
  }

  public var bytes: [UInt8] {
    var writer = WireWriter()
    writer.put(sector)
    writer.put(sectors)
    writer.put(flags)
    return writer.bytes
  }
}

public struct DiskRequest: Equatable, Sendable {
  public enum Kind {
    public static let read: UInt32 = 0
    public static let write: UInt32 = 1
    public static let flush: UInt32 = 4
    public static let getID: UInt32 = 8
    public static let getLifetime: UInt32 = 10
    public static let discard: UInt32 = 11
    public static let writeZeroes: UInt32 = 13
    public static let secureErase: UInt32 = 14
  }

  /// Status bytes.
  public static let ok: UInt8 = 0
  public static let ioError: UInt8 = 1
  public static let unsupported: UInt8 = 2
  /// What the status byte holds until the device writes it.
  public static let untouched: UInt8 = 0xff

  public var type: UInt32
  public var reserved: UInt32 = 0
  public var sector: UInt64
  /// What the device reads behind the header.
  public var output: [UInt8]
  /// Bytes the device writes before the status.
  public var inputBytes: Int
  /// Where `output`, or else the input, lies in guest memory; nil for the slot's own buffer. Output is copied
  /// there.
  public var dataAddress: UInt64?

  public init(type: UInt32, sector: UInt64 = 0, output: [UInt8] = [], inputBytes: Int = 0) {
    (self.type, self.sector, self.output, self.inputBytes) = (type, sector, output, inputBytes)
  }

  public static func read(sector: UInt64, bytes: Int) -> Self {
    Self(type: Kind.read, sector: sector, inputBytes: bytes)
  }
  public static func write(sector: UInt64, _ data: [UInt8]) -> Self {
    Self(type: Kind.write, sector: sector, output: data)
  }
  public static let flush = Self(type: Kind.flush)
  public static func getID(bytes: Int = 20) -> Self { Self(type: Kind.getID, inputBytes: bytes) }
  public static func discard(_ segments: [DiskSegment]) -> Self {
    Self(type: Kind.discard, output: segments.flatMap(\.bytes))
  }
  public static func writeZeroes(_ segments: [DiskSegment]) -> Self {
    Self(type: Kind.writeZeroes, output: segments.flatMap(\.bytes))
  }

  /// The 16 bytes in front.
  public var header: [UInt8] {
    var writer = WireWriter()
    writer.put(type)
    writer.put(reserved)
    writer.put(sector)
    return writer.bytes
  }
}

/// What a request came to.
public struct DiskResult: Equatable, Sendable {
  public let status: UInt8
  /// The length in the used entry; nil where a packed ring's entry says nothing about it.
  public let usedLength: UInt32?
  /// The input buffer as it is now, all of it, whatever the used length says.
  public let input: [UInt8]
  /// Bytes behind the status were changed.
  public let overrun: Bool

  public init(status: UInt8, usedLength: UInt32?, input: [UInt8], overrun: Bool) {
    (self.status, self.usedLength, self.input, self.overrun) = (status, usedLength, input, overrun)
  }
}

/// A request that came back, on the fast path.
@frozen public struct DiskCompletion: Equatable, Sendable {
  public var slot: UInt16
  public var status: UInt8
  public var used: UsedChain
  @inlinable init(slot: UInt16, status: UInt8, used: UsedChain) {
    (self.slot, self.status, self.used) = (slot, status, used)
  }
}

/// virtio-blk's configuration space (virtio 1.3 §5.2.4), as far as it was asked for; what was not is 0.
public struct DiskConfig: Equatable, Sendable {
  public let bytes: [UInt8]
  public init(_ bytes: [UInt8]) { self.bytes = bytes }

  private func number<Number: FixedWidthInteger>(at offset: Int) -> Number {
    guard bytes.count >= offset + Number.bitWidth / 8 else { return 0 }
    var reader = WireReader(Array(bytes[offset...]))
    return reader.take()
  }

  /// In sectors of 512 bytes.
  public var capacity: UInt64 { number(at: 0) }
  public var sizeMax: UInt32 { number(at: 8) }
  public var segMax: UInt32 { number(at: 12) }
  public var blockSize: UInt32 { number(at: 20) }
  public var writeback: UInt8 { number(at: 32) }
  public var queueCount: UInt16 { number(at: 34) }
  public var maxDiscardSectors: UInt32 { number(at: 36) }
  public var maxDiscardSegments: UInt32 { number(at: 40) }
  public var discardAlignment: UInt32 { number(at: 44) }
  public var maxWriteZeroesSectors: UInt32 { number(at: 48) }
  public var maxWriteZeroesSegments: UInt32 { number(at: 52) }
  public var writeZeroesMayUnmap: UInt8 { number(at: 56) }
}
