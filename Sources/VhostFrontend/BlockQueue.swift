// One queue of a virtio-blk device: slots with a header, a data buffer and a status each, and requests in
// them. The first half is the fast path of load generators, without an allocation; the rest takes requests in
// any framing. One thread.

import CLinux

@safe public final class BlockQueue: @unchecked Sendable {
  public let queue: QueueDriver
  /// Requests that can be in flight at once, and the data each can have.
  public let depth: Int
  public let dataBytes: Int
  private let arena: GuestArena

  // A slot's control line: header at 0, status at 16. Lines of all slots lie side by side, so that they do
  // not fall into one set of the cache, as they would a page apart.
  @usableFromInline static let line = 64
  @usableFromInline let control: UInt64
  // SAFETY: `depth` control lines in a region of `arena`, which is held.
  @usableFromInline let controlMemory: UnsafeMutableRawPointer
  // A slot's data begins on a page, with room before it for a header and behind it for a status and a guard.
  @usableFromInline let firstData: UInt64
  @usableFromInline let stride: Int
  // SAFETY: initialised, freed in deinit: `depth` free slots as a stack, and the slot of each of the ring's
  // tokens.
  @usableFromInline let freeSlots: UnsafeMutablePointer<UInt16>
  @usableFromInline let slotOfToken: UnsafeMutablePointer<UInt16>
  @usableFromInline var freeCount: Int

  /// Requests of the second half, by slot; and completions that somebody waiting for another one took.
  private var requests: [UInt16: (request: DiskRequest, status: UInt64)] = [:]
  private var waiting: [DiskCompletion] = []

  static let guardBytes = 64

  public init(_ queue: QueueDriver, depth: Int, dataBytes: Int, arena: GuestArena) throws(FrontendError) {
    let page = 4096
    let stride = (dataBytes + page - 1) / page * page + page
    let control = try arena.allocate(depth * Self.line, alignment: page)
    let room = try arena.allocate(depth * stride + page, alignment: page)
    unsafe controlMemory = try arena.pointer(to: control, bytes: depth * Self.line)
    // All slots in one region, or the arena refuses.
    _ = unsafe try arena.pointer(to: room, bytes: depth * stride + page)
    self.queue = queue
    self.depth = depth
    self.dataBytes = dataBytes
    self.arena = arena
    self.control = control
    self.stride = stride
    firstData = room + UInt64(page)
    unsafe freeSlots = UnsafeMutablePointer<UInt16>.allocate(capacity: depth)
    unsafe slotOfToken = UnsafeMutablePointer<UInt16>.allocate(capacity: Int(queue.ring.size))
    unsafe slotOfToken.initialize(repeating: 0, count: Int(queue.ring.size))
    for index in 0..<depth {
      unsafe freeSlots.advanced(by: index).initialize(to: UInt16(truncatingIfNeeded: depth - 1 - index))
    }
    freeCount = depth
  }

  deinit {
    unsafe freeSlots.deallocate()
    unsafe slotOfToken.deallocate()
  }

  @inlinable public func dataAddress(of slot: UInt16) -> UInt64 { firstData &+ UInt64(Int(slot) &* stride) }

  // MARK: The fast path

  /// Adds a request whose data is the slot's buffer; it is not shown before `publish`. nil: no slot, or no
  /// room in the ring. The data of a slot stays as it is until the slot is given out again.
  @inlinable public func submit(type: UInt32, sector: UInt64, bytes: Int, deviceWrites: Bool) -> UInt16? {
    guard freeCount > 0, bytes <= dataBytes else { return nil }
    // SAFETY: the stack has `freeCount` elements; a slot is below `depth`, and so is its control line.
    let slot = unsafe freeSlots[freeCount &- 1]
    let offset = Self.line &* Int(slot)
    let header = unsafe controlMemory + offset
    unsafe clx_store_relaxed_u64(header, UInt64(type))
    unsafe clx_store_relaxed_u64(header + 8, sector)
    unsafe clx_store_relaxed_u8(header + 16, DiskRequest.untouched)
    let address = control &+ UInt64(offset)
    let status = DescriptorSpec(address &+ 16, 1, write: true)
    let length = UInt32(truncatingIfNeeded: bytes)
    let token: UInt16?
    if bytes > 0 {
      let chain: InlineArray<3, DescriptorSpec> = [
        DescriptorSpec(address, 16), DescriptorSpec(dataAddress(of: slot), length, write: deviceWrites),
        status,
      ]
      token = queue.ring.add(chain.span)
    } else {
      let chain: InlineArray<2, DescriptorSpec> = [DescriptorSpec(address, 16), status]
      token = queue.ring.add(chain.span)
    }
    guard let token else { return nil }
    freeCount &-= 1
    // SAFETY: a token is below the ring's size.
    unsafe slotOfToken[Int(token)] = slot
    return slot
  }

  /// Shows the device what was added, and kicks if it wants to be; whether it was kicked.
  @discardableResult
  @inlinable public func publish() -> Bool { queue.publish() }

  /// The next request that came back; its slot is free again.
  @inlinable public func poll() -> DiskCompletion? {
    guard let completion = take() else { return nil }
    release(completion.slot)
    return completion
  }

