// A device and the threads that serve its queues: what a transport (vhost-user) drives. Called by one control
// thread at a time; each call returns when the queue thread concerned has done its part.

import CLinux
import HostIO
import Synchronization
import VirtQueue

/// Why a queue did not start.
public enum QueueStartError: Error, Equatable, Sendable {
  case layout(RingLayoutError)
  case host(HostError)
  case device(DeviceError)
  case alreadyRunning
  /// The device's `start` returned without `run`.
  case notTaken
}

/// What the transport knows of a queue when it starts.
public struct QueueSetup: Sendable {
  public var layout: RingLayout
  public var features: FeatureSet
  public var map: GuestMemoryMap
  /// Where the ring notes what it has taken, and where an earlier process may have noted it; nil: nowhere.
  public var inflight: InflightArea?
  /// Where its writes to guest memory are noted; nil: nowhere.
  public var log: QueueLog?
  public var enabled: Bool
  /// Descriptors stay the caller's; the queue thread takes references of its own. Nil: a ring that is polled, a driver
  /// that polls.
  public var kick: Int32?
  public var call: Int32?
  /// Signalled once when the ring breaks.
  public var error: Int32?
  /// Called once, on the queue's thread, when the ring breaks.
  public var onFault: @Sendable (QueueFault) -> Void
  /// Called on the queue's thread when a chain cannot be taken before these accesses are possible (IOMMU): the queue waits
  /// for `DeviceHost.resume`.
  public var onMiss: @Sendable ([TranslationMiss]) -> Void

  public init(
    layout: RingLayout, features: FeatureSet, map: GuestMemoryMap, inflight: InflightArea? = nil,
    log: QueueLog? = nil, enabled: Bool, kick: Int32?, call: Int32?, error: Int32? = nil,
    onFault: @escaping @Sendable (QueueFault) -> Void,
    onMiss: @escaping @Sendable ([TranslationMiss]) -> Void = { _ in }
  ) {
    self.layout = layout
    self.features = features
    self.map = map
    self.inflight = inflight
    self.log = log
    self.enabled = enabled
    self.kick = kick
    self.call = call
    self.error = error
    self.onFault = onFault
    self.onMiss = onMiss
  }
}

/// Serves one device's queues on a set of queue threads.
public final class DeviceHost: Sendable {
  public let device: any VirtioDevice
  /// By queue.
  public let counters: [QueueCounters]
  public var queueLimit: Int { places.count }

  struct Place: Sendable {
    let thread: QueueThread
    let seat: UInt16
    let files: [FileSlot]
  }
  let places: [Place]
  private let threads: [QueueThread]
  /// The guest's memory as the threads' rings have it registered; nil: they do without.
  private let registry: BufferRegistry?
  private let running = Mutex<Set<Int>>([])

  /// Spreads the device's queues over threads (at least one) that have not started yet, and registers the device's
  /// descriptors with each.
  public init(device: any VirtioDevice, threads: [QueueThread]) throws(HostError) {
    self.device = device
    // Before the sandbox, and before there is any memory to lose.
    clx_shared_watch()
    let identity = device.identity
    counters = (0..<identity.queueLimit).map { _ in QueueCounters(deviceCounters: identity.counters) }
    self.threads = threads
    registry = device.pinsMemory ? try BufferRegistry() : nil
    var files: [[FileSlot]] = []
    for thread in threads {
      if let registry { try thread.core.expectBuffers(of: registry) }
      var slots: [FileSlot] = []
      for descriptor in device.descriptors { slots.append(try thread.core.register(descriptor)) }
      files.append(slots)
    }
    var places: [Place] = []
    for index in 0..<identity.queueLimit where !threads.isEmpty {
      let place = device.group(of: index) % threads.count
      guard let seat = threads[place].core.reserveSeat() else {
        throw .system(call: "queue thread seats", code: 28)
      }
      places.append(Place(thread: threads[place], seat: seat, files: files[place]))
    }
    self.places = places
  }

  /// Starts a queue; nil means that it runs.
  public func start(_ index: Int, _ setup: QueueSetup) -> QueueStartError? {
    guard index >= 0, index < places.count else { return .alreadyRunning }
    let isFirst = running.withLock { $0.isEmpty }
    if isFirst {
      do { try device.willRun() } catch { return .device(error) }
    }
    let failure = install(index, setup)
    if failure == nil {
      running.withLock { _ = $0.insert(index) }
      if setup.enabled { device.setQueue(index, isServed: true) }
    } else if isFirst {
      device.didStop()
    }
    return failure
  }

