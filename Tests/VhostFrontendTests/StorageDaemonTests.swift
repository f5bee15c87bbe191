// The whole driver against a back-end that others wrote: qemu-storage-daemon.

import Testing
import VhostFrontend

@Suite(
  "Against qemu-storage-daemon",
  .enabled(if: StorageDaemon.isInstalled, "qemu-storage-daemon is not installed (package qemu-utils)"))
struct StorageDaemonTests {
  static let imageBytes = 16 << 20

  func disk(
    _ daemon: StorageDaemon, _ change: (inout DiskOptions) -> Void = { _ in }
  ) throws -> BlockDriver {
    var options = DiskOptions()
    options.driver.timeout = .seconds(30)
    change(&options)
    return try BlockDriver(path: daemon.socketPath, waiting: .seconds(30), options)
  }

  @Test("what is written reads back, and is in the file after a flush", arguments: Habit.allCases)
  func writesAndReads(habit: Habit) throws {
    let daemon = try StorageDaemon(imageBytes: Self.imageBytes)
    let disk = try disk(daemon) { $0.driver.habit = habit }
    #expect(disk.config.capacity == UInt64(Self.imageBytes / 512))
    #expect(disk.config.segMax > 0)

    let data = BytePattern(seed: 1).bytes(count: 150_000 / 512 * 512)
    try disk.write(sector: 24, data)
    try disk.flush()
    #expect(try disk.read(sector: 24, bytes: data.count) == data)
    #expect(try Array(daemon.image()[24 * 512..<24 * 512 + data.count]) == data)
    #expect(try disk.read(sector: 0, bytes: 4096) == [UInt8](repeating: 0, count: 4096))
    #expect(try disk.getID() == "vhost_user_blk")
    try disk.stop()
    disk.disconnect()
  }

  @Test(
    "any framing carries the same request",
    arguments: [
      Framing.classic, .headerSplit(1), .headerSplit(5), .headerWithData, .statusWithData, .joined,
      .dataPieces(3), .dataCuts([1, 510, 2]), .crumbs,
    ])
  func framings(framing: Framing) throws {
    let daemon = try StorageDaemon(imageBytes: Self.imageBytes)
    let disk = try disk(daemon)
    // Direct descriptors before a final indirect one are more than it can do.
    for (number, variant) in [framing, framing.indirect].enumerated() {
      let data = BytePattern(seed: UInt64(number)).bytes(count: 8192)
      let sector = UInt64(100 * number)
      try disk.write(sector: sector, data, variant)
      let result = try disk.perform(.read(sector: sector, bytes: 8192), variant)
      #expect(result.status == DiskRequest.ok)
      #expect(result.input == data)
      #expect(result.usedLength == 8193)
      #expect(!result.overrun)
    }
  }