  @inlinable func take() -> DiskCompletion? {
    guard let used = queue.ring.poll() else { return nil }
    // SAFETY: the ring gives only tokens of its own; slots and lines as above.
    let slot = unsafe slotOfToken[Int(used.token)]
    let status = unsafe clx_load_relaxed_u8(controlMemory + (Self.line &* Int(slot) &+ 16))
    return DiskCompletion(slot: slot, status: status, used: used)
  }

  @inlinable func release(_ slot: UInt16) {
    // SAFETY: no more slots come back than were given out.
    unsafe freeSlots[freeCount] = slot
    freeCount &+= 1
  }

  // MARK: Any request

  /// Submits a request in any framing, publishes it, and kicks if asked to; its slot, for `wait(for:)`.
  public func submit(_ request: DiskRequest, _ framing: Framing = .classic) throws(FrontendError) -> UInt16 {
    let slot = try add(request, framing)
    publish()
    return slot
  }

  /// The same without publishing.
  public func add(_ request: DiskRequest, _ framing: Framing = .classic) throws(FrontendError) -> UInt16 {
    guard freeCount > 0 else { throw .ringFull(descriptors: 0) }
    // SAFETY: as in the fast path.
    let slot = unsafe freeSlots[freeCount - 1]
    let parts = try place(request, in: slot)
    guard let chain = framing.chain(parts) else {
      throw .impossibleRequest(reason: "parts to be joined do not lie side by side")
    }
    guard let token = queue.ring.add(chain, table: framing.table) else {
      throw .ringFull(descriptors: chain.count)
    }
    freeCount -= 1
    // SAFETY: a token is below the ring's size.
    unsafe slotOfToken[Int(token)] = slot
    requests[slot] = (request, parts.status)
    return slot
  }

  /// Writes header, output, and the patterns behind.
  private func place(_ request: DiskRequest, in slot: UInt16) throws(FrontendError) -> Framing.Parts {
    let (output, input) = (request.output.count, request.inputBytes)
    let own = dataAddress(of: slot)
    let data = request.dataAddress ?? own
    guard request.dataAddress != nil || output + input <= dataBytes else {
      throw .impossibleRequest(reason: "\(output + input) bytes in a slot for \(dataBytes)")
    }
    let header = own - 16
    let status = request.dataAddress == nil ? own + UInt64(output + input) : own
    try arena.write(request.header, at: header)
    try arena.write(request.output, at: data)
    try arena.write(Self.pattern.bytes(at: status, count: Self.guardBytes + 1), at: status)
    try arena.write([DiskRequest.untouched], at: status)
    return Framing.Parts(header: header, data: data, outputBytes: output, inputBytes: input, status: status)
  }

  static let pattern = BytePattern(seed: 0x7461_696c)

  /// Waits for the request in `slot`, and takes its result; completions of others are kept for their turn.
  public func wait(for slot: UInt16, timeout: Duration? = nil) throws(FrontendError) -> DiskResult {
    if let index = waiting.firstIndex(where: { $0.slot == slot }) {
      return try finish(waiting.remove(at: index))
    }
    while true {
      let used = try queue.wait(timeout: timeout)
      // SAFETY: the ring gives only tokens of its own.
      let done = unsafe DiskCompletion(slot: slotOfToken[Int(used.token)], status: 0, used: used)
      if done.slot == slot { return try finish(done) }
      waiting.append(done)
    }
  }

  /// Waits for the next request that comes back, whichever.
  public func waitNext(timeout: Duration? = nil) throws(FrontendError) -> (slot: UInt16, result: DiskResult) {
    if !waiting.isEmpty {
      let done = waiting.removeFirst()
      return (done.slot, try finish(done))
    }
    let used = try queue.wait(timeout: timeout)
    // SAFETY: as above.
    let done = unsafe DiskCompletion(slot: slotOfToken[Int(used.token)], status: 0, used: used)
    return (done.slot, try finish(done))
  }

  /// What came back without waiting; nil if nothing has.
  public func pollResult() throws(FrontendError) -> (slot: UInt16, result: DiskResult)? {
    if !waiting.isEmpty { return try waitNext() }
    guard let done = take() else {
      if let fault = queue.ring.fault { throw .ring(fault) }
      return nil
    }
    return (done.slot, try finish(done))
  }

  /// Submits, waits, and gives the result, whatever the status is.
  public func perform(
    _ request: DiskRequest, _ framing: Framing = .classic, timeout: Duration? = nil
  ) throws(FrontendError) -> DiskResult {
    try wait(for: submit(request, framing), timeout: timeout)
  }

  private func finish(_ done: DiskCompletion) throws(FrontendError) -> DiskResult {
    guard let (request, status) = requests.removeValue(forKey: done.slot) else {
      throw .wrongState("slot \(done.slot) holds a request of the fast path")
    }
    let data = request.dataAddress ?? dataAddress(of: done.slot)
    let tail = try arena.read(at: status, count: Self.guardBytes + 1)
    let result = DiskResult(
      status: tail[0], usedLength: done.used.hasLength ? done.used.length : nil,
      input: try arena.read(at: data + UInt64(request.output.count), count: request.inputBytes),
      overrun: Array(tail[1...]) != Self.pattern.bytes(at: status + 1, count: Self.guardBytes))
    release(done.slot)
    return result
  }
}
