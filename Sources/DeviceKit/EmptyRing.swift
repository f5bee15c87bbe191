// The ring of a worker that has no driver: something that its neighbours on a queue thread hand things to, and that does I/O of
// its own, such as a switch's uplink. Nothing ever comes out of it. On the queue's thread.

import VirtQueue

/// A ring without memory and without chains (`QueueStart.runAlone`).
public struct EmptyRing: VirtRing, ~Copyable {
  public private(set) var fault: QueueFault?

  @usableFromInline init() {}

  public var size: UInt16 { 0 }
  public var liveCount: Int { 0 }
  public var marksBuffers: Bool { false }
  public var base: UInt32 { 0 }

  public mutating func next() -> Chain? { nil }
  public mutating func take(_ head: UInt16) -> Chain? { nil }
  /// No chain of this ring is there to be given back, by this call or the next.
  public mutating func complete(_ chain: consuming Chain, written: UInt32) {}
  public mutating func untake(_ chain: consuming Chain) {}
  public mutating func publish() -> Notify { .none }
  public mutating func park() -> Bool { false }
  public mutating func unpark() {}
  public mutating func move(to map: GuestMemoryMap) -> Bool { true }
  public mutating func setLog(_ log: QueueLog?) {}
  public mutating func mark(_ chain: borrowing Chain, bytes: UInt32) {}
  public mutating func mark(_ chain: borrowing Chain, byte: UnsafeMutableRawPointer) {}
  @inlinable public var isWaiting: Bool { false }
  public mutating func takeMisses() -> [TranslationMiss] { [] }
  public mutating func retry(denied: [TranslationMiss]) {}
  public func reaches(_ range: IOVARange) -> Bool { false }
  public mutating func fail(_ fault: QueueFault) { self.fault = fault }
}

extension QueueStart {
  /// As `run`, for a worker without a driver (`DeviceHost.startAlone`): `service` is called each turn and finds no chain.
  @inlinable
  public consuming func runAlone<W: NeighbourWorker & ~Copyable>(
    _ make: @escaping @Sendable () -> W, reachable open: @escaping @Sendable (QueueDoor<W.Parcel>) -> Void
  ) {
    launch.makeRunner = { place throws(RingLayoutError) in
      let runner = RunnerBox(ring: EmptyRing(), worker: make(), place: place)
      open(QueueDoor { runner.hand($0) })
      return RunnerEntry(runner, turn: { runner.turn() }, reap: { runner.reap() })
    }
  }
}

extension DeviceHost {
  /// Starts what has no driver, no ring and no guest's memory, at a queue's place; the device ends its `start` with
  /// `QueueStart.runAlone`. Nil means that it runs. It ends with `stop`, or with its thread.
  public func startAlone(_ index: Int) -> QueueStartError? {
    guard let nothing = try? GuestMemoryMap(generation: 0, regions: []) else { return .notTaken }
    let layout = RingLayout(
      size: 0, descriptorArea: 0, driverArea: 0, deviceArea: 0, base: 0, indirect: false, eventIndex: false)
    return start(
      index,
      QueueSetup(
        layout: layout, features: FeatureSet(), map: nothing, enabled: true, kick: nil, call: nil,
        onFault: { _ in }))
  }
}
