// Reads from a mapping of what is in the page cache: that they are made, and never tell anything else than the file.

import BlockBackend
import DeviceKit
import Foundation
import HostIO
import Testing

/// Whether temporary files are on a file system whose images are mapped.
private let isOnLocalDisk: Bool = {
  guard let folder = FileHandle(forReadingAtPath: NSTemporaryDirectory()) else { return false }
  return (try? FileFacts(of: folder.fileDescriptor))?.isOnLocalDisk == true
}()

@Suite(
  "reads from the page cache",
  .enabled(if: isOnLocalDisk, "temporary files are on no local disk's file system"))
struct CachedReadTests {
  private func mapped(_ disk: Disk) -> UInt64 {
    disk.host.counters[0].snapshot.first { $0.name == "mapped" }?.value ?? 0
  }

  /// Reads until some come from the mapping.
  private func warm(_ disk: Disk) throws {
    for i in 0..<200 where mapped(disk) == 0 {
      let sector = UInt64(i % 200) * 8
      #expect(try disk.request(0, sector: sector, data: 4096) == (0, 4097))
    }
    try #require(mapped(disk) > 0)
  }

  private func read(_ disk: Disk, _ sector: UInt64) throws -> [UInt8] {
    disk.fill(disk.data, 512, 0xaa)
    #expect(try disk.request(0, sector: sector, data: 512) == (0, 513))
    return disk.bytes(disk.data, 512)
  }

  @Test("what is in the page cache is copied from the mapping, and is what was written last")
  func bytes() throws {
    let disk = try Disk()
    try warm(disk)
    for sector in UInt64(0)..<300 {
      #expect(try read(disk, sector) == [UInt8](repeating: UInt8(truncatingIfNeeded: sector), count: 512))
      disk.fill(disk.data, 512, UInt8(truncatingIfNeeded: sector &+ 77))
      #expect(try disk.request(1, sector: sector, data: 512, writable: false) == (0, 1))
      #expect(
        try read(disk, sector) == [UInt8](repeating: UInt8(truncatingIfNeeded: sector &+ 77), count: 512))
    }
    #expect(mapped(disk) > 300)
  }

  @Test("a read-only image is mapped too")
  func readOnly() throws {
    let disk = try Disk(readOnly: true, features: [])
    try warm(disk)
    #expect(try read(disk, 1000) == [UInt8](repeating: UInt8(truncatingIfNeeded: 1000), count: 512))
  }

  @Test("what was discarded or zeroed reads as zeros", arguments: [UInt32(11), 13])
  func ranges(type: UInt32) throws {
    let disk = try Disk()
    try warm(disk)
    disk.fill(disk.data, 16, 0)
    disk.queue.pointer(disk.data).storeBytes(of: UInt64(64), as: UInt64.self)
    disk.queue.pointer(disk.data).storeBytes(of: UInt32(128), toByteOffset: 8, as: UInt32.self)
    #expect(try disk.request(type, data: 16, writable: false) == (0, 1))
    #expect(try read(disk, 63) == [UInt8](repeating: 63, count: 512))
    for sector in [UInt64(64), 100, 191] {
      #expect(try read(disk, sector) == [UInt8](repeating: 0, count: 512))
    }
    #expect(try read(disk, 192) == [UInt8](repeating: 192, count: 512))
  }

  @Test("an image that is cut short under the mapping is an error of that read alone")
  func truncated() throws {
    let disk = try Disk()
    try warm(disk)
    try FileHandle(forWritingTo: URL(fileURLWithPath: disk.path)).truncate(atOffset: 65536)
    #expect(try disk.request(0, sector: 1000, data: 4096) == (1, 0))
    #expect(try read(disk, 17) == [UInt8](repeating: 17, count: 512))
    #expect(try disk.request(0, sector: 1001, data: 4096) == (1, 0))
  }

  @Test("past the page cache nothing comes from a mapping")
  func direct() throws {
    let disk = try Disk(direct: true)
    for i in 0..<200 { #expect(try disk.request(0, sector: UInt64(i) * 8, data: 4096) == (0, 4097)) }
    #expect(mapped(disk) == 0)
  }
}

@Suite("when a queue looks into the page cache")
struct LookPaceTests {
  private let second: UInt64 = 1_000_000_000

  private func look(_ pace: inout LookPace, _ faults: Int, allowed: Bool) {
    let answer = pace.look(faults: faults)
    #expect(answer == allowed && pace.pauses == !allowed)
  }

  @Test("a look is paid for by reads, and costs more where they do not meet what was found")
  func price() {
    var pace = LookPace()
    pace.beginTurn(at: 5 * second)
    #expect(!pace.affordsLook)
    var reads = 0
    for _ in 0..<1000 {
      while !pace.affordsLook {
        pace.countAsked(pages: 1)
        reads += 1
      }
      look(&pace, 0, allowed: true)
    }
    // Doubled each 64 looks, from 16 to 1024.
    #expect(pace.price == 1024)
    #expect(reads > 500_000)
    for _ in 0..<1000 {
      pace.countAsked(pages: 1024)
      for _ in 0..<4 { pace.countHit() }
      look(&pace, 0, allowed: true)
    }
    #expect(pace.price == 8)
  }

  @Test("pages that had to be waited for end it for a while, longer each time")
  func pauses() {
    var pace = LookPace()
    var now = 100 * second
    var faults = 7
    pace.beginTurn(at: now)
    // What the thread waited for before its first look is another's doing.
    look(&pace, faults, allowed: true)
    faults += 2
    look(&pace, faults, allowed: true)
    for seconds in [UInt64(1), 2, 4, 8, 16, 32, 64, 64] {
      faults += 3
      look(&pace, faults, allowed: false)
      pace.beginTurn(at: now + seconds * second - 1)
      #expect(pace.pauses)
      now += seconds * second
      pace.beginTurn(at: now)
      #expect(!pace.pauses)
      look(&pace, faults, allowed: true)
    }
    now += 65 * second
    pace.beginTurn(at: now)
    faults += 3
    look(&pace, faults, allowed: false)
    pace.beginTurn(at: now + second)
    #expect(!pace.pauses)
  }

  @Test("ticks go from 1 to 127, and never are 0")
  func ticks() {
    var pace = LookPace()
    var seen: Set<UInt8> = []
    for tick in UInt64(0)..<1000 {
      pace.beginTurn(at: tick << 29)
      seen.insert(pace.time)
    }
    #expect(seen == Set(1...127))
  }
}
