// A driver of any device: negotiates as a chosen front-end does, shows the memory, starts the queues, stops
// and resumes them, and comes back after a lost connection. Tests of devices without a driver of their own
// use it directly; BlockDriver builds on it. One thread, the queues' own threads aside.

/// How a device is to be driven.
public struct DriverOptions: Sendable {
  public var habit: Habit = .plain
  /// Features acknowledged where they are offered.
  public var features: UInt64 = VirtioBits.driven
  /// The packed ring; an error where it is not offered.
  public var packed = false
  /// Protocol features acknowledged where they are offered; nil for the habit's.
  public var protocolFeatures: UInt64?
  public var queues = 1
  public var queueSize: UInt16 = 128
  /// Entries of each chain's indirect table, if INDIRECT is negotiated.
  public var indirectCapacity = 128
  /// Where the rings begin; see `DriverRingOptions.start`.
  public var start: UInt16?
  /// No call descriptor (the driver polls), no kick descriptor (the back-end polls).
  public var withoutCall = false
  public var withoutKick = false
  /// The size asked for by GET_CONFIG; nil for the habit's, 0 for none at all.
  public var configBytes: UInt32?
  /// For each wait.
  public var timeout: Duration = .seconds(10)

  public init() {}

  /// The same with changes: `DriverOptions.with { $0.queues = 2 }`.
  public static func with(_ change: (inout Self) -> Void) -> Self {
    var options = Self()
    change(&options)
    return options
  }
}

// SAFETY: one thread at a time; whoever hands it over has ordered the two.
/// May be handed from thread to thread, not shared; each of its queues likewise.
public final class DeviceDriver: @unchecked Sendable {
  public let options: DriverOptions
  public let arena: GuestArena
  public internal(set) var connection: FrontendConnection
  public internal(set) var queues: [QueueDriver] = []

  /// What GET_FEATURES gave, what SET_FEATURES sets; the same for the protocol's.
  public internal(set) var offeredFeatures: UInt64 = 0
  public internal(set) var features: UInt64 = 0
  public internal(set) var offeredProtocolFeatures: UInt64 = 0
  public internal(set) var protocolFeatures: UInt64 = 0
  /// Answers of the back-end, where it was asked.
  public internal(set) var queueNum: UInt64?
  public internal(set) var maxMemSlots: UInt64?
  public internal(set) var config: [UInt8] = []
  public internal(set) var backendChannel: BackendChannel?
  /// The region that outlives a back-end; nil where there is none.
  public internal(set) var inflight: (description: WireInflight, descriptor: FrontendDescriptor)?
  /// Where each ring stands for the next start, as SET_VRING_BASE names it. A stop sets it; tests may, too.
  public var bases: [UInt32] = []
  public internal(set) var isRunning = false

  /// SET_VRING_ADDR carries the log flag.
  var logsRings = false

  /// Regions the back-end has, while CONFIGURE_MEM_SLOTS is used.
  var knownRegions: [WireRegion] = []
  /// Descriptors a masked call was set to: they must stay open.
  var masked: [Doorbell] = []

  /// Nothing is sent yet: `connect` and `start` do that.
  public init(_ connection: FrontendConnection, arena: GuestArena, _ options: DriverOptions = DriverOptions())
  {
    self.connection = connection
    self.arena = arena
    self.options = options
    prepare(connection)
  }

  private func prepare(_ connection: FrontendConnection) {
    connection.timeout = options.timeout
    connection.ackPolicy = options.habit.acks
  }

  // MARK: The dialogue

  /// The habit's messages from the connection on, then the rings are laid out.
  public func connect() throws(FrontendError) {
    for step in options.habit.connecting { try play(step) }
    if queues.isEmpty { try makeQueues() }
  }

  /// The habit's messages up to running rings. After a stop it goes on where the rings stood.
  public func start() throws(FrontendError) {
    if queues.isEmpty { try makeQueues() }
    for step in options.habit.starting { try play(step) }
    isRunning = true
    // What was published while the rings stood still, or before their back-end came.
    if !options.withoutKick { for queue in queues where queue.ring.inFlight > 0 { queue.kick.ring() } }
  }

  /// The habit's messages down to stopped rings; where each stands.
  @discardableResult
  public func stop() throws(FrontendError) -> [UInt32] {
    for step in options.habit.stopping { try play(step) }
    isRunning = false
    return bases
  }

  /// Stops one ring; it goes on with `resume`.
  public func stop(queue index: Int) throws(FrontendError) -> UInt32 {
    let base = try connection.getVringBase(UInt32(index))
    bases[index] = base
    return base
  }

  /// Sets one stopped ring up again where it stood.
  public func resume(queue index: Int) throws(FrontendError) {
    for step in [RingStep.num, .base, .address, .call, .err, .kick] { try play(step, queues[index]) }
    if !options.withoutKick, queues[index].ring.inFlight > 0 { queues[index].kick.ring() }
  }

  /// Goes on with another connection after the last one, or its back-end, is gone: negotiates anew, hands the
  /// inflight region over, and starts the same rings from what was used so far. Take all used chains first.
  public func reconnect(_ connection: FrontendConnection) throws(FrontendError) {
    self.connection.disconnect()
    self.connection = connection
    prepare(connection)
    knownRegions = []
    backendChannel = nil
    let acknowledged = features
    try connect()
    guard features & acknowledged == acknowledged else {
      throw .notOffered(feature: "what was offered before")
    }
    bases = queues.map(\.ring.baseOfUsed)
    try start()
  }

  public func disconnect() {
    connection.disconnect()
    isRunning = false
  }

  func makeQueues() throws(FrontendError) {
    let packed = features & VirtioBits.packed != 0
    let ring = DriverRingOptions(
      size: options.queueSize, eventIndex: features & VirtioBits.eventIndex != 0,
      indirectCapacity: features & VirtioBits.indirect != 0 ? options.indirectCapacity : 0,
      start: options.start)
    for index in 0..<options.queues {
      let queue = try QueueDriver(
        index: UInt32(index), ring, packed: packed, in: arena, timeout: options.timeout)
      if options.withoutCall { queue.waiting = .spin }
      queues.append(queue)
    }
    bases = queues.map(\.ring.base)
  }
}
