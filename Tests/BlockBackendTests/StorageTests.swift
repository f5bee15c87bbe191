// The ways requests reach storage: in place, past the page cache, without a cache, and when there is no room.

import BlockBackend
import DeviceKit
import Foundation
import HostIO
import Testing

@Suite("block storage")
struct StorageTests {
  @Test("a memory file system is served in place, and its requests mean the same")
  func inline() throws {
    let disk = try Disk(at: "/dev/shm")
    disk.fill(disk.data, 4096, 0x31)
    #expect(try disk.request(1, sector: 17, data: 4096, writable: false) == (0, 1))
    #expect(disk.contents[17 * 512..<25 * 512].allSatisfy { $0 == 0x31 })
    #expect(try disk.request(0, sector: 16, data: 1024) == (0, 1025))
    #expect(
      disk.bytes(disk.data, 1024) == [UInt8](repeating: 16, count: 512) + [UInt8](repeating: 0x31, count: 512)
    )
    #expect(try disk.request(4) == (0, 1))
    try FileHandle(forWritingTo: URL(fileURLWithPath: disk.path)).truncate(atOffset: 4096)
    #expect(try disk.request(0, sector: 100, data: 512) == (1, 0))
  }

  @Test("BK15 past the page cache, requests of any alignment work", arguments: [0, 1, 3, 511])
  func direct(skew: Int) throws {
    let disk = try Disk(direct: true)
    let at = disk.data + skew
    for (sector, bytes) in [(UInt64(8), 4096), (16, 8192), (3, 512), (5, 1536), (31, 4096)] {
      disk.fill(at, bytes, UInt8(sector))
      disk.writeHeader(1, sector: sector)
      #expect(try disk.send([(disk.header, 16, false), (at, bytes, false), (disk.status, 1, true)]) == 1)
      #expect(disk.statusByte == 0)
      disk.fill(at, bytes, 0)
      disk.writeHeader(0, sector: sector)
      #expect(
        try disk.send([(disk.header, 16, false), (at, bytes, true), (disk.status, 1, true)])
          == UInt32(bytes + 1))
      #expect(disk.bytes(at, bytes) == [UInt8](repeating: UInt8(sector), count: bytes))
    }
    // Neighbours of what was written in part are as they were.
    #expect(disk.contents[2 * 512] == 2 && disk.contents[4 * 512] == 4 && disk.contents[39 * 512] == 39)
  }

  @Test("without a write cache, the driver is told of none and every write is durable")
  func noCache() throws {
    let disk = try Disk(features: [], change: { $0.writeCache = false })
    #expect(!disk.device.features.contains(FeatureSet(bit: 9)))
    #expect(!disk.device.features.contains(FeatureSet(bit: 11)))
    #expect(disk.device.mustBeDurable)
    #expect(try disk.request(1, sector: 0, data: 512, writable: false) == (0, 1))
  }

  @Test("the topology and the block size are the storage's, or as asked")
  func topology() throws {
    let disk = try Disk(change: { $0.blockSize = 4096 })
    var out = ConfigWriter()
    disk.device.readConfig(&out)
    #expect(out.bytes.count == 60)
    #expect(Array(out.bytes[20..<24]) == [0, 16, 0, 0])
    #expect(out.bytes[24] == 0)
    #expect(disk.device.features.contains(FeatureSet(bit: 10)))
  }
}
