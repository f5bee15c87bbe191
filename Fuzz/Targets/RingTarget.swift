// Rings against a driver that writes anything: chain walks of both formats, indirect tables, moves to other maps, and, for
// the inflight target, logs of any content and lives that end anywhere. One thread.

import CLinux
import Glibc
import VirtQueue

enum RingTarget {
  static let split = FuzzTarget(
    name: "split",
    about: "the split ring: chains, indirect tables and indices as a hostile driver writes them",
    longest: 2048
  ) { try play($0, packed: false, logged: false) }

  static let packed = FuzzTarget(
    name: "packed", about: "the packed ring: the same", longest: 2048
  ) { try play($0, packed: true, logged: false) }

  static let inflight = FuzzTarget(
    name: "inflight",
    about: "inflight logs of any content, of either format, over several lives of the process",
    longest: 2048
  ) { input in
    try play(Array(input.dropFirst()), packed: (input.first ?? 0) & 1 == 1, logged: true)
  }

  // SAFETY: targets run on one thread.
  private nonisolated(unsafe) static let memory = try? FuzzMemory()

  private static func play(_ input: [UInt8], packed: Bool, logged: Bool) throws {
    guard let memory else { throw Defect("no memory to play in") }
    memory.clear()
    var feed = Feed(input)
    let sizes: [UInt16] = packed ? [8, 4, 1, 2, 7, 64, 256] : [8, 4, 1, 2, 16, 64, 256]
    var driver = WildDriver(memory: memory, packed: packed, size: feed.pick(sizes))
    let options = feed.u8()
    var layout = driver.layout(base: packed ? 0x8000_8000 : 0)
    layout.indirect = options & 1 == 0
    layout.eventIndex = options & 2 == 0
    if options & 4 != 0 { layout.base = feed.u32() }
    let log = logged ? FuzzLog(size: layout.size, packed: packed, &feed) : nil
    // A killed process leaves ring and log as they are; the next one goes on from there.
    for life in 0..<(logged ? 4 : 1) where life == 0 || !feed.isEmpty {
      // A layout or a log that cannot be is refused: nothing more to play.
      if packed {
        guard let ring = try? PackedRing(layout, map: memory.map, inflight: log?.area) else { return }
        try driver.drive(ring, &feed, lives: logged)
      } else {
        guard let ring = try? SplitRing(layout, map: memory.map, inflight: log?.area) else { return }
        try driver.drive(ring, &feed, lives: logged)
      }
    }
  }
}

/// An inflight area of exactly its size, filled as the input says.
private final class FuzzLog {
  private final class Keeper: Sendable {}
  let area: InflightArea
  private let bytes: UnsafeMutableRawBufferPointer

  init(size: UInt16, packed: Bool, _ feed: inout Feed) {
    let count = feed.pick([size, size, size, size &+ 1, size / 2, 300])
    let length = InflightArea.byteCount(size: count, packed: packed)
    bytes = .allocate(byteCount: length, alignment: 64)
    bytes.initializeMemory(as: UInt8.self, repeating: 0)
    area = InflightArea(base: bytes.baseAddress!, byteCount: length, descriptorCount: count, owner: Keeper())
    guard feed.u8() & 3 != 0 else { return }
    // Version and count mostly as they must be: everything else is looked at only then.
    set(UInt16(feed.u8() & 7 == 7 ? 2 : 1), at: 8)
    set(feed.u8() & 7 == 7 ? feed.u16() : count, at: 10)
    for offset in stride(from: 12, to: packed ? 22 : 16, by: 2) { set(UInt16(feed.u8() & 15), at: offset) }
    let (first, entry) = packed ? (32, 32) : (16, 16)
    for _ in 0..<feed.below(16) {
      let index = feed.below(Int(count))
      let place = first + entry * index
      set(UInt16(feed.u8() & 1), at: place)
      for field in stride(from: 2, to: 8, by: 2) { set(UInt16(feed.u8() & 15), at: place + field) }
      if packed {
        set(UInt16(feed.u8() & 15), at: place + 16)
        set(feed.pick([0, 1, 2, 3, 4, 6, 0x80, 0x8080]), at: place + 18)
        bytes.storeBytes(of: FuzzMemory.length(&feed), toByteOffset: place + 20, as: UInt32.self)
        bytes.storeBytes(of: FuzzMemory.address(&feed), toByteOffset: place + 24, as: UInt64.self)
      } else {
        bytes.storeBytes(of: UInt64(feed.u8()), toByteOffset: place + 8, as: UInt64.self)
      }
    }
    for _ in 0..<feed.below(4) { bytes[feed.below(min(65536, length))] = feed.u8() }
  }

  deinit { bytes.deallocate() }

  private func set(_ value: UInt16, at offset: Int) {
    guard offset + 2 <= bytes.count else { return }
    bytes.storeBytes(of: value, toByteOffset: offset, as: UInt16.self)
  }
}
