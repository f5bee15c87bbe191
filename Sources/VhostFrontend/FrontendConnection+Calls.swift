// The typed calls of a front-end about features, memory, configuration and the rest of the device; rings are
// in +Rings. Each waits for its own answer where it has one, else for the acknowledgement the policy asks
// for. One thread.

extension FrontendConnection {
  static func number(_ value: UInt64) -> [UInt8] {
    var writer = WireWriter()
    writer.put(value)
    return writer.bytes
  }

  func getNumber(_ request: FrontendRequest) throws(FrontendError) -> UInt64 {
    var reader = WireReader(try get(request, replySize: 8).payload)
    return reader.take()
  }

  // MARK: Features and ownership

  public func getFeatures() throws(FrontendError) -> UInt64 { try getNumber(.getFeatures) }

  public func setFeatures(_ features: UInt64, ack: Bool? = nil) throws(FrontendError) -> Ack {
    try set(.setFeatures, payload: Self.number(features), ack: ack)
  }

  public func getProtocolFeatures() throws(FrontendError) -> UInt64 { try getNumber(.getProtocolFeatures) }

  /// Also turns this end's acknowledgements on or off, from the next message.
  public func setProtocolFeatures(_ features: UInt64, ack: Bool? = nil) throws(FrontendError) -> Ack {
    let result = try set(.setProtocolFeatures, payload: Self.number(features), ack: ack)
    if !result.isNack { protocolFeatures = features }
    return result
  }

  public func getQueueNum() throws(FrontendError) -> UInt64 { try getNumber(.getQueueNum) }

  public func setOwner(ack: Bool? = nil) throws(FrontendError) -> Ack { try set(.setOwner, ack: ack) }
  public func resetOwner(ack: Bool? = nil) throws(FrontendError) -> Ack { try set(.resetOwner, ack: ack) }
  public func resetDevice(ack: Bool? = nil) throws(FrontendError) -> Ack { try set(.resetDevice, ack: ack) }

  /// GET_FEATURES for its answer alone: when it is there, every earlier message took effect.
  public func barrier() throws(FrontendError) { _ = try getFeatures() }

  public func getStatus() throws(FrontendError) -> UInt64 { try getNumber(.getStatus) }
  public func setStatus(_ status: UInt64, ack: Bool? = nil) throws(FrontendError) -> Ack {
    try set(.setStatus, payload: Self.number(status), ack: ack)
  }

  // MARK: Memory

  /// One descriptor for each region, in the same order.
  public func setMemTable(
    _ regions: [WireRegion], descriptors: [Int32], ack: Bool? = nil
  ) throws(FrontendError) -> Ack {
    try set(.setMemTable, payload: WireRegion.table(regions), descriptors: descriptors, ack: ack)
  }

  public func getMaxMemSlots() throws(FrontendError) -> UInt64 { try getNumber(.getMaxMemSlots) }

  public func addMemReg(
    _ region: WireRegion, descriptor: Int32, ack: Bool? = nil
  ) throws(FrontendError) -> Ack {
    try set(.addMemReg, payload: region.single, descriptors: [descriptor], ack: ack)
  }

  /// A descriptor may go along, which the back-end must close.
  public func remMemReg(
    _ region: WireRegion, descriptor: Int32? = nil, ack: Bool? = nil
  ) throws(FrontendError) -> Ack {
    try set(.remMemReg, payload: region.single, descriptors: descriptor.map { [$0] } ?? [], ack: ack)
  }

  /// With LOG_SHMFD the back-end echoes the structure, which must be exact; without, the offset alone goes
  /// out.
  public func setLogBase(_ log: WireLog, descriptor: Int32) throws(FrontendError) {
    guard protocolFeatures & ProtocolBits.logShmFD != 0 else {
      try send(.setLogBase, payload: Self.number(log.offset), descriptors: [descriptor])
      return
    }
    let reply = try get(.setLogBase, payload: log.bytes, descriptors: [descriptor], replySize: 16)
    let echo = WireLog(reply.payload)
    guard echo == log else {
      throw .badReply(
        request: FrontendRequest.setLogBase.rawValue, field: "size", value: echo.size, expected: log.size)
    }
  }

