// The ways of the front-ends there are: which messages each sends, in which order, and which it wants
// acknowledged. DeviceDriver plays them. Taken from QEMU 7.2's and other programs' traffic and sources.

/// A message, or a round of one message over all queues.
public enum DialogueStep: Equatable, Sendable {
  case getFeatures, getProtocolFeatures, setProtocolFeatures, setOwner, setFeatures
  /// These are left out where their protocol feature is not negotiated.
  case getQueueNum, getMaxMemSlots, openBackendChannel, getConfig, resetDevice
  /// Device status (STATUS): GET and SET with FEATURES_OK; all of it with DRIVER_OK; 0.
  case featuresOK, driverOK, statusZero
  /// GET_INFLIGHT_FD unless a region is there already; SET_INFLIGHT_FD.
  case inflight
  /// The memory table, or the regions that are not known yet, as is negotiated; the table in any case.
  case memory, memoryTable
  /// For each queue all these, then the next queue.
  case rings([RingStep])
}

/// A message about one ring.
public enum RingStep: Equatable, Sendable {
  case num, base, address, kick, call, err, enable, disable, getBase
  /// A call descriptor that nobody listens to, as QEMU sends before the guest's is known.
  case maskedCall
}

/// Whose manners to have.
public enum Habit: String, CaseIterable, Sendable {
  /// The straight way: everything once, everything acknowledged.
  case plain
  /// QEMU 7.2's vhost-user-blk.
  case qemu72
  case cloudHypervisor
  case crosvm
  case libblkio

  /// From the connection to a device that could be started.
  public var connecting: [DialogueStep] {
    switch self {
    case .plain:
      [
        .getFeatures, .getProtocolFeatures, .setProtocolFeatures, .setOwner, .getQueueNum, .getMaxMemSlots,
        .openBackendChannel, .getConfig,
      ]
    case .qemu72:
      [
        .getFeatures, .getProtocolFeatures, .setProtocolFeatures, .getQueueNum, .getMaxMemSlots,
        .openBackendChannel, .setOwner, .getFeatures, .rings([.maskedCall, .err]), .getConfig,
      ]
    case .cloudHypervisor:
      [.setOwner, .getFeatures, .getProtocolFeatures, .setProtocolFeatures, .getQueueNum, .getConfig]
    case .crosvm:
      [.setOwner, .getFeatures, .getProtocolFeatures, .setProtocolFeatures, .getQueueNum, .getConfig]
    case .libblkio:
      [
        .getFeatures, .setFeatures, .getProtocolFeatures, .setProtocolFeatures, .setOwner, .getQueueNum,
        .getMaxMemSlots, .getConfig,
      ]
    }
  }

  /// From there to rings that run.
  public var starting: [DialogueStep] {
    switch self {
    case .plain:
      [
        .setFeatures, .featuresOK, .memory, .inflight, .rings([.num, .base, .address, .call, .err, .kick]),
        .rings([.enable]), .driverOK,
      ]
    case .qemu72:
      [
        .setFeatures, .featuresOK, .inflight, .rings([.call]), .setFeatures, .memory,
        .rings([.num, .base, .address, .kick]), .rings([.enable]), .driverOK,
      ]
    case .cloudHypervisor:
      [
        .setFeatures, .memoryTable, .rings([.num]), .inflight, .rings([.address, .base, .call, .kick]),
        .rings([.enable]), .openBackendChannel,
      ]
    case .crosvm:
      [.setFeatures, .memoryTable, .rings([.num, .address, .base, .call, .kick, .enable])]
    case .libblkio: [.memory, .rings([.num, .base, .address, .kick, .call, .enable])]
    }
  }

  /// From running rings to stopped ones.
  public var stopping: [DialogueStep] {
    switch self {
    case .qemu72: [.statusZero, .rings([.disable]), .rings([.getBase])]
    default: [.rings([.disable]), .rings([.getBase])]
    }
  }

  /// What it asks to be acknowledged once it can.
  public var acks: AckPolicy {
    switch self {
    case .plain, .cloudHypervisor, .libblkio: .always
    case .qemu72: .only([.setMemTable, .addMemReg, .remMemReg, .setBackendReqFD, .netSetMTU, .setConfig])
    case .crosvm: .never
    }
  }

  /// The protocol features it takes where they are offered.
  public var protocolFeatures: UInt64 {
    switch self {
    case .plain:
      ProtocolBits.mq | ProtocolBits.logShmFD | ProtocolBits.replyAck | ProtocolBits.backendReq
        | ProtocolBits.config | ProtocolBits.inflightShmFD | ProtocolBits.resetDevice
        | ProtocolBits.configureMemSlots
    case .qemu72: 0x1_ffff  // every number it knows, whether it can do it or not
    case .cloudHypervisor:
      ProtocolBits.config | ProtocolBits.mq | ProtocolBits.configureMemSlots | ProtocolBits.replyAck
        | ProtocolBits.inflightShmFD | ProtocolBits.logShmFD | ProtocolBits.deviceState
    case .crosvm:
      ProtocolBits.config | ProtocolBits.mq | ProtocolBits.backendReq | ProtocolBits.deviceState
        | ProtocolBits.shmem | ProtocolBits.replyAck
    case .libblkio:
      ProtocolBits.replyAck | ProtocolBits.config | ProtocolBits.configureMemSlots | ProtocolBits.mq
    }
  }

  /// Those it does not do without for a disk.
  public var requiredProtocolFeatures: UInt64 {
    switch self {
    case .plain, .crosvm: 0
    case .qemu72, .cloudHypervisor: ProtocolBits.config
    case .libblkio: ProtocolBits.replyAck | ProtocolBits.config | ProtocolBits.configureMemSlots
    }
  }

  /// The size of its GET_CONFIG for a disk.
  public var configBytes: UInt32 {
    switch self {
    case .plain, .libblkio, .crosvm, .cloudHypervisor: 60
    case .qemu72: 57
    }
  }
}
