// The wire of vhost-user: header, request numbers, and bounded reading and writing of payloads. Values; no state.

/// Requests of a front-end (vhost-user specification, "Front-end message types").
public enum Request: UInt32, CaseIterable, Sendable {
  case getFeatures = 1
  case setFeatures = 2
  case setOwner = 3
  case resetOwner = 4
  case setMemoryTable = 5
  case setLogBase = 6
  case setLogFD = 7
  case setVringNum = 8
  case setVringAddress = 9
  case setVringBase = 10
  case getVringBase = 11
  case setVringKick = 12
  case setVringCall = 13
  case setVringError = 14
  case getProtocolFeatures = 15
  case setProtocolFeatures = 16
  case getQueueNum = 17
  case setVringEnable = 18
  case sendRARP = 19
  case setNetworkMTU = 20
  case setBackendFD = 21
  case iotlbMessage = 22
  case getConfig = 24
  case setConfig = 25
  case postcopyAdvise = 28
  case postcopyListen = 29
  case postcopyEnd = 30
  case getInflightFD = 31
  case setInflightFD = 32
  case resetDevice = 34
  case getMaxMemorySlots = 36
  case addMemoryRegion = 37
  case removeMemoryRegion = 38
  case setStatus = 39
  case getStatus = 40
  case setDeviceStateFD = 42
  case checkDeviceState = 43
}

/// The 12 bytes before every payload: {u32 request, u32 flags, u32 size}.
struct MessageHeader: Equatable {
  static let byteCount = 12
  /// More than any message of the protocol has.
  static let payloadLimit = 4096

  var request: UInt32
  var flags: UInt32
  var size: UInt32

  var version: UInt32 { flags & 3 }
  var needsReply: Bool { flags & 8 != 0 }

  init(_ bytes: [UInt8]) {
    var reader = PayloadReader(bytes)
    request = reader.u32()
    flags = reader.u32()
    size = reader.u32()
  }

  /// Version 1 and the reply mark, nothing else: front-ends compare all of the flags.
  static func reply(to request: UInt32, size: Int) -> [UInt8] {
    var writer = PayloadWriter()
    writer.u32(request)
    writer.u32(5)
    writer.u32(UInt32(truncatingIfNeeded: size))
    return writer.bytes
  }
}

/// Reads integers one after another; past the end there are zeros. Sizes were checked by the message's rule before.
struct PayloadReader {
  private let bytes: [UInt8]
  private var at = 0

  init(_ bytes: [UInt8]) { self.bytes = bytes }

  mutating func u8() -> UInt8 {
    guard at < bytes.count else { return 0 }
    defer { at += 1 }
    return bytes[at]
  }
  mutating func u16() -> UInt16 { UInt16(u8()) | UInt16(u8()) << 8 }
  mutating func u32() -> UInt32 { UInt32(u8()) | UInt32(u8()) << 8 | UInt32(u8()) << 16 | UInt32(u8()) << 24 }
  mutating func u64() -> UInt64 { UInt64(u32()) | UInt64(u32()) << 32 }
  /// What has not been read yet.
  var rest: [UInt8] { Array(bytes[at...]) }
}

/// Writes integers one after another.
struct PayloadWriter {
  private(set) var bytes: [UInt8] = []

  mutating func u16(_ value: UInt16) {
    bytes += [UInt8(truncatingIfNeeded: value), UInt8(truncatingIfNeeded: value >> 8)]
  }
  mutating func u32(_ value: UInt32) {
    for i in 0..<4 { bytes.append(UInt8(truncatingIfNeeded: value >> (8 * UInt32(i)))) }
  }
  mutating func u64(_ value: UInt64) {
    u32(UInt32(truncatingIfNeeded: value))
    u32(UInt32(truncatingIfNeeded: value >> 32))
  }

  mutating func append(_ more: [UInt8]) { bytes += more }

  static func u64(_ value: UInt64) -> [UInt8] {
    var writer = PayloadWriter()
    writer.u64(value)
    return writer.bytes
  }
}

/// Protocol features (vhost-user specification, "Protocol features").
public struct ProtocolFeatures: OptionSet, Sendable, Hashable {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }

  public static let multiQueue = ProtocolFeatures(rawValue: 1 << 0)
  public static let logSharedMemory = ProtocolFeatures(rawValue: 1 << 1)
  public static let rarp = ProtocolFeatures(rawValue: 1 << 2)
  public static let replyAck = ProtocolFeatures(rawValue: 1 << 3)
  public static let networkMTU = ProtocolFeatures(rawValue: 1 << 4)
  public static let backendRequests = ProtocolFeatures(rawValue: 1 << 5)
  public static let pageFault = ProtocolFeatures(rawValue: 1 << 8)
  public static let config = ProtocolFeatures(rawValue: 1 << 9)
  public static let inflight = ProtocolFeatures(rawValue: 1 << 12)
  public static let resetDevice = ProtocolFeatures(rawValue: 1 << 13)
  public static let memorySlots = ProtocolFeatures(rawValue: 1 << 15)
  public static let status = ProtocolFeatures(rawValue: 1 << 16)
  public static let deviceState = ProtocolFeatures(rawValue: 1 << 19)
}