  public func setLogFD(_ descriptor: Int32, ack: Bool? = nil) throws(FrontendError) -> Ack {
    try set(.setLogFD, descriptors: [descriptor], ack: ack)
  }

  /// UPDATE and INVALIDATE are answered with a number in any case.
  public func sendIOTLB(_ message: WireIOTLB) throws(FrontendError) -> Ack {
    try exchange.withLock { _ throws(FrontendError) in
      try send(.iotlbMessage, payload: message.bytes, needReply: true)
      return try receiveAck(.iotlbMessage)
    }
  }

  // MARK: Inflight

  /// The region's description and its descriptor; nil where the back-end says it has none (size 0).
  public func getInflightFD(
    queueCount: UInt16, queueSize: UInt16
  ) throws(FrontendError) -> (description: WireInflight, descriptor: FrontendDescriptor)? {
    let wanted = WireInflight(queueCount: queueCount, queueSize: queueSize)
    let reply = try get(.getInflightFD, payload: wanted.bytes, replySize: 24, replyDescriptors: 0...1)
    let description = WireInflight(reply.payload)
    guard description.mmapSize != 0 else {
      guard reply.descriptors.isEmpty else {
        throw .wrongDescriptorCount(request: FrontendRequest.getInflightFD.rawValue, count: 1, expected: 0)
      }
      return nil
    }
    guard let descriptor = reply.descriptors.first else {
      throw .wrongDescriptorCount(request: FrontendRequest.getInflightFD.rawValue, count: 0, expected: 1)
    }
    return (description, descriptor)
  }

  public func setInflightFD(
    _ description: WireInflight, descriptor: Int32, ack: Bool? = nil
  ) throws(FrontendError) -> Ack {
    try set(.setInflightFD, payload: description.bytes, descriptors: [descriptor], ack: ack)
  }

  // MARK: Configuration space

  /// `size` bytes of it from `offset`. The answer repeats offset and size; an empty one is a refusal.
  public func getConfig(offset: UInt32 = 0, size: UInt32, flags: UInt32 = 0) throws(FrontendError) -> [UInt8]
  {
    let id = FrontendRequest.getConfig.rawValue
    let zeros = [UInt8](repeating: 0, count: Int(min(size, 4096)))
    let request = WireConfig(offset: offset, size: size, flags: flags, piece: zeros)
    let reply = try get(.getConfig, payload: request.bytes)
    guard !reply.payload.isEmpty else { throw .refused(request: id, value: 0) }
    let answer = WireConfig(reply.payload)
    guard answer.offset == offset else {
      throw .badReply(request: id, field: "offset", value: UInt64(answer.offset), expected: UInt64(offset))
    }
    guard answer.size == size, answer.piece.count == Int(size) else {
      throw .badReply(request: id, field: "size", value: UInt64(answer.piece.count), expected: UInt64(size))
    }
    return answer.piece
  }

  public func setConfig(
    offset: UInt32, _ piece: [UInt8], flags: UInt32 = 0, ack: Bool? = nil
  ) throws(FrontendError) -> Ack {
    let config = WireConfig(
      offset: offset, size: UInt32(truncatingIfNeeded: piece.count), flags: flags, piece: piece)
    return try set(.setConfig, payload: config.bytes, ack: ack)
  }

  // MARK: Network

  /// Announces a MAC address of 6 bytes.
  public func sendRARP(_ address: [UInt8], ack: Bool? = nil) throws(FrontendError) -> Ack {
    try set(.sendRARP, payload: address + [0, 0], ack: ack)
  }

  public func netSetMTU(_ mtu: UInt64, ack: Bool? = nil) throws(FrontendError) -> Ack {
    try set(.netSetMTU, payload: Self.number(mtu), ack: ack)
  }

  // MARK: Back-end channel, device state, postcopy

