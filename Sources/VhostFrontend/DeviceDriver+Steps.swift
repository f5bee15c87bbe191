// What each step of a habit's dialogue sends, and what it remembers of the answer. Called by DeviceDriver;
// its thread.

extension DeviceDriver {
  private func has(_ bit: UInt64) -> Bool { protocolFeatures & bit != 0 }

  /// Plays one step. Tests with a dialogue of their own call it too.
  public func play(_ step: DialogueStep) throws(FrontendError) {
    switch step {
    case .getFeatures: try askFeatures()
    case .getProtocolFeatures:
      guard offeredFeatures & VirtioBits.protocolFeatures != 0 else { return }
      offeredProtocolFeatures = try connection.getProtocolFeatures()
    case .setProtocolFeatures:
      guard offeredFeatures & VirtioBits.protocolFeatures != 0 else { return }
      protocolFeatures =
        offeredProtocolFeatures & (options.protocolFeatures ?? options.habit.protocolFeatures)
      try connection.setProtocolFeatures(protocolFeatures).accepted(.setProtocolFeatures)
    case .setOwner: try connection.setOwner().accepted(.setOwner)
    case .setFeatures: try connection.setFeatures(features).accepted(.setFeatures)
    case .getQueueNum:
      guard has(ProtocolBits.mq) else { return }
      let count = try connection.getQueueNum()
      queueNum = count
      guard count >= UInt64(options.queues) else { throw .notOffered(feature: "\(options.queues) queues") }
    case .getMaxMemSlots:
      if has(ProtocolBits.configureMemSlots) { maxMemSlots = try connection.getMaxMemSlots() }
    case .openBackendChannel:
      guard has(ProtocolBits.backendReq) else { return }
      let (channel, ack) = try connection.openBackendChannel()
      try ack.accepted(.setBackendReqFD)
      backendChannel = channel
    case .getConfig:
      let bytes = options.configBytes ?? options.habit.configBytes
      if has(ProtocolBits.config), bytes > 0 { config = try connection.getConfig(size: bytes) }
    case .resetDevice:
      if has(ProtocolBits.resetDevice) { try connection.resetDevice().accepted(.resetDevice) }
    case .featuresOK, .driverOK, .statusZero: try playStatus(step)
    case .inflight: try shareInflight()
    case .memory: try shareMemory(slots: has(ProtocolBits.configureMemSlots))
    case .memoryTable: try shareMemory(slots: false)
    case .rings(let steps):
      if queues.isEmpty { try makeQueues() }
      for queue in queues {
        for step in steps { try play(step, queue) }
      }
    }
  }

  private func askFeatures() throws(FrontendError) {
    offeredFeatures = try connection.getFeatures()
    let wanted = options.features | (options.packed ? VirtioBits.packed : 0)
    features = offeredFeatures & wanted
    if options.packed && features & VirtioBits.packed == 0 { throw .notOffered(feature: "the packed ring") }
  }

  private func playStatus(_ step: DialogueStep) throws(FrontendError) {
    guard has(ProtocolBits.status) else { return }
    switch step {
    case .featuresOK:
      let status = try connection.getStatus()
      try connection.setStatus(status | 8).accepted(.setStatus)
    case .driverOK:
      let status = try connection.getStatus()
      try connection.setStatus(status | 7).accepted(.setStatus)
    default: try connection.setStatus(0).accepted(.setStatus)
    }
  }

  private func shareInflight() throws(FrontendError) {
    guard has(ProtocolBits.inflightShmFD) else { return }
    if inflight == nil {
      inflight = try connection.getInflightFD(
        queueCount: UInt16(truncatingIfNeeded: options.queues), queueSize: options.queueSize)
    }
    guard let inflight else { return }
    try connection.setInflightFD(inflight.description, descriptor: inflight.descriptor.raw).accepted(
      .setInflightFD)
  }

  private func shareMemory(slots: Bool) throws(FrontendError) {
    let (table, descriptors) = (arena.table, arena.descriptors)
    guard slots else {
      try connection.setMemTable(table, descriptors: descriptors).accepted(.setMemTable)
      return
    }
    for (region, descriptor) in zip(table, descriptors) where !knownRegions.contains(region) {
      try connection.addMemReg(region, descriptor: descriptor).accepted(.addMemReg)
      knownRegions.append(region)
    }
  }

  /// Plays one step about one ring.
  public func play(_ step: RingStep, _ queue: QueueDriver) throws(FrontendError) {
    let index = queue.index
    switch step {
    case .num: try connection.setVringNum(index, UInt32(queue.ring.size)).accepted(.setVringNum)
    case .base: try connection.setVringBase(index, bases[Int(index)]).accepted(.setVringBase)
    case .address:
      let address = queue.address(in: arena, logging: logsRings)
      try connection.setVringAddr(address).accepted(.setVringAddr)
    case .kick:
      try connection.setVringKick(index, options.withoutKick ? nil : queue.kick).accepted(.setVringKick)
    case .call:
      try connection.setVringCall(index, options.withoutCall ? nil : queue.call).accepted(.setVringCall)
    case .err: try connection.setVringErr(index, queue.error).accepted(.setVringErr)
    case .enable, .disable:
      // Without protocol features there is no such message: rings are enabled from the start.
      guard features & VirtioBits.protocolFeatures != 0 else { return }
      try connection.setVringEnable(index, step == .enable).accepted(.setVringEnable)
    case .getBase: bases[Int(index)] = try connection.getVringBase(index)
    case .maskedCall:
      let bell = try Doorbell()
      masked.append(bell)
      try connection.setVringCall(index, bell).accepted(.setVringCall)
    }
  }
}