  @Test("several queues serve one disk")
  func queues() throws {
    let daemon = try StorageDaemon(imageBytes: Self.imageBytes, queues: 3)
    let disk = try disk(daemon) { $0.driver.queues = 3 }
    #expect(disk.device.queueNum.map { $0 >= 3 } == true)
    #expect(disk.config.queueCount == 3)
    for queue in 0..<3 {
      try disk.write(
        sector: UInt64(8 * queue), [UInt8](repeating: UInt8(queue + 1), count: 4096), queue: queue)
    }
    for queue in 0..<3 {
      let other = (queue + 1) % 3
      #expect(
        try disk.read(sector: UInt64(8 * other), bytes: 4096, queue: queue)
          == [UInt8](repeating: UInt8(other + 1), count: 4096))
    }
  }

  @Test("many requests in flight come back each with its own data")
  func depth() throws {
    let daemon = try StorageDaemon(imageBytes: Self.imageBytes)
    let disk = try disk(daemon) {
      $0.driver.queueSize = 128
      $0.depth = 42
      $0.dataBytes = 4096
    }
    let pattern = BytePattern(seed: 9)
    for sector in stride(from: 0, to: 2048, by: 8) {
      try disk.write(sector: UInt64(sector), pattern.bytes(at: UInt64(sector * 512), count: 4096))
    }
    let queue = disk.queues[0]
    var expected: [UInt16: Int] = [:]
    var next = 0
    var done = 0
    while done < 1000 {
      while expected.count < 42, next < 1000 {
        let sector = next * 8 % 2048
        let slot = try queue.add(.read(sector: UInt64(sector), bytes: 4096))
        #expect(expected[slot] == nil)
        expected[slot] = sector
        next += 1
      }
      queue.publish()
      let (slot, result) = try queue.waitNext()
      let taken = expected.removeValue(forKey: slot)
      let sector = try #require(taken)
      #expect(result.status == 0)
      #expect(result.input == pattern.bytes(at: UInt64(sector * 512), count: 4096))
      done += 1
    }
    let counters = queue.queue.ring.counters
    #expect(counters.used == counters.added)
    #expect(counters.kicks > 0)
    #expect(queue.queue.callsReceived > 0)
  }

  @Test("the fast path moves the same bytes")
  func fastPath() throws {
    let daemon = try StorageDaemon(imageBytes: Self.imageBytes)
    let disk = try disk(daemon)
    let data = BytePattern(seed: 3).bytes(count: 4096)
    try disk.write(sector: 64, data)
    let queue = disk.queues[0]
    let slot = try #require(
      queue.submit(type: DiskRequest.Kind.read, sector: 64, bytes: 4096, deviceWrites: true))
    queue.publish()
    let used = try queue.queue.wait()
    #expect(used.length == 4097)
    #expect(try disk.arena.read(at: queue.dataAddress(of: slot), count: 4096) == data)
  }

  @Test("a stopped ring goes on where it stood")
  func stopAndResume() throws {
    let daemon = try StorageDaemon(imageBytes: Self.imageBytes)
    let disk = try disk(daemon)
    for round in 0..<5 {
      let data = [UInt8](repeating: UInt8(round + 1), count: 1024)
      try disk.write(sector: UInt64(round), data)
      let bases = try disk.stop()
      #expect(bases == [disk.queues[0].queue.ring.base])
      #expect(bases == [UInt32(2 * round + 1)])
      try disk.resume()
      #expect(try disk.read(sector: UInt64(round), bytes: 1024) == data)
    }
  }

  @Test("the indices wrap at 65536")
  func indexWrap() throws {
    let daemon = try StorageDaemon(imageBytes: Self.imageBytes)
    let disk = try disk(daemon) {
      $0.driver.start = 65530
      $0.driver.queueSize = 16
    }
    for round in 0..<20 {
      let data = [UInt8](repeating: UInt8(round), count: 512)
      try disk.write(sector: UInt64(round), data)
      #expect(try disk.read(sector: UInt64(round), bytes: 512) == data)
    }
    #expect(try disk.stop() == [UInt32((65530 + 40) % 65536)])
  }

  @Test("without EVENT_IDX and INDIRECT the flags do")
  func plainRing() throws {
    let daemon = try StorageDaemon(imageBytes: Self.imageBytes)
    let disk = try disk(daemon) {
      $0.driver.features = VirtioBits.version1 | VirtioBits.protocolFeatures | DiskBits.flush
    }
    #expect(disk.features & VirtioBits.eventIndex == 0)
    let data = BytePattern(seed: 4).bytes(count: 65536)
    try disk.write(sector: 0, data)
    #expect(try disk.read(sector: 0, bytes: 65536) == data)
    #expect(throws: FrontendError.ringFull(descriptors: 3)) {
      try disk.perform(.read(sector: 0, bytes: 512), .classic.indirect)
    }
  }

  @Test("data across two regions that touch in guest memory alone arrives whole")
  func acrossRegions() throws {
    let daemon = try StorageDaemon(imageBytes: Self.imageBytes)
    let first = DiskOptions().arenaBytes()
    let start: UInt64 = 0x10_0000
    let arena = try GuestArena(regions: [
      ArenaRegion(at: start, bytes: first),
      ArenaRegion(at: start + UInt64(first), bytes: 1 << 20, file: 1, fileOffset: 1 << 20),
      ArenaRegion(at: 0x4000_0000, bytes: 1 << 20, file: 1),
    ])
    let connection = try FrontendConnection.connect(to: daemon.socketPath, waiting: .seconds(30))
    let disk = try BlockDriver(connection, arena: arena, .with { $0.driver.timeout = .seconds(30) })
    let data = BytePattern(seed: 5).bytes(count: 8192)
    for address in [start + UInt64(first) - 4096, 0x4000_0000] {
      var write = DiskRequest.write(sector: 16, data)
      write.dataAddress = address
      #expect(try disk.perform(write).status == 0)
      #expect(try disk.read(sector: 16, bytes: 8192) == data)
      var read = DiskRequest.read(sector: 16, bytes: 8192)
      read.dataAddress = address
      try arena.write([UInt8](repeating: 0, count: 8192), at: address)
      let result = try disk.perform(read)
      #expect(result.status == 0)
      #expect(result.input == data)
    }
  }

  @Test("the back-end serves the next connection after a disconnect")
  func nextConnection() throws {
    let daemon = try StorageDaemon(imageBytes: Self.imageBytes)
    let first = try disk(daemon)
    try first.write(sector: 2, [UInt8](repeating: 0x5a, count: 512))
    first.disconnect()
    let second = try disk(daemon)
    #expect(try second.read(sector: 2, bytes: 512) == [UInt8](repeating: 0x5a, count: 512))
  }
}
