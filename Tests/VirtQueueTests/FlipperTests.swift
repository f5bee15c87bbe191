// A driver that changes everything while the device looks: what the device acts on is what it read once and checked
// (PR11, and what MM16 asks of rings).

import CLinux
import Synchronization
import Testing
import VirtQueue

/// Values that lead to the edges of things.
private struct Poison {
  var dice: Dice

  mutating func pick<T>(_ values: [T]) -> T { values[Int.random(in: 0..<values.count, using: &dice)] }

  mutating func address() -> UInt64 {
    let near = UInt64.random(in: 0..<32, using: &dice)
    return pick([
      Place.read + near, Place.readBorder - near, Place.readEnd - near, Place.write + near,
      Place.writeBorder - near,
      Place.writeEnd - near, Place.hole, Place.topEnd - near, .max - near, Place.tables,
      Place.tables + 16 * near,
      Place.tablesBorder - 8 * near, Place.tablesEnd - near, Place.ring + 16 * near,
    ])
  }

  mutating func length() -> UInt32 {
    pick([
      0, 1, 16, 16, 32, 48, 64, 128, 128, 512, 0x1000, 0x1000, 0x1_0000, 0x2_0000, 0x7fff_ffff, 0xffff_ffff,
    ])
  }

  mutating func flags() -> UInt16 { pick([0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4, 5, 6, 7]) }

  mutating func index(_ size: Int) -> UInt16 {
    UInt16.random(in: 0..<UInt16(size), using: &dice) + pick([0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
  }
}

/// One side of memory, rewritten all the time until it is told to stop. Returns how often.
private func flip(
  _ memory: TestMemory, _ layout: Format, size: Int, seed: UInt64, until stop: Flag
) -> Int {
  var poison = Poison(dice: Dice(seed))
  let available = Place.ring + UInt64(16 * size)
  var rounds = 0
  while !stop.isSet {
    let table = Bool.random(using: &poison.dice)
    let place =
      table
      ? poison.pick([Place.tables, Place.tablesBorder - 64]) + 16
        * UInt64.random(in: 0..<8, using: &poison.dice)
      : Place.ring + 16 * UInt64.random(in: 0..<UInt64(size), using: &poison.dice)
    let host = memory.host(place)
    // Field by field, so that a reader meets every mixture.
    switch Int.random(in: 0..<4, using: &poison.dice) {
    case 0: clx_store_relaxed_u64(host, poison.address())
    case 1: clx_store_relaxed_u32(host + 8, poison.length())
    case 2:
      var flags = poison.flags()
      if layout == .packed {
        flags |= poison.pick([Bits.available, Bits.used, 0, Bits.available | Bits.used])
      }
      clx_store_relaxed_u16(host + (layout == .packed ? 14 : 12), flags)
    default: clx_store_relaxed_u16(host + (layout == .packed ? 12 : 14), poison.index(size))
    }
    if layout == .split {
      let entry = UInt64.random(in: 0..<UInt64(size), using: &poison.dice)
      clx_store_relaxed_u16(memory.host(available + 4 + 2 * entry), poison.index(size))
    }
    rounds += 1
  }
  return rounds
}

/// What is wrong with a chain as the device was given it; empty where nothing is.
private func defect(of part: GivenChain.Part, in memory: TestMemory) -> String {
  var bytes = 0
  for vector in part.vectors {
    bytes += vector.iov_len
    if let base = vector.iov_base, !memory.holds(base, vector.iov_len) {
      return "\(vector) is not in guest memory"
    }
    if vector.iov_len == 0 { return "an empty segment" }
  }
  return bytes == part.byteCount ? "" : "\(bytes) bytes, said to be \(part.byteCount)"
}

@Suite("A driver that rewrites what the device reads")
struct FlipperTests {
  @Test(
    "PR11, MM16: chains are whole and in guest memory, whatever is written meanwhile",
    arguments: Format.allCases)
  func flipped(format: Format) throws {
    let size = 8
    let memory = try Place.memory()
    let driver = makeDriver(format, size: size, memory: memory)
    let stop = Flag()
    let flipper = TestThread { flip(memory, format, size: size, seed: 0xf11b, until: stop) }
    let start = ContinuousClock.now
    var layout = driver.layout
    var dice = Dice(0xdead)
    var chains = 0
    var faults: [String: Int] = [:]
    var wrong = ""
    let mark = [UInt8](repeating: 0xa5, count: 64)
    // A second, and on a busy machine as long as it takes to have met something.
    while wrong.isEmpty, ContinuousClock.now < start + .seconds(chains < 2000 ? 100 : 1) {
      if format == .packed { layout.base = 0x1_0001 * (UInt32.random(in: 0..<8, using: &dice) | 0x8000) }
      let ring = try makeRing(format, layout, memory.map)
      var available = UInt16(truncatingIfNeeded: ring.base)
      var held: [UInt16] = []
      for _ in 0..<500 where ring.fault == nil {
        available &+= 1
        if let split = driver as? SplitDriver { split.setAvailableIndex(available) }
        guard let next = ring.next() else { continue }
        let chain = GivenChain(next)
        chains += 1
        wrong += defect(of: chain.readable, in: memory) + defect(of: chain.writable, in: memory)
        let isHole = (chain.readable.vectors + chain.writable.vectors).contains { $0.iov_base == nil }
        if isHole != chain.hasHole { wrong += "a hole is not told" }
        _ = chain.readable.copyOut(64)
        // Both ends of what may be written, canaries behind them.
        _ = chain.writable.copyIn(mark)
        _ = chain.writable.copyIn(mark, at: max(0, chain.writable.byteCount - 64))
        if chains % 3 == 0, let head = chain.surrender()?.hold() {
          held.append(head)
        } else {
          ring.complete(chain, written: chain.writable.byteCount)
        }
        if held.count > 3 { ring.finish(held.removeFirst()) }
        _ = ring.publish()
        _ = ring.park()
      }
      for head in held { ring.finish(head) }
      if ring.liveCount != 0 { wrong += "\(ring.liveCount) left" }
      if let fault = ring.fault { faults["\(fault)".prefix { $0 != "(" }.description, default: 0] += 1 }
    }
    stop.set()
    let rounds = try #require(flipper.join())
    #expect(wrong == "")
    #expect(memory.canariesIntact)
    #expect(rounds > 1000 && chains >= 2000, "\(rounds) writes, \(chains) chains")
    #expect(faults.count > 5, "\(faults)")
  }
}