  /// Asks the device for a worker, and the queue thread to run it.
  private func install(_ index: Int, _ setup: QueueSetup) -> QueueStartError? {
    let place = places[index]
    let launch = Launch()
    do {
      try device.start(
        QueueStart(
          index: index, size: setup.layout.size, features: setup.features, files: place.files, launch: launch)
      )
    } catch {
      return .device(error)
    }
    guard let maker = launch.makeRunner else { return .notTaken }
    let counters = counters[index]
    return place.thread.ask { core in core.install(maker, seat: place.seat, setup, counters: counters) }
  }

  /// Stops queues: none takes another chain, and when the last chain of each is in its used ring, their bases come back
  /// in the order asked for (nil for one that does not run). `waiting` is called every second that this takes.
  public func stop(_ indices: [Int], waiting: (Duration) -> Void = { _ in }) -> [UInt32?] {
    let replies = indices.map { index -> Reply<UInt32?> in
      let reply = Reply<UInt32?>()
      guard index >= 0, index < places.count else {
        reply.fulfil(nil)
        return reply
      }
      let place = places[index]
      place.thread.mailbox.post { core in
        if !core.drain(place.seat, done: { reply.fulfil($0) }) { reply.fulfil(nil) }
      }
      return reply
    }
    var waited = Duration.zero
    let bases = replies.map { reply in
      while true {
        if let answer = reply.wait(timeout: .seconds(1)) { return answer }
        waited += .seconds(1)
        waiting(waited)
      }
    }
    let ended = running.withLock { running in
      let before = running.isEmpty
      running.subtract(indices)
      return !before && running.isEmpty
    }
    for (index, base) in zip(indices, bases) where base != nil { device.setQueue(index, isServed: false) }
    if ended { device.didStop() }
    return bases
  }

  /// Whether a queue takes chains. In-flight requests of a disabled one still complete.
  public func setEnabled(_ index: Int, _ enabled: Bool) {
    onRunner(index) { $0.isEnabled = enabled }
    if running.withLock({ $0.contains(index) }) { device.setQueue(index, isServed: enabled) }
  }

  /// How many queues share the fullest of `threads` threads.
  public static func seats(for device: any VirtioDevice, threads: Int) -> Int {
    guard threads > 0 else { return 0 }
    var counts = [Int](repeating: 0, count: threads)
    for index in 0..<device.identity.queueLimit { counts[device.group(of: index) % threads] += 1 }
    return counts.max() ?? 0
  }

  /// Replaces the kick descriptor of a running queue; it is polled at once. Nil where that worked.
  public func setKick(_ index: Int, _ descriptor: Int32?) -> HostError? {
    onRunner(index) { runner in Self.caught { () throws(HostError) in try runner.line.setKick(descriptor) } }
      ?? nil
  }

  /// Replaces the call descriptor of a running queue, and signals the new one once.
  public func setCall(_ index: Int, _ descriptor: Int32?) -> HostError? {
    onRunner(index) { runner in
      Self.caught { () throws(HostError) in try runner.line.setCall(descriptor, signal: true) }
    } ?? nil
  }

  /// Replaces the error descriptor of a running queue.
  public func setError(_ index: Int, _ descriptor: Int32?) -> HostError? {
    onRunner(index) { runner in Self.caught { () throws(HostError) in try runner.line.setError(descriptor) } }
      ?? nil
  }

  /// Holds the memory of a map in place, for a device that asks for that, and lets go what was held before; nil: all of it.
  /// Before queues move to the map. Nil where that worked; else requests go without.
  public func pin(_ map: GuestMemoryMap?) -> HostError? {
    guard let registry else { return nil }
    var failure: HostError?
    do {
      try registry.set(
        // SAFETY: only addresses are taken; the owners keep what lies there.
        (map?.regions ?? []).map {
          (start: unsafe UInt(bitPattern: $0.host), length: $0.size, owner: $0.owner)
        })
    } catch {
      failure = error
    }
    let ranges = registry.ranges
    for thread in threads {
      if let error = thread.ask({ $0.takeBuffers(of: registry, ranges) }) { failure = error }
    }
    return failure
  }

  /// Moves running queues to a new memory map; returns those whose rings are not in it, which are broken.
  public func move(_ indices: [Int], to map: GuestMemoryMap) -> [Int] {
    indices.filter { onRunner($0) { $0.move(to: map) } == false }
  }

  /// Has a running queue note its writes to guest memory there; nil: nowhere. When this returns it notes nothing more in
  /// the log it had before.
  public func setLog(_ index: Int, _ log: QueueLog?) { onRunner(index) { $0.setLog(log) } }

  @discardableResult
  func onRunner<Value: Sendable>(
    _ index: Int, _ body: @escaping @Sendable (any QueueRunning) -> Value
  ) -> Value? {
    guard index >= 0, index < places.count else { return nil }
    let place = places[index]
    return place.thread.ask { core in core.runner(place.seat).map(body) }
  }

  private static func caught(_ body: () throws(HostError) -> Void) -> HostError? {
    do {
      try body()
      return nil
    } catch {
      return error
    }
  }
}
