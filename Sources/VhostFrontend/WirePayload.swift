// The layouts of vhost-user messages: header and payloads, to and from bytes (vhost-user, "Message
// Specification"). Numbers are little-endian. Written apart from the back-end's codec on purpose. Any thread.

/// Builds a payload, field by field.
public struct WireWriter: Sendable {
  public private(set) var bytes: [UInt8] = []
  public init() {}

  public mutating func put(_ value: UInt8) { bytes.append(value) }
  public mutating func put<Number: FixedWidthInteger>(_ value: Number) {
    for shift in stride(from: 0, to: Number.bitWidth, by: 8) {
      bytes.append(UInt8(truncatingIfNeeded: value >> Number(truncatingIfNeeded: shift)))
    }
  }
  public mutating func put(_ more: [UInt8]) { bytes += more }
}

/// Takes a payload apart; past its end it reads zeros and remembers that.
public struct WireReader: Sendable {
  private let bytes: [UInt8]
  private var position = 0
  public private(set) var ranOut = false
  public init(_ bytes: [UInt8]) { self.bytes = bytes }

  public mutating func take<Number: FixedWidthInteger>(_: Number.Type = Number.self) -> Number {
    let count = Number.bitWidth / 8
    guard count <= bytes.count - position else {
      ranOut = true
      return 0
    }
    var value: Number = 0
    for index in 0..<count {
      value |= Number(truncatingIfNeeded: bytes[position + index]) << Number(truncatingIfNeeded: 8 * index)
    }
    position += count
    return value
  }

  public var rest: [UInt8] { Array(bytes[position...]) }
}

/// The 12 bytes before every payload.
public struct WireHeader: Equatable, Sendable {
  public static let length = 12
  public static let version: UInt32 = 1
  public static let reply: UInt32 = 4
  public static let needReply: UInt32 = 8
  /// The flags every answer carries, and no others.
  public static let replyFlags = version | reply

  public var request: UInt32
  public var flags: UInt32
  public var size: UInt32

  public init(request: UInt32, flags: UInt32 = Self.version, size: UInt32) {
    (self.request, self.flags, self.size) = (request, flags, size)
  }

  public init(_ bytes: [UInt8]) {
    var reader = WireReader(bytes)
    (request, flags, size) = (reader.take(), reader.take(), reader.take())
  }

  public var bytes: [UInt8] {
    var writer = WireWriter()
    writer.put(request)
    writer.put(flags)
    writer.put(size)
    return writer.bytes
  }
}

/// `state`: a ring and a number. 8 bytes.
public struct WireVringState: Equatable, Sendable {
  public var index: UInt32
  public var num: UInt32
  public init(index: UInt32, num: UInt32) { (self.index, self.num) = (index, num) }

  public init(_ bytes: [UInt8]) {
    var reader = WireReader(bytes)
    (index, num) = (reader.take(), reader.take())
  }

  public var bytes: [UInt8] {
    var writer = WireWriter()
    writer.put(index)
    writer.put(num)
    return writer.bytes
  }
}

/// `addr`: where a ring lies, in user addresses; used comes before available on the wire. 40 bytes.
public struct WireVringAddress: Equatable, Sendable {
  public static let logFlag: UInt32 = 1

  public var index: UInt32
  public var flags: UInt32
  public var descriptors: UInt64
  public var used: UInt64
  public var available: UInt64
  public var log: UInt64

  public init(
    index: UInt32, flags: UInt32 = 0, descriptors: UInt64, available: UInt64, used: UInt64, log: UInt64 = 0
  ) {
    (self.index, self.flags, self.descriptors) = (index, flags, descriptors)
    (self.used, self.available, self.log) = (used, available, log)
  }

  public var bytes: [UInt8] {
    var writer = WireWriter()
    writer.put(index)
    writer.put(flags)
    for address in [descriptors, used, available, log] { writer.put(address) }
    return writer.bytes
  }
}

/// `region`: guest physical, length, user address, offset in the descriptor. 32 bytes.
public struct WireRegion: Equatable, Sendable {
  public var guestAddress: UInt64
  public var size: UInt64
  public var userAddress: UInt64
  public var mmapOffset: UInt64

  public init(guestAddress: UInt64, size: UInt64, userAddress: UInt64, mmapOffset: UInt64) {
    (self.guestAddress, self.size) = (guestAddress, size)
    (self.userAddress, self.mmapOffset) = (userAddress, mmapOffset)
  }

