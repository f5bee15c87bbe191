// A process that is killed between any two of its stores: the ring's and the inflight log's bytes as they are after each
// store of the code that ships, and from each of these states a new life. Whatever the moment, every chain comes back
// once. With a store of the commit moved or left out there is a moment at which one does not.

import TestSupport
import Testing
import VirtQueue

/// The bytes that outlive a process.
private struct Remains: Equatable {
  var pieces: [[UInt8]]

  init(_ watched: [UnsafeMutableRawBufferPointer]) { pieces = watched.map { Array($0) } }

  func restore(to watched: [UnsafeMutableRawBufferPointer]) {
    for (piece, target) in zip(pieces, watched) { target.copyBytes(from: piece) }
  }

  /// The bytes that differ: one store.
  func changes(to next: Remains) -> [Change] {
    pieces.indices.flatMap { piece in
      pieces[piece].indices.compactMap { at in
        pieces[piece][at] == next.pieces[piece][at]
          ? nil : Change(piece: piece, offset: at, byte: next.pieces[piece][at])
      }
    }
  }
}

private struct Change { let piece, offset: Int, byte: UInt8 }

/// A queue whose device may die at any time.
private final class MortalQueue {
  static let chains = 5
  private static let ring = 0, log = 1
  let format: Format
  let memory: TestMemory
  let driver: any TestDriver
  private let area: InflightArea
  /// One page of ring, one of log.
  let watched: [UnsafeMutableRawBufferPointer]
  private var pieces: [UInt16: [Piece]] = [:]
  private let size = 16

  private final class Keeper: Sendable {}

  init(_ format: Format) throws {
    self.format = format
    memory = try Place.memory()
    driver = makeDriver(format, size: size, memory: memory)
    let log = memory.host(Place.ring + 0x1000)
    watched = [
      UnsafeMutableRawBufferPointer(start: memory.host(Place.ring), count: 4096),
      UnsafeMutableRawBufferPointer(start: log, count: 4096),
    ]
    let bytes = InflightArea.byteCount(size: UInt16(size), packed: format == .packed)
    area = InflightArea(base: log, byteCount: bytes, descriptorCount: UInt16(size), owner: Keeper())
    for i in 0..<Self.chains {
      let chain = [Piece.read(Place.read + UInt64(64 * i), 16), .write(Place.write + UInt64(64 * i), 8)]
      let token = try #require(driver.add(chain, i == 2 ? .indirect : .direct))
      pieces[token] = chain
    }
  }

  func start() throws -> any TestRing {
    switch format {
    case .split: RingBox(try SplitRing(driver.layout, map: memory.map, inflight: area))
    case .packed: RingBox(try PackedRing(driver.layout, map: memory.map, inflight: area))
    }
  }

  /// What was there after each store that `body` made, and before the first.
  func remains(of body: () throws -> Void) rethrows -> [Remains] {
    let watched = watched
    var found = [Remains(watched)]
    try Trap.watch(watched, after: { if $0.isWrite { found.append(Remains(watched)) } }, body)
    return found
  }

  /// A life in which batches of one and of two are completed, out of order, and two chains are not.
  func live() throws {
    let ring = try start()
    let first = try #require(ring.hold())
    let second = try #require(ring.hold())
    ring.finish(second)
    _ = ring.publish()
    let third = try #require(ring.hold())
    ring.finish(third)
    ring.finish(first)
    _ = ring.publish()
    _ = ring.hold()
  }

  /// A life that finishes all it finds.
  func finish() throws -> String? {
    let ring = try start()
    while let next = ring.next() {
      let chain = GivenChain(next)
      guard let wanted = pieces[chain.head], chain.readable.contents == expected(wanted) else {
        return "chain \(chain.head) is another than it was"
      }
      ring.complete(chain, written: 1)
    }
    _ = ring.publish()
    return ring.fault.map { "\($0)" }
  }

  /// The tokens the driver finds used, from the ring's beginning.
  func used() -> [UInt16] {
    var tokens: [UInt16] = []
    if let split = driver as? SplitDriver {
      let count = split.load16(split.used + 2)
      for i in 0..<UInt64(min(count, 16)) { tokens.append(split.load16(split.used + 4 + 8 * i)) }
    } else if let packed = driver as? PackedDriver {
      var position = 0
      while position < size, packed.isUsed(position) {
        let token = packed.word(position).id
        tokens.append(token)
        guard let chain = pieces[token] else { break }
        position += chain[0].address == Place.read + 128 ? 1 : chain.count
      }
    }
    return tokens
  }

