// The same random histories through a split ring, a packed ring and a plain model: chains, contents, completions in any
// order, and who must be told of what.

import Testing
import VirtQueue

/// One step of a history, the same for every format.
private enum Step {
  case add([Piece], Shape)
  /// Take the next chain; set it aside, or complete it at once.
  case next(hold: Bool, share: Int)
  case complete(pick: Int, share: Int)
  case publish
  case collect(atMost: Int)
  case ask(kind: Int, distance: Int)
  case park
  case unpark
  case move(Int)
}

private struct History {
  let size: Int
  let eventIndex: Bool
  let steps: [Step]
  /// Where the ring starts: from here split indices soon wrap, and a packed ring is somewhere in a lap.
  private let start: Int

  func base(_ format: Format) -> UInt32 {
    if format == .split { return UInt32(65535 - start) }
    let position = UInt32(start % size) | (start % 2 == 0 ? 0x8000 : 0)
    return position | position << 16
  }

  /// Where requests that are out have 1024 writable bytes each to themselves, one of them over a region border.
  static let slots = (0..<64).map { Place.writeBorder - 32 * 1024 - 512 + UInt64($0 * 1024) }

  init(seed: Int) {
    var dice = Dice(UInt64(seed) &* 2_654_435_761)
    size = [1, 2, 4, 8, 16, 32, 64][Int.random(in: 0..<7, using: &dice)]
    eventIndex = Bool.random(using: &dice)
    start = Int.random(in: 0..<100, using: &dice)
    // Some histories are short of completions, some of requests.
    let weights = (0..<9).map { _ in Int.random(in: 1...10, using: &dice) }
    var steps: [Step] = []
    for _ in 0..<1000 {
      var draw = Int.random(in: 0..<weights.reduce(0, +), using: &dice)
      var kind = 0
      while draw >= weights[kind] {
        draw -= weights[kind]
        kind += 1
      }
      switch kind {
      case 0, 1: steps.append(Self.add(&dice))
      case 2:
        steps.append(
          .next(hold: Int.random(in: 0..<4, using: &dice) > 0, share: Int.random(in: 0...4, using: &dice)))
      case 3:
        steps.append(
          .complete(pick: Int.random(in: 0..<64, using: &dice), share: Int.random(in: 0...4, using: &dice)))
      case 4: steps.append(.publish)
      case 5: steps.append(.collect(atMost: Int.random(in: 1...10, using: &dice)))
      case 6:
        steps.append(
          .ask(kind: Int.random(in: 0..<4, using: &dice), distance: Int.random(in: -3...10, using: &dice)))
      case 7: steps += Bool.random(using: &dice) ? [.park] : [.unpark]
      default: steps.append(.move(Int.random(in: 0..<3, using: &dice)))
      }
    }
    self.steps = steps
  }

  /// Pieces of a request; the writable ones are placed when its serial is known.
  private static func add(_ dice: inout Dice) -> Step {
    var pieces: [Piece] = []
    for _ in 0..<Int.random(in: 0...4, using: &dice) {
      let length = [0, 1, 3, 16, 200][Int.random(in: 0..<5, using: &dice)]
      let place: UInt64 =
        length == 0
        ? .random(in: 0 ... .max, using: &dice) : Place.readBorder - 400 + .random(in: 0..<600, using: &dice)
      pieces.append(.read(place, length))
    }
    for _ in 0..<Int.random(in: 0...6, using: &dice) {
      pieces.append(.write(UInt64.random(in: 0...20, using: &dice), Int.random(in: 0...120, using: &dice)))
    }
    if pieces.isEmpty { pieces.append(.read(Place.read, 16)) }
    let shapes: [Shape] = [
      .direct, .direct, .indirect,
      pieces.count > 1 ? .mixed(direct: Int.random(in: 1..<pieces.count, using: &dice)) : .direct,
    ]
    return .add(pieces, shapes[Int.random(in: 0..<4, using: &dice)])
  }
}

/// Plays a history on one format and compares it with the model at every step.
private final class Player {
  let rig: Rig
  let format: Format
  let eventIndex: Bool
  let maps: [GuestMemoryMap]
  var model: ModelQueue
  var serial = 0
  private var slots = History.slots
  private var slotOf: [Int: UInt64] = [:]
  /// Serials and lengths in the order of their collection.
  var log: [[Int]] = []

  init(_ format: Format, _ history: History) throws {
    self.format = format
    eventIndex = history.eventIndex
    let rig = try Rig(format, size: history.size, base: history.base(format), eventIndex: history.eventIndex)
    self.rig = rig
    maps = try (0..<3).map { _ in try rig.memory.newMap(generation: 1).map }
    model = ModelQueue(
      format, size: history.size, eventIndex: history.eventIndex, start: rig.driver.collected)
  }

  /// Nil where all is as the model has it; otherwise what is not.
  func play(_ step: Step) -> String? {
    switch step {
    case .add(let pieces, let shape): return add(pieces, shape)
    case .next(let hold, let share): return next(hold: hold, share: share)
    case .complete(let pick, let share):
      guard !model.out.isEmpty else { return nil }
      return complete(pick % model.out.count, share: share)
    case .publish:
      let owed = model.publish()
      let notify = rig.ring.publish()
      return notify == (owed ? .call : .none) ? nil : "publish says \(notify), owed: \(owed)"
    case .collect(let most):
      for _ in 0..<most { if let wrong = collect() { return wrong } }
      return nil
    case .ask(let kind, let distance): ask(kind, distance)
    case .park:
      let there = model.park()
      return rig.ring.park() == there ? nil : "park does not say \(there)"
    case .unpark:
      model.unpark()
      rig.ring.unpark()
    case .move(let i): return rig.ring.move(to: maps[i]) ? nil : "cannot move"
    }
    return nil
  }