  /// Hands the back-end one end of a new socket, and returns the other.
  public func openBackendChannel(
    ack: Bool? = nil
  ) throws(FrontendError) -> (channel: BackendChannel, ack: Ack) {
    let (mine, theirs) = try StreamSocket.pair()
    let result = try set(.setBackendReqFD, descriptors: [theirs.raw], ack: ack)
    return (BackendChannel(adopting: mine, timeout: timeout), result)
  }

  public func setBackendReqFD(_ descriptor: Int32, ack: Bool? = nil) throws(FrontendError) -> Ack {
    try set(.setBackendReqFD, descriptors: [descriptor], ack: ack)
  }

  /// Direction 0 saves, 1 loads. Bits 0-7 of the answer are the error; bit 8 says that no descriptor came
  /// back.
  public func setDeviceStateFD(
    direction: UInt32, phase: UInt32 = 0, descriptor: Int32
  ) throws(FrontendError) -> (value: UInt64, descriptor: FrontendDescriptor?) {
    let transfer = WireVringState(index: direction, num: phase)
    let reply = try get(
      .setDeviceStateFD, payload: transfer.bytes, descriptors: [descriptor], replySize: 8,
      replyDescriptors: 0...1)
    var reader = WireReader(reply.payload)
    return (reader.take(), reply.descriptors.first)
  }

  public func checkDeviceState() throws(FrontendError) -> UInt64 { try getNumber(.checkDeviceState) }

  /// The userfaultfd of postcopy.
  public func postcopyAdvise() throws(FrontendError) -> FrontendDescriptor {
    let reply = try get(.postcopyAdvise, replySize: 0, replyDescriptors: 1...1)
    guard let descriptor = reply.descriptors.first else {
      throw .wrongDescriptorCount(request: FrontendRequest.postcopyAdvise.rawValue, count: 0, expected: 1)
    }
    return descriptor
  }

  /// The memory table of a guest whose pages are still to come: where each region lies in the back-end, which touches none of
  /// it before `acknowledgeMemTable`.
  public func setMemTablePostcopy(
    _ regions: [WireRegion], descriptors: [Int32]
  ) throws(FrontendError) -> [UInt64] {
    let payload = WireRegion.table(regions)
    let reply = try get(
      .setMemTable, payload: payload, descriptors: descriptors, replySize: payload.count)
    var reader = WireReader(reply.payload)
    _ = reader.take(UInt64.self)
    var bases: [UInt64] = []
    for region in regions {
      let answer = WireRegion(
        guestAddress: reader.take(), size: reader.take(), userAddress: reader.take(),
        mmapOffset: reader.take())
      var expected = region
      expected.userAddress = answer.userAddress
      guard answer == expected else {
        throw .badReply(
          request: FrontendRequest.setMemTable.rawValue, field: "guest address", value: answer.guestAddress,
          expected: region.guestAddress)
      }
      bases.append(answer.userAddress)
    }
    return bases
  }

  /// The bases are known: faults can be served.
  public func acknowledgeMemTable(ack: Bool? = nil) throws(FrontendError) -> Ack {
    try set(.setMemTable, payload: Self.number(0), ack: ack)
  }

  /// Answered in any case, as POSTCOPY_END is.
  public func postcopyListen() throws(FrontendError) -> Ack {
    try send(.postcopyListen, needReply: true)
    return try receiveAck(.postcopyListen)
  }

  public func postcopyEnd() throws(FrontendError) -> Ack {
    try send(.postcopyEnd, needReply: true)
    return try receiveAck(.postcopyEnd)
  }

  /// The descriptor behind a UUID of 16 bytes; nil where the back-end has none.
  public func getSharedObject(_ uuid: [UInt8]) throws(FrontendError) -> FrontendDescriptor? {
    try get(.getSharedObject, payload: uuid, replyDescriptors: 0...1).descriptors.first
  }

  /// The sizes of the shared memory regions, by id.
  public func getShmemConfig() throws(FrontendError) -> [UInt64] {
    var reader = WireReader(try get(.getShmemConfig, replySize: 2056).payload)
    let count: UInt32 = reader.take()
    _ = reader.take(UInt32.self)
    return (0..<min(count, 256)).map { _ in reader.take() }
  }
}
