// The load itself: keeps each queue full for a time. One thread for all queues, without an allocation a request.

import CLinux
import Glibc
import VhostFrontend

/// What one run saw.
struct LoadFigures {
  var requests: UInt64 = 0
  var nanoseconds: UInt64 = 0
  var latency = Histogram()
  /// Looks at the rings that found something.
  var rounds: UInt64 = 0
  var kicks: UInt64 = 0
  /// Waits in poll(2), and calls of the server that ended them.
  var sleeps: UInt64 = 0
  /// Requests of the least and of the most busy queue.
  var least: UInt64 = 0
  var most: UInt64 = 0
}

struct Load: ~Copyable {
  private let queues: [BlockQueue]
  private let options: LoadOptions
  /// Requests that fit side by side on the disk's part.
  private let places: UInt64
  private var next: UInt64 = 0
  private var random: UInt64 = 0x9e37_79b9_7f4a_7c15
  private var figures = LoadFigures()
  /// When each slot of each queue was submitted.
  private var starts: [[UInt64]]
  /// Requests of each queue in this run.
  private var done: [UInt64]

  init(_ driver: BlockDriver, _ options: LoadOptions, places: UInt64) {
    queues = driver.queues
    self.options = options
    self.places = places
    starts = Array(repeating: Array(repeating: 0, count: options.depth), count: queues.count)
    done = Array(repeating: 0, count: queues.count)
    if options.client == .poll { for queue in queues { queue.queue.ring.disarm() } }
  }

  /// Runs for a time; what is in flight at its end stays there for the next run.
  mutating func run(nanoseconds: UInt64) throws -> LoadFigures {
    figures = LoadFigures()
    for i in done.indices { done[i] = 0 }
    let begin = Self.now()
    for (i, queue) in queues.enumerated() { try fill(queue, i, at: begin) }
    var now = begin
    var quietSince = begin
    while now &- begin < nanoseconds {
      var progressed = false
      for (i, queue) in queues.enumerated() where try turn(queue, i, &now) { progressed = true }
      if progressed {
        quietSince = now
        continue
      }
      if options.client == .sleep { try sleep() }
      clx_pause()
      now = Self.now()
      if now &- quietSince > 10_000_000_000 { throw LoadError.stalled }
    }
    figures.nanoseconds = now &- begin
    figures.least = done.min() ?? 0
    figures.most = done.max() ?? 0
    return figures
  }

  /// Lets the time go by with nothing in flight.
  mutating func rest(nanoseconds: UInt64) -> LoadFigures {
    figures = LoadFigures()
    _ = poll(nil, 0, Int32(clamping: nanoseconds / 1_000_000))
    figures.nanoseconds = nanoseconds
    return figures
  }

  /// Takes what came back on one queue and puts as much in again.
  private mutating func turn(_ queue: BlockQueue, _ index: Int, _ now: inout UInt64) throws -> Bool {
    guard let first = queue.poll() else { return false }
    now = Self.now()
    var next: DiskCompletion? = first
    while let completion = next {
      guard completion.status == DiskRequest.ok else { throw LoadError.badStatus(completion.status) }
      figures.latency.add(now &- starts[index][Int(completion.slot)])
      figures.requests &+= 1
      done[index] &+= 1
      submit(queue, index, at: now)
      next = queue.poll()
    }
    figures.rounds &+= 1
    if queue.publish() { figures.kicks &+= 1 }
    return true
  }

  private mutating func fill(_ queue: BlockQueue, _ index: Int, at now: UInt64) throws {
    while queue.queue.ring.inFlight < queue.depth { submit(queue, index, at: now) }
    queue.publish()
  }

  private mutating func submit(_ queue: BlockQueue, _ index: Int, at now: UInt64) {
    random ^= random << 13
    random ^= random >> 7
    random ^= random << 17
    let place: UInt64
    switch options.order {
    case .random: place = (random >> 16).multipliedFullWidth(by: places << 16).high
    case .sequential:
      place = next
      next = next &+ 1 < places ? next &+ 1 : 0
    }
    let write =
      switch options.operation {
      case .read: false
      case .write: true
      // Three writes in ten.
      case .mixed: random % 10 < 3
      }
    let slot = queue.submit(
      type: write ? DiskRequest.Kind.write : DiskRequest.Kind.read,
      sector: place &* UInt64(options.bytes / 512), bytes: options.bytes, deviceWrites: !write)
    if let slot { starts[index][Int(slot)] = now }
  }

  /// Asks every queue for a call and waits for one of them.
  private mutating func sleep() throws {
    for queue in queues where queue.queue.ring.arm() { return }
    figures.sleeps &+= 1
    var entries = queues.map { pollfd(fd: $0.queue.call.raw, events: Int16(POLLIN), revents: 0) }
    // SAFETY: as many entries as the array has.
    let ready = unsafe entries.withUnsafeMutableBufferPointer {
      unsafe poll($0.baseAddress, nfds_t($0.count), 10_000)
    }
    if ready == 0 { throw LoadError.stalled }
    for (i, queue) in queues.enumerated() where entries[i].revents != 0 { queue.queue.call.take() }
  }

  /// Takes back what is in flight.
  mutating func finish() throws {
    let begin = Self.now()
    for queue in queues {
      while queue.queue.ring.inFlight > 0 {
        if queue.poll() == nil { clx_pause() }
        if Self.now() &- begin > 10_000_000_000 { throw LoadError.stalled }
      }
    }
  }

  static func now() -> UInt64 {
    var time = timespec()
    // SAFETY: fills the local value.
    unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
  }
}
