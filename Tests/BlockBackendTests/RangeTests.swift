// DISCARD and WRITE_ZEROES, as virtio 1.3 §5.2.6 has them, and as a hostile driver does.

import BlockBackend
import DeviceKit
import Foundation
import Testing

@Suite("discard and write zeroes")
struct RangeTests {
  typealias Segment = (sector: UInt64, sectors: UInt32, flags: UInt32)

  /// Sends the segments; status and used length.
  static func send(_ disk: Disk, _ type: UInt32, _ segments: [Segment], extra: Int = 0) throws -> (
    UInt8, UInt32
  ) {
    disk.writeHeader(type, sector: 0)
    for (i, segment) in segments.enumerated() {
      let place = disk.queue.pointer(disk.data + 16 * i)
      place.storeBytes(of: segment.sector, as: UInt64.self)
      place.storeBytes(of: segment.sectors, toByteOffset: 8, as: UInt32.self)
      place.storeBytes(of: segment.flags, toByteOffset: 12, as: UInt32.self)
    }
    let length = 16 * segments.count + extra
    var pieces: [(Int, Int, Bool)] = [(disk.header, 16, false)]
    if length > 0 { pieces.append((disk.data, length, false)) }
    pieces.append((disk.status, 1, true))
    let used = try disk.send(pieces)
    return (disk.statusByte, used)
  }

  static let discard: UInt32 = 11
  static let zero: UInt32 = 13

  static func blocks(_ disk: Disk) throws -> Int {
    var facts = stat()
    #expect(stat(disk.path, &facts) == 0)
    return Int(facts.st_blocks)
  }

  static let places = [NSTemporaryDirectory(), "/dev/shm"]

  @Test("discarded blocks return to the file system and read as zeros", arguments: places)
  func discards(place: String) throws {
    let disk = try Disk(at: place)
    let before = try Self.blocks(disk)
    #expect(try Self.send(disk, Self.discard, [(8, 800, 0), (1000, 8, 0)]) == (0, 1))
    #expect(try Self.blocks(disk) <= before - 800)
    #expect(disk.contents[8 * 512..<808 * 512].allSatisfy { $0 == 0 })
    #expect(disk.contents[808 * 512] == UInt8(truncatingIfNeeded: 808))
    #expect(disk.contents.count == Disk.sectors * 512)
  }

  @Test("zeroed sectors read as zeros, with and without giving them back", arguments: places, [UInt32(0), 1])
  func zeroes(place: String, flags: UInt32) throws {
    let disk = try Disk(at: place)
    let before = try Self.blocks(disk)
    #expect(try Self.send(disk, Self.zero, [(3, 5, flags), (100, 200, flags)]) == (0, 1))
    let contents = disk.contents
    #expect(contents[3 * 512..<8 * 512].allSatisfy { $0 == 0 })
    #expect(contents[100 * 512..<300 * 512].allSatisfy { $0 == 0 })
    #expect(contents[2 * 512] == 2 && contents[8 * 512] == 8 && contents[99 * 512] == 99)
    if flags == 1 {
      #expect(try Self.blocks(disk) < before)
    } else {
      #expect(try Self.blocks(disk) >= before)
    }
  }

  @Test(
    "BK07 segments that cannot be are errors, and change nothing",
    arguments: [
      [], [(0, (1 << 22) + 1, 0)], [(UInt64(Disk.sectors), 8, 0)], [(UInt64(Disk.sectors) - 1, 2, 0)],
      [(UInt64.max, 1, 0)], [(UInt64.max / 512, 8, 0)], [(0, 8, 0), (UInt64(Disk.sectors), 1, 0)],
    ] as [[Segment]], [discard, zero])
  func bad(segments: [Segment], type: UInt32) throws {
    let disk = try Disk()
    let before = disk.contents
    #expect(try Self.send(disk, type, segments).0 == 1)
    #expect(disk.contents == before)
  }

  @Test(
    "BK07 data that is no whole segment, or more segments than offered, is an error",
    arguments: [discard, zero])
  func sizes(type: UInt32) throws {
    let disk = try Disk()
    #expect(try Self.send(disk, type, [(0, 8, 0)], extra: 1).0 == 1)
    #expect(try Self.send(disk, type, Array(repeating: (0, 8, 0), count: 257)).0 == 1)
    #expect(try Self.send(disk, type, Array(repeating: (0, 8, 0), count: 256)).0 == 0)
  }

  @Test("BK08 flags that mean nothing are unsupported")
  func flags() throws {
    let disk = try Disk()
    let before = disk.contents
    #expect(try Self.send(disk, Self.discard, [(0, 8, 1)]).0 == 2)
    #expect(try Self.send(disk, Self.zero, [(0, 8, 2)]).0 == 2)
    #expect(try Self.send(disk, Self.zero, [(0, 8, 0x8000_0001)]).0 == 2)
    #expect(disk.contents == before)
  }

  @Test("BK09 a segment of no sectors is done at once")
  func nothing() throws {
    let disk = try Disk()
    #expect(try Self.send(disk, Self.discard, [(0, 0, 0)]) == (0, 1))
    #expect(try Self.send(disk, Self.zero, [(5, 0, 1)]) == (0, 1))
  }

  @Test("BK06 a read-only disk refuses both, one without the features supports neither")
  func refused() throws {
    let readOnly = try Disk(readOnly: true)
    #expect(try Self.send(readOnly, Self.discard, [(0, 8, 0)]).0 == 1)
    #expect(try Self.send(readOnly, Self.zero, [(0, 8, 0)]).0 == 1)
    let plain = try Disk(features: [.init(bit: 9)])
    #expect(try Self.send(plain, Self.discard, [(0, 8, 0)]).0 == 2)
    #expect(try Self.send(plain, Self.zero, [(0, 8, 0)]).0 == 2)
    #expect(plain.device.features.contains(FeatureSet(bit: 13)))
    let without = try Disk(change: { $0.discard = false })
    #expect(!without.device.features.contains(FeatureSet(bit: 13)))
  }
}
