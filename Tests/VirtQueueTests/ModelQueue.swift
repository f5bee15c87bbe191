// A queue as a plain list of requests, and what each side is owed: what the rings are compared with.

import VirtQueue

/// A queue without wrapping, bits or memory.
struct ModelQueue {
  struct Request: Equatable {
    let serial: Int
    let token: UInt16
    let pieces: [Piece]
    /// Descriptors of the ring that it takes.
    let descriptors: Int
    /// The most it may take in either format.
    let budget: Int
    var written = 0
  }
  /// What a side asks to be told of.
  enum Wanted: Equatable {
    case all
    case nothing
    case at(Int)
  }

  let format: Format
  let size: Int
  let eventIndex: Bool
  private(set) var waiting: [Request] = []
  private(set) var out: [Request] = []
  private(set) var completed: [Request] = []
  private(set) var used: [Request] = []
  /// Positions of what was made available, taken and published: chains (split), descriptors (packed).
  private(set) var added: Int
  private(set) var taken: Int
  private(set) var published: Int
  private var hasPublished = false
  /// What the driver and the device ask for. Zeroed memory asks for everything, or for position 0.
  private(set) var driverWants: Wanted
  private(set) var deviceWants: Wanted
  private var free: Int

  init(_ format: Format, size: Int, eventIndex: Bool, start: Int) {
    (added, taken, published) = (start, start, start)
    self.format = format
    self.size = size
    self.eventIndex = eventIndex
    let zero: Wanted = format == .split && eventIndex ? .at(0) : .all
    driverWants = zero
    deviceWants = zero
    free = size
  }

  private func step(_ request: Request) -> Int { format == .split ? 1 : request.descriptors }

  /// Whether positions have the same name in the ring.
  private func same(_ a: Int, _ b: Int) -> Bool {
    let names = format == .split ? 65536 : 2 * size
    return (a - b) % names == 0
  }

  private func owes(_ wanted: Wanted, _ passed: Range<Int>) -> Bool {
    switch wanted {
    case .all: !passed.isEmpty
    case .nothing: false
    case .at(let position): passed.contains { same($0, position) }
    }
  }

  // MARK: The driver

  func hasRoom(_ budget: Int) -> Bool { budget <= free }

  /// Returns whether the device is owed a kick.
  mutating func add(_ request: Request) -> Bool {
    free -= request.budget
    waiting.append(request)
    let before = added
    added += step(request)
    return owes(deviceWants, before..<added)
  }

  mutating func collect() -> Request? {
    guard !used.isEmpty else { return nil }
    let request = used.removeFirst()
    free += request.budget
    return request
  }

  mutating func driverAsks(_ wish: Wish, collected: Int) {
    switch wish {
    case .always: driverWants = format == .split && eventIndex ? .at(collected) : .all
    case .never: driverWants = format == .split && eventIndex ? .at(collected - 1) : .nothing
    case .passing(let position): driverWants = .at(position)
    }
  }

  // MARK: The device

  mutating func next() -> Request? {
    guard !waiting.isEmpty else { return nil }
    let request = waiting.removeFirst()
    taken += step(request)
    out.append(request)
    return request
  }

  mutating func complete(_ index: Int, written: Int) {
    var request = out.remove(at: index)
    request.written = written
    completed.append(request)
  }

  /// Returns whether the driver is owed a call.
  mutating func publish() -> Bool {
    guard !completed.isEmpty else { return false }
    let before = published
    published += completed.reduce(0) { $0 + step($1) }
    used += completed
    completed = []
    let isFirst = !hasPublished
    hasPublished = true
    if isFirst, case .at = driverWants { return true }
    return owes(driverWants, before..<published)
  }

  /// Returns whether work is there.
  mutating func park() -> Bool {
    deviceWants = eventIndex ? .at(taken) : .all
    return !waiting.isEmpty
  }

  mutating func unpark() {
    // A split ring's event is left where it is.
    if format == .packed || !eventIndex { deviceWants = .nothing }
  }
}
