// Feature bits as masks: virtio's own (virtio 1.3 §6), virtio-blk's (§5.2.3) and vhost-user's protocol
// features. Any thread.

/// Device-independent bits of GET_FEATURES and SET_FEATURES.
public enum VirtioBits {
  public static let notifyOnEmpty: UInt64 = 1 << 24
  /// VHOST_F_LOG_ALL: writes to guest memory are logged.
  public static let logAll: UInt64 = 1 << 26
  public static let anyLayout: UInt64 = 1 << 27
  public static let indirect: UInt64 = 1 << 28
  public static let eventIndex: UInt64 = 1 << 29
  /// VHOST_USER_F_PROTOCOL_FEATURES.
  public static let protocolFeatures: UInt64 = 1 << 30
  public static let version1: UInt64 = 1 << 32
  public static let accessPlatform: UInt64 = 1 << 33
  public static let packed: UInt64 = 1 << 34
  public static let inOrder: UInt64 = 1 << 35
  public static let orderPlatform: UInt64 = 1 << 36
  public static let notificationData: UInt64 = 1 << 38
  public static let ringReset: UInt64 = 1 << 40

  /// Those this library can drive, the packed ring apart.
  public static let driven = indirect | eventIndex | protocolFeatures | version1
}

/// virtio-blk.
public enum DiskBits {
  public static let sizeMax: UInt64 = 1 << 1
  public static let segMax: UInt64 = 1 << 2
  public static let geometry: UInt64 = 1 << 4
  public static let readOnly: UInt64 = 1 << 5
  public static let blockSize: UInt64 = 1 << 6
  public static let flush: UInt64 = 1 << 9
  public static let topology: UInt64 = 1 << 10
  public static let configWCE: UInt64 = 1 << 11
  public static let multiQueue: UInt64 = 1 << 12
  public static let discard: UInt64 = 1 << 13
  public static let writeZeroes: UInt64 = 1 << 14
  public static let lifetime: UInt64 = 1 << 15
  public static let secureErase: UInt64 = 1 << 16
  public static let zoned: UInt64 = 1 << 17

  /// Those `BlockDriver` acknowledges unless told otherwise.
  public static let driven =
    segMax | geometry | readOnly | blockSize | flush | topology | configWCE | multiQueue | discard
    | writeZeroes
}

/// vhost-user protocol features.
public enum ProtocolBits {
  public static let mq: UInt64 = 1 << 0
  public static let logShmFD: UInt64 = 1 << 1
  public static let rarp: UInt64 = 1 << 2
  public static let replyAck: UInt64 = 1 << 3
  public static let mtu: UInt64 = 1 << 4
  public static let backendReq: UInt64 = 1 << 5
  public static let crossEndian: UInt64 = 1 << 6
  public static let cryptoSession: UInt64 = 1 << 7
  public static let pageFault: UInt64 = 1 << 8
  public static let config: UInt64 = 1 << 9
  public static let backendSendFD: UInt64 = 1 << 10
  public static let hostNotifier: UInt64 = 1 << 11
  public static let inflightShmFD: UInt64 = 1 << 12
  public static let resetDevice: UInt64 = 1 << 13
  public static let inbandNotifications: UInt64 = 1 << 14
  public static let configureMemSlots: UInt64 = 1 << 15
  public static let status: UInt64 = 1 << 16
  public static let xenMMap: UInt64 = 1 << 17
  public static let sharedObject: UInt64 = 1 << 18
  public static let deviceState: UInt64 = 1 << 19
  public static let getVringBaseInflight: UInt64 = 1 << 20
  public static let gpaAddresses: UInt64 = 1 << 21
  public static let shmem: UInt64 = 1 << 22
  public static let skipDrain: UInt64 = 1 << 23
}
