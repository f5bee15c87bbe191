// A driver and a device on threads of their own, on one queue, asleep whenever they may be: no kick and no call is lost,
// and what one side wrote is there when the other looks (SR14, PR10).

import CLinux
import Testing
import VirtQueue

/// How a run went on one side.
private struct Outcome: Sendable, Equatable {
  var served = 0
  var sleeps = 0
  /// Empty where all was well.
  var wrong = ""
}

/// What both sides agree on.
private struct Run: Sendable {
  let format: Format
  let size: Int
  let eventIndex: Bool
  let total: Int
  let kick = Bell()
  let call = Bell()

  static func length(of serial: UInt64) -> Int { Int(serial &* 2_654_435_761 >> 7 & 7) + 1 }
}

/// Writes some of what it reads; what, and how much.
private func echo(_ chain: borrowing Chain, by answer: UnsafeMutableRawBufferPointer) -> (
  serial: UInt64, copied: Int
) {
  let serial = chain.readable.load(UInt64.self) ?? .max
  answer.storeBytes(of: serial, as: UInt64.self)
  let part = UnsafeRawBufferPointer(rebasing: answer[..<Run.length(of: serial)])
  return (serial, chain.writable.copyIn(from: part))
}

/// The device: serves what comes, in order; sleeps when nothing does.
private func serve<R: VirtRing & ~Copyable>(_ ring: consuming R, _ run: Run) -> Outcome {
  var ring = ring
  var dice = Dice(0xd1ce)
  var outcome = Outcome()
  let answer = UnsafeMutableRawBufferPointer.allocate(byteCount: 8, alignment: 8)
  defer { answer.deallocate() }
  ring.unpark()
  while outcome.served < run.total {
    // Sometimes a batch is cut short.
    var room = Int.random(in: 1...2 * run.size, using: &dice)
    while room > 0, let chain = ring.next() {
      let (serial, copied) = echo(chain, by: answer)
      ring.complete(chain, written: UInt32(copied))
      guard serial == UInt64(outcome.served), copied == Run.length(of: serial) else {
        outcome.wrong = "chain \(outcome.served) holds \(serial)"
        return outcome
      }
      outcome.served += 1
      room -= 1
    }
    if ring.publish() == .call { run.call.ring() }
    if outcome.served == run.total || room == 0 { continue }
    if ring.park() {
      ring.unpark()
      continue
    }
    outcome.sleeps += 1
    guard run.kick.wait() else {
      outcome.wrong = "no kick after \(outcome.served), fault \(String(describing: ring.fault))"
      return outcome
    }
    ring.unpark()
  }
  return outcome
}

/// The driver: adds batches, collects, sleeps when it can do neither.
private func drive(_ driver: any TestDriver, _ run: Run) -> Outcome {
  var dice = Dice(0xca11)
  var outcome = Outcome()
  var added = 0
  var serialOf = [Int](repeating: -1, count: run.size)
  driver.ask(.never)
  while outcome.served < run.total {
    var batch = Int.random(in: 1...run.size, using: &dice)
    while batch > 0, added < run.total, added - outcome.served < run.size {
      // Each place of the ring has its bytes to read and to write; ids and heads are below the size.
      let place = UInt64(added % run.size) * 16
      let pieces: [Piece] = [.read(Place.read + place, 8), .write(Place.write + place, 8)]
      driver.memory.host(Place.read + place).storeBytes(of: UInt64(added), as: UInt64.self)
      let shape: Shape = run.size == 1 || added % 3 == 0 ? .indirect : .direct
      guard let token = driver.add(pieces, shape) else { break }
      serialOf[Int(token)] = added
      added += 1
      batch -= 1
    }
    if driver.kickWanted() { run.kick.ring() }
    var collected = 0
    while let used = driver.collect() {
      let serial = outcome.served
      let place = Place.write + UInt64(serial % run.size) * 16
      let length = Run.length(of: UInt64(serial))
      let bytes = driver.memory.host(place).load(as: UInt64.self)
      let mask: UInt64 = length == 8 ? .max : (1 << (8 * length)) - 1
      guard used.token < run.size, serialOf[Int(used.token)] == serial, used.length == length,
        bytes & mask == UInt64(serial) & mask
      else {
        outcome.wrong = "used \(used) for \(serial)"
        return outcome
      }
      outcome.served += 1
      collected += 1
    }
    if collected > 0 || outcome.served == run.total { continue }
    if run.eventIndex {
      // Sometimes not for the next one, but for the last that is out.
      let ahead = run.format == .split && Bool.random(using: &dice) ? added - outcome.served - 1 : 0
      driver.ask(.passing(driver.collected + max(0, ahead)))
    } else {
      driver.ask(.always)
    }
    if driver.hasUsed { continue }
    outcome.sleeps += 1
    guard run.call.wait() else {
      outcome.wrong = "no call after \(outcome.served) of \(added)"
      return outcome
    }
    if !run.eventIndex { driver.ask(.never) }
  }
  return outcome
}

@Suite("Two threads")
struct ConcurrencyTests {
  #if DEBUG
    private static let total = 40_000
  #else
    private static let total = 200_000
  #endif

  @Test(
    "SR14: no kick and no call is lost while both sides sleep", arguments: Format.allCases, [true, false])
  func noLostWakeups(format: Format, eventIndex: Bool) throws {
    for size in [1, 4, 32] {
      let run = Run(
        format: format, size: size, eventIndex: eventIndex, total: Self.total / (size == 1 ? 3 : 1))
      let memory = try Place.memory()
      let driver = makeDriver(format, size: size, memory: memory, eventIndex: eventIndex)
      let layout = driver.layout
      let map = memory.map
      let device = TestThread {
        switch format {
        case .split: serve(try SplitRing(layout, map: map), run)
        case .packed: serve(try PackedRing(layout, map: map), run)
        }
      }
      let driven = drive(driver, run)
      let served = try #require(device.join())
      #expect(served.wrong == "")
      #expect(driven.wrong == "")
      #expect(served.served == run.total)
      #expect(driven.served == run.total)
      #expect(served.sleeps > 0 && driven.sleeps > 0, "both did sleep")
      #expect(memory.canariesIntact)
    }
  }
}