  public var bytes: [UInt8] {
    var writer = WireWriter()
    for number in [guestAddress, size, userAddress, mmapOffset] { writer.put(number) }
    return writer.bytes
  }

  /// `memtable`: count, padding, regions. The count is given apart so that tests can lie.
  public static func table(_ regions: [WireRegion], count: UInt32? = nil) -> [UInt8] {
    var writer = WireWriter()
    writer.put(count ?? UInt32(truncatingIfNeeded: regions.count))
    writer.put(UInt32(0))
    for region in regions { writer.put(region.bytes) }
    return writer.bytes
  }

  /// `memreg`: padding, one region. 40 bytes.
  public var single: [UInt8] {
    var writer = WireWriter()
    writer.put(UInt64(0))
    writer.put(bytes)
    return writer.bytes
  }
}

/// `config`: a piece of the device's configuration space. 12 bytes and the piece.
public struct WireConfig: Equatable, Sendable {
  public var offset: UInt32
  public var size: UInt32
  public var flags: UInt32
  public var piece: [UInt8]

  public init(offset: UInt32, size: UInt32, flags: UInt32 = 0, piece: [UInt8]) {
    (self.offset, self.size, self.flags, self.piece) = (offset, size, flags, piece)
  }

  public init(_ bytes: [UInt8]) {
    var reader = WireReader(bytes)
    (offset, size, flags) = (reader.take(), reader.take(), reader.take())
    piece = reader.rest
  }

  public var bytes: [UInt8] {
    var writer = WireWriter()
    for number in [offset, size, flags] { writer.put(number) }
    writer.put(piece)
    return writer.bytes
  }
}

/// `log`: where the dirty bitmap lies in its descriptor. 16 bytes.
public struct WireLog: Equatable, Sendable {
  public var size: UInt64
  public var offset: UInt64
  public init(size: UInt64, offset: UInt64) { (self.size, self.offset) = (size, offset) }

  public init(_ bytes: [UInt8]) {
    var reader = WireReader(bytes)
    (size, offset) = (reader.take(), reader.take())
  }

  public var bytes: [UInt8] {
    var writer = WireWriter()
    writer.put(size)
    writer.put(offset)
    return writer.bytes
  }
}

/// `inflight`: the region that outlives the back-end. 20 bytes and 4 of padding.
public struct WireInflight: Equatable, Sendable {
  public var mmapSize: UInt64
  public var mmapOffset: UInt64
  public var queueCount: UInt16
  public var queueSize: UInt16

  public init(mmapSize: UInt64 = 0, mmapOffset: UInt64 = 0, queueCount: UInt16, queueSize: UInt16) {
    (self.mmapSize, self.mmapOffset) = (mmapSize, mmapOffset)
    (self.queueCount, self.queueSize) = (queueCount, queueSize)
  }

  public init(_ bytes: [UInt8]) {
    var reader = WireReader(bytes)
    (mmapSize, mmapOffset, queueCount, queueSize) = (
      reader.take(), reader.take(), reader.take(), reader.take()
    )
  }

  public var bytes: [UInt8] {
    var writer = WireWriter()
    writer.put(mmapSize)
    writer.put(mmapOffset)
    writer.put(queueCount)
    writer.put(queueSize)
    writer.put(UInt32(0))
    return writer.bytes
  }
}

/// `iotlb`: an entry of the IOMMU's translation. 32 bytes.
public struct WireIOTLB: Equatable, Sendable {
  public var iova: UInt64
  public var size: UInt64
  public var userAddress: UInt64
  /// 1 read, 2 write, 3 both.
  public var permission: UInt8
  /// 1 miss, 2 update, 3 invalidate, 4 access fault.
  public var type: UInt8

  public init(iova: UInt64, size: UInt64, userAddress: UInt64, permission: UInt8, type: UInt8) {
    (self.iova, self.size, self.userAddress) = (iova, size, userAddress)
    (self.permission, self.type) = (permission, type)
  }

  public init(_ bytes: [UInt8]) {
    var reader = WireReader(bytes)
    (iova, size, userAddress) = (reader.take(), reader.take(), reader.take())
    (permission, type) = (reader.take(), reader.take())
  }

  public var bytes: [UInt8] {
    var writer = WireWriter()
    for number in [iova, size, userAddress] { writer.put(number) }
    writer.put([permission, type, 0, 0, 0, 0, 0, 0])
    return writer.bytes
  }
}