  private func add(_ asked: [Piece], _ shape: Shape) -> String? {
    // So many in either format that both have the same history.
    let budget = shape.ringDescriptors(asked.count)
    guard model.hasRoom(budget) else { return nil }
    let slot = slots.removeFirst()
    var place = slot
    let pieces = asked.map { piece in
      guard piece.writable else { return piece }
      let moved = Piece.write(place + piece.address, piece.length)
      place = moved.address + UInt64(piece.length)
      return moved
    }
    let mine: Shape = if case .mixed = shape, format == .packed { .indirect } else { shape }
    guard let token = rig.driver.add(pieces, mine) else { return "no room" }
    let request = ModelQueue.Request(
      serial: serial, token: token, pieces: pieces, descriptors: mine.ringDescriptors(pieces.count),
      budget: budget)
    slotOf[serial] = slot
    serial += 1
    let owed = model.add(request)
    return rig.driver.kickWanted() == owed ? nil : "the driver is not asked to kick: \(owed)"
  }

  private func next(hold: Bool, share: Int) -> String? {
    let request = model.next()
    guard let chain = try? rig.ring.chain() else {
      return request == nil
        ? nil
        : "no chain, expected \(String(describing: request)), fault \(String(describing: rig.ring.fault))"
    }
    guard let request else { return "a chain under \(chain.head) out of nothing" }
    let room = request.pieces.filter(\.writable).reduce(0) { $0 + $1.length }
    guard chain.head == request.token, !chain.hasHole, chain.readable.contents == expected(request.pieces),
      chain.writable.byteCount == room, chain.readable.byteCount == expected(request.pieces).count
    else { return "chain \(chain.head) is not \(request)" }
    let head = chain.surrender()?.hold()
    return hold ? nil : complete(model.out.count - 1, share: share, head: head)
  }

  /// Completes what is out at `index`, having written a share of its writable bytes.
  private func complete(_ index: Int, share: Int, head: UInt16? = nil) -> String? {
    let request = model.out[index]
    guard let chain = rig.ring.take(request.token) else { return "\(request) is not held" }
    let given = GivenChain(chain)
    let written = given.writable.byteCount * share / 4
    guard given.writable.copyIn(Self.answer(request.serial, written)) == written else {
      return "cannot write"
    }
    rig.ring.complete(given, written: written)
    model.complete(index, written: written)
    return rig.ring.liveCount == model.out.count ? nil : "\(rig.ring.liveCount) are out"
  }

  private static func answer(_ serial: Int, _ count: Int) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: serial &* 7 &+ $0 &* 13 &+ 1) }
  }

  private func collect() -> String? {
    let used = rig.driver.collect()
    guard let request = model.collect() else { return used == nil ? nil : "\(used!) out of nothing" }
    guard let used, used.token == request.token, used.length == request.written else {
      return "used is \(String(describing: used)), expected \(request)"
    }
    let written = request.pieces.filter(\.writable).flatMap { rig.memory.bytes(at: $0.address, $0.length) }
    guard Array(written.prefix(request.written)) == Self.answer(request.serial, request.written) else {
      return "\(request) was not written"
    }
    log.append([request.serial, request.written])
    if let slot = slotOf.removeValue(forKey: request.serial) { slots.append(slot) }
    return nil
  }

  private func ask(_ kind: Int, _ distance: Int) {
    let collected = rig.driver.collected
    let wish: Wish =
      switch kind {
      case 0: .always
      case 1: .never
      default: eventIndex ? .passing(max(0, collected + distance)) : .always
      }
    rig.driver.ask(wish)
    model.driverAsks(wish, collected: collected)
  }

  /// Brings everything home.
  func finish() -> String? {
    while !model.waiting.isEmpty || !model.out.isEmpty {
      if let wrong = play(.next(hold: false, share: 4)) ?? play(.complete(pick: 0, share: 1)) { return wrong }
    }
    if let wrong = play(.publish) ?? play(.collect(atMost: 200)) { return wrong }
    guard rig.ring.fault == nil, rig.ring.liveCount == 0, rig.driver.collect() == nil else {
      return "not empty"
    }
    guard log.map({ $0[0] }).sorted() == Array(0..<serial) else { return "not every request exactly once" }
    return rig.memory.canariesIntact ? nil : "memory beside the regions was written"
  }
}

@Suite("Random histories")
struct PropertyTests {
  @Test("Split, packed and model agree on every step", arguments: 0..<8)
  func agree(part: Int) throws {
    var requests = 0
    for seed in part * 50..<(part + 1) * 50 {
      let history = History(seed: seed)
      var logs: [[[Int]]] = []
      for format in Format.allCases {
        let player = try Player(format, history)
        for (i, step) in history.steps.enumerated() {
          guard let wrong = player.play(step) else { continue }
          Issue.record("seed \(seed), \(format), step \(i), \(step): \(wrong)")
          return
        }
        if let wrong = player.finish() {
          Issue.record("seed \(seed), \(format), at the end: \(wrong)")
          return
        }
        logs.append(player.log)
      }
      #expect(logs[0] == logs[1], "seed \(seed): both formats give the same history")
      requests += logs[0].count
    }
    #expect(requests > 2000, "the histories are about something")
  }
}
