// One queue of any device: its ring, and the three eventfds beside it. Made by DeviceDriver; its thread is
// the one that uses the queue, which may be another for each queue.

import CLinux

/// What a wait for a used chain does before it sleeps.
public enum QueueWaiting: Equatable, Sendable {
  /// Arms the interrupt and sleeps on the call descriptor.
  case interrupt
  /// Looks at the ring until the time is over. For queues whose call is not set, and for measurements.
  case spin
}

// SAFETY: one thread at a time; whoever hands it over has ordered the two.
public final class QueueDriver: @unchecked Sendable {
  public let index: UInt32
  public let ring: AnyDriverRing
  public let kick: Doorbell
  public let call: Doorbell
  public let error: Doorbell
  public var waiting: QueueWaiting = .interrupt
  /// How long `wait` waits where nothing else is said.
  public var timeout: Duration
  /// How often the back-end signalled, as far as it was noticed.
  public private(set) var callsReceived: UInt64 = 0
  private var calls: UInt64 { call.take() }

  public init(
    index: UInt32, _ options: DriverRingOptions, packed: Bool, in arena: GuestArena,
    timeout: Duration = .seconds(10)
  ) throws(FrontendError) {
    self.index = index
    ring = try AnyDriverRing(options, packed: packed, in: arena)
    kick = try Doorbell()
    call = try Doorbell()
    error = try Doorbell()
    self.timeout = timeout
  }

  /// The ring's place, as SET_VRING_ADDR names it.
  public func address(in arena: GuestArena, logging: Bool = false) -> WireVringAddress {
    let areas = ring.areas
    return WireVringAddress(
      index: index, flags: logging ? WireVringAddress.logFlag : 0,
      descriptors: arena.userAddress(of: areas.descriptors), available: arena.userAddress(of: areas.driver),
      used: arena.userAddress(of: areas.device), log: areas.device)
  }

  // MARK: Chains

  /// Adds, publishes and kicks if asked to; the chain's token.
  public func submit(_ chain: [DescriptorSpec], table: DescriptorTable = .direct) throws(FrontendError)
    -> UInt16
  {
    guard let token = ring.add(chain, table: table) else { throw .ringFull(descriptors: chain.count) }
    publish()
    return token
  }

  /// Shows the device what was added, and rings if it asked for that; whether it was rung.
  @discardableResult
  @inlinable public func publish() -> Bool {
    ring.publish()
    let wanted = ring.needsKick()
    if wanted { kick.ring() }
    return wanted
  }

  /// The next used chain, waiting for it as `waiting` says. Throws also when the device reports the queue
  /// broken, or when the ring holds what no device may write.
  public func wait(timeout: Duration? = nil) throws(FrontendError) -> UsedChain {
    let deadline = Deadline(timeout ?? self.timeout)
    while true {
      if let chain = ring.poll() { return chain }
      if let fault = ring.fault { throw .ring(fault) }
      switch waiting {
      case .spin:
        guard !deadline.hasPassed else { throw .timedOut(waitingFor: "used chain on queue \(index)") }
        clx_pause()
      case .interrupt:
        if ring.arm() { continue }
        try sleep(until: deadline)
      }
    }
  }

  /// Sleeps until the back-end signals call or error.
  private func sleep(until deadline: Deadline) throws(FrontendError) {
    let (called, failed) = deadline.wait(for: POLLIN, on: call.raw, and: error.raw)
    if called != 0 {
      callsReceived &+= calls
      return
    }
    if failed != 0 {
      error.take()
      throw .queueBroken(index: index)
    }
    throw .timedOut(waitingFor: "used chain on queue \(index)")
  }

  /// Waits until the back-end reports this queue broken.
  public func expectError(timeout: Duration? = nil) throws(FrontendError) {
    guard error.wait(timeout: timeout ?? self.timeout) else {
      throw .timedOut(waitingFor: "error on queue \(index)")
    }
    error.take()
  }

  /// Counts the calls that came meanwhile, without waiting; how many there are now.
  @discardableResult
  public func collectCalls() -> UInt64 {
    callsReceived &+= calls
    return callsReceived
  }
}