  /// What is wrong with a new life from such remains; nil where every chain comes back once.
  func defect(after remains: Remains) -> String? {
    remains.restore(to: watched)
    do {
      if let defect = try finish() { return defect }
    } catch {
      return "the ring does not start: \(error)"
    }
    let found = used()
    return found.sorted() == pieces.keys.sorted() ? nil : "came back: \(found), were: \(pieces.keys.sorted())"
  }

  /// The same stores in the order that `mutate` gives them, and what remains after each.
  func remains(_ recorded: [Remains], mutate: ([[Change]]) -> [[Change]]) -> [Remains] {
    let stores = zip(recorded, recorded.dropFirst()).map { $0.changes(to: $1) }
    var state = recorded[0]
    return [state]
      + mutate(stores).map { store in
        for change in store { state.pieces[change.piece][change.offset] = change.byte }
        return state
      }
  }

  /// Whether a store makes chains used: it changes the used index, or a descriptor's second half.
  func isPublic(_ store: [Change]) -> Bool {
    guard let change = store.first, change.piece == Self.ring else { return false }
    switch driver {
    case let split as SplitDriver: return change.offset == Int(split.used - split.descriptors) + 2
    default: return change.offset < 16 * size && change.offset % 16 >= 8
    }
  }

  func isLogged(_ store: [Change]) -> Bool { store.first?.piece == Self.log }
  /// The log's word of what is about to become public.
  func isAnnouncement(_ store: [Change]) -> Bool {
    let offsets = format == .split ? 12...13 : 16...17
    return store.first.map { $0.piece == Self.log && offsets.contains($0.offset) } ?? false
  }
}

@Suite(
  "death between any two stores", .enabled(if: Trap.isSupported, "needs an x86-64 processor"), .serialized)
struct CrashPointTests {
  @Test("every chain comes back once, whatever the last store was", arguments: Format.allCases)
  func anyStore(format: Format) throws {
    let queue = try MortalQueue(format)
    let states = try queue.remains { try queue.live() }
    #expect(states.count > 25, "\(states.count) stores")
    for (i, state) in states.enumerated() {
      let defect = queue.defect(after: state)
      #expect(defect == nil, "after store \(i)")
    }
  }

  @Test("the same when the life that recovers is killed as well", arguments: Format.allCases)
  func twice(format: Format) throws {
    let queue = try MortalQueue(format)
    let states = try queue.remains { try queue.live() }
    var lives = 0
    for (i, state) in states.enumerated() {
      state.restore(to: queue.watched)
      let second = try queue.remains { _ = try queue.finish() }
      for (j, remains) in second.enumerated() {
        lives += 1
        if let defect = queue.defect(after: remains) {
          Issue.record("after store \(i), then \(j): \(defect)")
          return
        }
      }
    }
    #expect(lives > 500)
  }

  @Test("with a batch made public after its marks are cleared, a chain is lost", arguments: Format.allCases)
  func wrongOrder(format: Format) throws {
    let queue = try MortalQueue(format)
    let recorded = try queue.remains { try queue.live() }
    let states = queue.remains(recorded) { stores in
      var stores = stores
      guard let shown = stores.firstIndex(where: queue.isPublic) else { return stores }
      var end = shown + 1
      while end < stores.count, stores[end].isEmpty || queue.isLogged(stores[end]) { end += 1 }
      stores.insert(stores.remove(at: shown), at: end - 1)
      return stores
    }
    #expect(states.contains { queue.defect(after: $0) != nil })
  }

  @Test("without the word of what is about to become public, a chain comes twice", arguments: Format.allCases)
  func unannounced(format: Format) throws {
    let queue = try MortalQueue(format)
    let recorded = try queue.remains { try queue.live() }
    let states = queue.remains(recorded) { $0.filter { !queue.isAnnouncement($0) } }
    #expect(states.contains { queue.defect(after: $0) != nil })
  }
}
