// The typed calls of a front-end about one ring. `index` is 32 bits wide on the wire, or 8 beside a
// descriptor; tests may send any. One thread.

extension FrontendConnection {
  private func set(
    _ request: FrontendRequest, _ index: UInt32, _ num: UInt32, _ ack: Bool?
  ) throws(FrontendError) -> Ack {
    try set(request, payload: WireVringState(index: index, num: num).bytes, ack: ack)
  }

  public func setVringNum(_ index: UInt32, _ size: UInt32, ack: Bool? = nil) throws(FrontendError) -> Ack {
    try set(.setVringNum, index, size, ack)
  }

  public func setVringAddr(_ address: WireVringAddress, ack: Bool? = nil) throws(FrontendError) -> Ack {
    try set(.setVringAddr, payload: address.bytes, ack: ack)
  }

  /// Split: the next available index. Packed: available index and wrap in the low half, used in the high one.
  public func setVringBase(_ index: UInt32, _ base: UInt32, ack: Bool? = nil) throws(FrontendError) -> Ack {
    try set(.setVringBase, index, base, ack)
  }

  /// Stops the ring, and says where; the answer must name the ring that was asked for.
  public func getVringBase(_ index: UInt32) throws(FrontendError) -> UInt32 {
    try stop(.getVringBase, index)
  }

  /// The same without waiting for what is in flight.
  public func getVringBaseSkipDrain(_ index: UInt32) throws(FrontendError) -> UInt32 {
    try stop(.getVringBaseSkipDrain, index)
  }

  private func stop(_ request: FrontendRequest, _ index: UInt32) throws(FrontendError) -> UInt32 {
    let asked = WireVringState(index: index, num: 0)
    let state = WireVringState(try get(request, payload: asked.bytes, replySize: 8).payload)
    guard state.index == index else {
      throw .badReply(
        request: request.rawValue, field: "index", value: UInt64(state.index), expected: UInt64(index))
    }
    return state.num
  }

  /// nil tells the back-end to poll (VHOST_USER_VRING_NOFD_MASK). Starts the ring.
  public func setVringKick(_ index: UInt32, _ kick: Doorbell?, ack: Bool? = nil) throws(FrontendError) -> Ack
  {
    try set(.setVringKick, payload: Self.ringWord(index, kick), descriptors: Self.list(kick), ack: ack)
  }

  /// nil tells the back-end not to signal: the driver polls.
  public func setVringCall(_ index: UInt32, _ call: Doorbell?, ack: Bool? = nil) throws(FrontendError) -> Ack
  {
    try set(.setVringCall, payload: Self.ringWord(index, call), descriptors: Self.list(call), ack: ack)
  }

  public func setVringErr(_ index: UInt32, _ error: Doorbell?, ack: Bool? = nil) throws(FrontendError) -> Ack
  {
    try set(.setVringErr, payload: Self.ringWord(index, error), descriptors: Self.list(error), ack: ack)
  }

  /// SET_VRING_KICK, CALL or ERR with any word and any descriptors.
  public func setVringDescriptor(
    _ request: FrontendRequest, word: UInt64, descriptors: [Int32], ack: Bool? = nil
  ) throws(FrontendError) -> Ack {
    try set(request, payload: Self.number(word), descriptors: descriptors, ack: ack)
  }

  private static func ringWord(_ index: UInt32, _ bell: Doorbell?) -> [UInt8] {
    number(UInt64(index) | (bell == nil ? 0x100 : 0))
  }

  private static func list(_ bell: Doorbell?) -> [Int32] { bell.map { [$0.raw] } ?? [] }

  public func setVringEnable(_ index: UInt32, _ enable: Bool, ack: Bool? = nil) throws(FrontendError) -> Ack {
    try set(.setVringEnable, index, enable ? 1 : 0, ack)
  }

  /// The same with any number.
  public func setVringEnable(_ index: UInt32, value: UInt32, ack: Bool? = nil) throws(FrontendError) -> Ack {
    try set(.setVringEnable, index, value, ack)
  }

  /// 0 little, 1 big.
  public func setVringEndian(_ index: UInt32, _ order: UInt32, ack: Bool? = nil) throws(FrontendError) -> Ack
  {
    try set(.setVringEndian, index, order, ack)
  }

  /// A kick inside the socket (INBAND_NOTIFICATIONS).
  public func vringKick(_ index: UInt32, ack: Bool? = nil) throws(FrontendError) -> Ack {
    try set(.vringKick, index, 0, ack)
  }
}
