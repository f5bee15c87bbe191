// A driver of virtio-blk: a DeviceDriver with its queues as BlockQueues, and the requests as calls that
// block. What journeys, the load generator and other programs begin with. One thread; each queue may have its
// own.

/// How a disk is to be driven.
public struct DiskOptions: Sendable {
  public var driver = DriverOptions.with { $0.features = VirtioBits.driven | DiskBits.driven }
  /// Requests in flight on each queue; nil for a third of the ring, at least 1.
  public var depth: Int?
  /// The longest request of a slot's own buffer.
  public var dataBytes = 64 << 10

  public init() {}

  public static func with(_ change: (inout Self) -> Void) -> Self {
    var options = Self()
    change(&options)
    return options
  }

  var slots: Int { depth ?? max(1, Int(driver.queueSize) / 3) }

  /// Guest memory that rings and slots of all queues need, and as much again as `spare` for the caller.
  public func arenaBytes(spare: Int = 1 << 20) -> Int {
    let size = Int(driver.queueSize)
    let ring = 40 * size + 16 * size * driver.indirectCapacity + 3 * 4096
    let buffers = slots * (dataBytes + 2 * 4096 + BlockQueue.line) + 4 * 4096
    return (driver.queues * (ring + buffers) + spare + 4095) / 4096 * 4096
  }
}

// SAFETY: one thread at a time; whoever hands it over has ordered the two.
/// May be handed from thread to thread, not shared; each of its queues likewise.
public final class BlockDriver: @unchecked Sendable {
  public let device: DeviceDriver
  public let options: DiskOptions
  public private(set) var queues: [BlockQueue] = []

  public var connection: FrontendConnection { device.connection }
  public var arena: GuestArena { device.arena }
  public var features: UInt64 { device.features }
  /// What GET_CONFIG gave when the dialogue began, or at the last `refreshConfig`.
  public private(set) var config = DiskConfig([])

  /// Negotiates over a connection and starts all queues. Without an arena one of `options.arenaBytes()` is
  /// made.
  public init(
    _ connection: FrontendConnection, arena: GuestArena? = nil, _ options: DiskOptions = DiskOptions()
  ) throws(FrontendError) {
    let memory: GuestArena
    if let arena {
      memory = arena
    } else {
      // libblkio knows its own addresses alone.
      memory = try GuestArena(
        regions: [ArenaRegion(at: 0x10_0000, bytes: options.arenaBytes())],
        addressing: options.driver.habit == .libblkio
          ? .process : .shifted(by: GuestArena.usualShift))
    }
    self.options = options
    device = DeviceDriver(connection, arena: memory, options.driver)
    try device.connect()
    let required = options.driver.habit.requiredProtocolFeatures
    guard options.driver.protocolFeatures != nil || device.protocolFeatures & required == required else {
      throw .notOffered(feature: "protocol features \(required & ~device.protocolFeatures)")
    }
    config = DiskConfig(device.config)
    try device.start()
    for queue in device.queues {
      queues.append(
        try BlockQueue(queue, depth: options.slots, dataBytes: options.dataBytes, arena: memory))
    }
  }

  /// Connects to a back-end's socket first; `waiting` is how long the socket may be missing.
  public convenience init(
    path: String, waiting: Duration = .zero, _ options: DiskOptions = DiskOptions()
  ) throws(FrontendError) {
    try self.init(
      .connect(to: path, waiting: waiting, timeout: options.driver.timeout), options)
  }

  // MARK: Requests

  /// Any request; the result whatever the status is.
  public func perform(
    _ request: DiskRequest, _ framing: Framing = .classic, queue: Int = 0
  ) throws(FrontendError) -> DiskResult {
    guard queues.indices.contains(queue) else { throw .wrongState("there is no queue \(queue)") }
    return try queues[queue].perform(request, framing)
  }

  private func succeed(
    _ request: DiskRequest, _ framing: Framing, queue: Int
  ) throws(FrontendError) -> DiskResult {
    let result = try perform(request, framing, queue: queue)
    guard result.status == DiskRequest.ok else {
      throw .requestFailed(type: request.type, sector: request.sector, status: result.status)
    }
    return result
  }

  /// Reads `bytes` from `sector` on, in as many requests as the slots' buffers ask for.
  public func read(
    sector: UInt64, bytes: Int, _ framing: Framing = .classic, queue: Int = 0
  ) throws(FrontendError) -> [UInt8] {
    var data: [UInt8] = []
    while data.count < bytes {
      let part = DiskRequest.read(
        sector: sector + UInt64(data.count / 512),
        bytes: min(bytes - data.count, options.dataBytes / 512 * 512))
      data += try succeed(part, framing, queue: queue).input
    }
    return data
  }

  /// Writes the data from `sector` on, likewise.
  public func write(
    sector: UInt64, _ data: [UInt8], _ framing: Framing = .classic, queue: Int = 0
  ) throws(FrontendError) {
    var done = 0
    while done < data.count {
      let end = min(data.count, done + options.dataBytes / 512 * 512)
      let part = DiskRequest.write(sector: sector + UInt64(done / 512), Array(data[done..<end]))
      _ = try succeed(part, framing, queue: queue)
      done = end
    }
  }

  public func flush(_ framing: Framing = .classic, queue: Int = 0) throws(FrontendError) {
    _ = try succeed(.flush, framing, queue: queue)
  }

  /// The serial, up to its first zero byte.
  public func getID(_ framing: Framing = .classic, queue: Int = 0) throws(FrontendError) -> String {
    let bytes = try succeed(.getID(), framing, queue: queue).input
    return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
  }

  public func discard(_ segments: [DiskSegment], queue: Int = 0) throws(FrontendError) {
    _ = try succeed(.discard(segments), .classic, queue: queue)
  }

  public func writeZeroes(_ segments: [DiskSegment], queue: Int = 0) throws(FrontendError) {
    _ = try succeed(.writeZeroes(segments), .classic, queue: queue)
  }

  // MARK: The device

  /// Asks for the configuration again.
  public func refreshConfig() throws(FrontendError) -> DiskConfig {
    let bytes = options.driver.configBytes ?? options.driver.habit.configBytes
    config = DiskConfig(try connection.getConfig(size: bytes))
    return config
  }

  /// Sets the `writeback` byte (CONFIG_WCE).
  public func setWriteback(_ on: Bool) throws(FrontendError) -> Ack {
    try connection.setConfig(offset: 32, [on ? 1 : 0])
  }

  /// Stops all rings; where each stands.
  @discardableResult
  public func stop() throws(FrontendError) -> [UInt32] { try device.stop() }

  /// Starts them again, where they stood.
  public func resume() throws(FrontendError) { try device.start() }

  public func disconnect() { device.disconnect() }
}
