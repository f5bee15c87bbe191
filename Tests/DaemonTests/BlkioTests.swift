// The program under libblkio's driver: it connects, reads the capacity, leaves and comes again at once, and shares memory
// whose regions begin anywhere.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite(
  "Under libblkio",
  .enabled(if: Blkio.isPossible, "libblkio is not here: scripts/setup gets it from Debian 13 where it can"))
struct BlkioTests {
  @Test(
    "libblkio writes on two queues, reads back what it wrote, flushes, zeroes and discards",
    arguments: ["page cache", "memory"])
  func works(storage: String) throws {
    let folder = try TemporaryFolder()
    let bytes = 8 << 20
    let path = storage == "memory" ? "/dev/shm/vhost-swiftd-\(UUID().uuidString)" : folder.file("disk.img")
    defer { unlink(path) }
    try Data(count: bytes).write(to: URL(fileURLWithPath: path))
    let daemon = try Daemon.disk(["--threads", "2"], image: path, in: folder)
    for round in 0..<3 {
      let disk = try Blkio(path: daemon.socket, queues: 2, memory: 2 << 20)
      #expect(disk.capacity == bytes)
      let pattern = BytePattern(seed: UInt64(round)).bytes(at: 0, count: 1 << 20)
      disk.memory.copyBytes(from: pattern)
      let (piece, count) = (16 << 10, 64)
      for index in 0..<count {
        try disk.transfer(
          writing: true, queue: index % 2, offset: index * 2 * piece, at: index * piece, count: piece)
      }
      for queue in 0..<2 { try disk.wait(queue: queue, count / 2) }
      try disk.flush(queue: 0)
      try disk.wait(queue: 0, 1)
      for index in 0..<count {
        try disk.transfer(
          writing: false, queue: (index + 1) % 2, offset: index * 2 * piece, at: (1 << 20) + index * piece,
          count: piece)
      }
      for queue in 0..<2 { try disk.wait(queue: queue, count / 2) }
      #expect(Array(disk.memory[(1 << 20)..<(2 << 20)]) == pattern)
      try disk.extent("blkioq_write_zeroes", queue: 1, offset: 0, count: piece)
      try disk.extent("blkioq_discard", queue: 1, offset: 2 * piece, count: piece)
      try disk.wait(queue: 1, 2)
      let image = Image(path: path, bytes: bytes)
      #expect(try image.read(sector: 0, count: piece) == [UInt8](repeating: 0, count: piece))
      #expect(try image.read(sector: 4 * piece / 512, count: piece) == Array(pattern[2 * piece..<3 * piece]))
    }
    try daemon.stop()
  }
}
