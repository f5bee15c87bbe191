// What a front-end can ask (vhost-user, "Front-end message types"), and what a back-end can. Names only; the
// layouts are in WirePayload. Any thread.

/// A message id from front-end to back-end. Any number is one, so that tests can send unknown ones.
public struct FrontendRequest: RawRepresentable, Hashable, Sendable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  private init(_ rawValue: UInt32) { self.rawValue = rawValue }

  public static let none = Self(0)
  public static let getFeatures = Self(1)
  public static let setFeatures = Self(2)
  public static let setOwner = Self(3)
  public static let resetOwner = Self(4)
  public static let setMemTable = Self(5)
  public static let setLogBase = Self(6)
  public static let setLogFD = Self(7)
  public static let setVringNum = Self(8)
  public static let setVringAddr = Self(9)
  public static let setVringBase = Self(10)
  public static let getVringBase = Self(11)
  public static let setVringKick = Self(12)
  public static let setVringCall = Self(13)
  public static let setVringErr = Self(14)
  public static let getProtocolFeatures = Self(15)
  public static let setProtocolFeatures = Self(16)
  public static let getQueueNum = Self(17)
  public static let setVringEnable = Self(18)
  public static let sendRARP = Self(19)
  public static let netSetMTU = Self(20)
  public static let setBackendReqFD = Self(21)
  public static let iotlbMessage = Self(22)
  public static let setVringEndian = Self(23)
  public static let getConfig = Self(24)
  public static let setConfig = Self(25)
  public static let createCryptoSession = Self(26)
  public static let closeCryptoSession = Self(27)
  public static let postcopyAdvise = Self(28)
  public static let postcopyListen = Self(29)
  public static let postcopyEnd = Self(30)
  public static let getInflightFD = Self(31)
  public static let setInflightFD = Self(32)
  public static let gpuSetSocket = Self(33)
  public static let resetDevice = Self(34)
  public static let vringKick = Self(35)
  public static let getMaxMemSlots = Self(36)
  public static let addMemReg = Self(37)
  public static let remMemReg = Self(38)
  public static let setStatus = Self(39)
  public static let getStatus = Self(40)
  public static let getSharedObject = Self(41)
  public static let setDeviceStateFD = Self(42)
  public static let checkDeviceState = Self(43)
  public static let getShmemConfig = Self(44)
  public static let getVringBaseSkipDrain = Self(45)

  /// Every message that has a name, in order of its id.
  public static let all: [Self] = (1...45).map { Self($0) }

  private static let names: [String] = [
    "NONE", "GET_FEATURES", "SET_FEATURES", "SET_OWNER", "RESET_OWNER", "SET_MEM_TABLE", "SET_LOG_BASE",
    "SET_LOG_FD", "SET_VRING_NUM", "SET_VRING_ADDR", "SET_VRING_BASE", "GET_VRING_BASE", "SET_VRING_KICK",
    "SET_VRING_CALL", "SET_VRING_ERR", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES", "GET_QUEUE_NUM",
    "SET_VRING_ENABLE", "SEND_RARP", "NET_SET_MTU", "SET_BACKEND_REQ_FD", "IOTLB_MSG", "SET_VRING_ENDIAN",
    "GET_CONFIG", "SET_CONFIG", "CREATE_CRYPTO_SESSION", "CLOSE_CRYPTO_SESSION", "POSTCOPY_ADVISE",
    "POSTCOPY_LISTEN", "POSTCOPY_END", "GET_INFLIGHT_FD", "SET_INFLIGHT_FD", "GPU_SET_SOCKET", "RESET_DEVICE",
    "VRING_KICK", "GET_MAX_MEM_SLOTS", "ADD_MEM_REG", "REM_MEM_REG", "SET_STATUS", "GET_STATUS",
    "GET_SHARED_OBJECT", "SET_DEVICE_STATE_FD", "CHECK_DEVICE_STATE", "GET_SHMEM_CONFIG",
    "GET_VRING_BASE_SKIP_DRAIN",
  ]
}

extension FrontendRequest: CustomStringConvertible {
  public var description: String {
    rawValue < UInt32(Self.names.count) ? Self.names[Int(rawValue)] : "request \(rawValue)"
  }
}

/// A message id from back-end to front-end, on the socket of SET_BACKEND_REQ_FD.
public struct BackendRequest: RawRepresentable, Hashable, Sendable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  public static let iotlbMessage = Self(rawValue: 1)
  public static let configChange = Self(rawValue: 2)
  public static let vringHostNotifier = Self(rawValue: 3)
  public static let vringCall = Self(rawValue: 4)
  public static let vringErr = Self(rawValue: 5)
  public static let sharedObjectAdd = Self(rawValue: 6)
  public static let sharedObjectRemove = Self(rawValue: 7)
  public static let sharedObjectLookup = Self(rawValue: 8)
  public static let shmemMap = Self(rawValue: 9)
  public static let shmemUnmap = Self(rawValue: 10)
}
