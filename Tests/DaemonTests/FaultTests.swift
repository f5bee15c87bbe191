// Limits of the system, and front-ends that never stop doing wrong.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

/// Programs that some tests need.
private func isInstalled(_ program: String) -> Bool {
  (Environment.value("PATH") ?? "/usr/bin:/bin").split(separator: ":").contains {
    access("\($0)/\(program)", X_OK) == 0
  }
}

@Suite("Faults and limits")
struct FaultTests {
  @Test(
    "FT06: a write past RLIMIT_FSIZE is an I/O error of that request, and nothing more",
    arguments: ["disk", "memory"])
  func fileSizeLimit(storage: String) throws {
    let folder = try TemporaryFolder()
    var image = try Image.make(in: folder)
    if storage == "memory" {
      // Served in place, so that the signal would come to the queue's thread.
      let path = "/dev/shm/vhost-swiftd-\(UUID().uuidString)"
      try FileManager.default.moveItem(atPath: image.path, toPath: path)
      image = Image(path: path, bytes: image.bytes)
    }
    defer { unlink(image.path) }
    let daemon = try Daemon.disk(
      image: image.path, in: folder, prefix: ["prlimit", "--fsize=\(1 << 20)"])
    let driver = try daemon.connect()
    let data = [UInt8](repeating: 0x5a, count: 4096)
    for sector in [2048, 4096, 16000] as [UInt64] {
      #expect(try driver.perform(.write(sector: sector, data)).status == DiskRequest.ioError)
      #expect(try driver.read(sector: sector, bytes: 4096) == image.read(sector: Int(sector), count: 4096))
    }
    // Half of it fits: that is not all of it.
    #expect(try driver.perform(.write(sector: 2044, data)).status == DiskRequest.ioError)
    try driver.write(sector: 2040, data)
    #expect(try driver.read(sector: 2040, bytes: 4096) == data)
    #expect(try daemon.counters().sum("errors") == 4)
    try daemon.stop()
  }

  @Test(
    "FT07: without room for another descriptor, connections wait; nothing spins or ends, and they are served later"
  )
  func descriptorLimit() throws {
    let daemon = try Daemon.disk()
    let facts = ProcessFacts(daemon.process)
    try Tool.run("prlimit", ["--pid", "\(daemon.pid)", "--nofile=\(facts.lowestFreeDescriptor):1024"])
    let waiting = try (0..<5).map { _ in try FrontendConnection.connect(to: daemon.socket) }
    for connection in waiting { try connection.send(.getFeatures) }
    try daemon.process.wait(until: "it says that it cannot accept", within: 30) {
      daemon.log.contains("cannot accept")
    }
    let load = facts.load(over: 1500)
    #expect(load < 0.05, "\(load) of a processor")
    #expect(daemon.log.split(separator: "\n").count <= 10, "\(daemon.log)")
    try Tool.run("prlimit", ["--pid", "\(daemon.pid)", "--nofile=1024:1024"])
    for connection in waiting {
      _ = try connection.receiveReply(to: .getFeatures, size: 8, timeout: .seconds(30))
      connection.disconnect()
    }
    let driver = try daemon.connect()
    _ = try driver.read(sector: 0, bytes: 512)
    driver.disconnect()
    try daemon.stop()
  }

  @Test(
    "A session that needs more descriptors than there may be loses its connection, and a smaller one is served"
  )
  func sessionLimit() throws {
    // Without capabilities, the kernel also holds what all of a user's processes have in flight between sockets against
    // this limit (ETOOMANYREFS, unix(7)): other tests would be in the way.
    let daemon = try Daemon.disk(["--num-queues", "64", "--sandbox", "off"])
    let facts = ProcessFacts(daemon.process)
    try FrontendConnection.connect(to: daemon.socket).barrier()
    // Room for the connection, the memory, and the lines of a few queues.
    try Tool.run("prlimit", ["--pid", "\(daemon.pid)", "--nofile=\(facts.lowestFreeDescriptor + 10):1024"])
    for _ in 0..<3 {
      #expect(throws: FrontendError.self) { _ = try daemon.connect { $0.driver.queues = 32 } }
      let driver = try daemon.connect()
      #expect(try driver.perform(.read(sector: 0, bytes: 512)).status == DiskRequest.ok)
      driver.disconnect()
    }
    #expect(facts.load(over: 500) < 0.05)
    try daemon.stop()
  }

  @Test(
    "FT04: without io_uring the start fails in one line that says so, and leaves nothing",
    .enabled(if: isInstalled("strace"), "needs strace"), arguments: ["ENOSYS", "EPERM"])
  func withoutRings(error: String) throws {
    let place = try Untouched()
    let run = try Run(
      ["blk", "--socket-path", "{folder}/s", "--blk-file", "{folder}/disk.img", "--stats", "{folder}/stats"],
      in: place.folder,
      prefix: [
        "strace", "-f", "-o", "/dev/null", "-e", "inject=io_uring_setup:error=\(error)",
        // What a killed strace leaves behind ends by itself.
        "timeout", "-s", "KILL", "20",
      ])
    run.expectFailure(1, naming: ["io_uring"])
    try place.expectSame()
  }

  /// The most lines that any second of a log has: each begins with its time in whole seconds.
  private func busiestSecond(_ log: String) -> Int {
    Dictionary(grouping: log.split(separator: "\n").map { $0.prefix(19) }, by: { $0 }).values.map(\.count)
      .max() ?? 0
  }

  @Test(
    "RS03: a front-end that sends nothing but refused messages brings ten lines a second to the log at most")
  func refusedMessages() throws {
    let daemon = try Daemon.disk(["--log-level", "trace"])
    let connection = try FrontendConnection.connect(to: daemon.socket)
    _ = try connection.setProtocolFeatures(ProtocolBits.replyAck | ProtocolBits.config)
    let end = ContinuousClock.now + .seconds(3)
    var sent = 0
    while ContinuousClock.now < end {
      #expect(try connection.setVringNum(70_000, 128).isNack)
      #expect(try connection.setFeatures(.max).isNack)
      sent += 2
    }
    connection.disconnect()
    try daemon.stop()
    #expect(sent > 1000)
    #expect((1...10).contains(busiestSecond(daemon.log)), "\(daemon.log)")
  }

  @Test(
    "RS03: front-ends that come back for one wrong message each bring ten lines a second to the log at most")
  func droppedConnections() throws {
    let daemon = try Daemon.disk(["--log-level", "trace"])
    let end = ContinuousClock.now + .seconds(3)
    var rounds = 0
    while ContinuousClock.now < end {
      let connection = try FrontendConnection.connect(to: daemon.socket, waiting: .seconds(20))
      try connection.sendRaw(request: 1, flags: 2)
      try connection.expectClosed()
      rounds += 1
    }
    _ = try daemon.connect().read(sector: 0, bytes: 512)
    try daemon.stop()
    #expect(rounds > 100)
    #expect((1...10).contains(busiestSecond(daemon.log)), "\(daemon.log)")
  }

  @Test(
    "RS03: a ring that is broken over and over brings ten lines a second to the log at most, and is counted each time"
  )
  func brokenRings() throws {
    let daemon = try Daemon.disk(["--log-level", "trace"])
    var rounds = 0
    let end = ContinuousClock.now + .seconds(3)
    while ContinuousClock.now < end {
      let driver = try daemon.connect()
      // A head that is none.
      _ = driver.queues[0].queue.ring.withSplit { $0.rawSetAvailableEntry(0, head: 60_000) }
      _ = driver.queues[0].queue.ring.withSplit { $0.rawSetAvailableIndex(1) }
      driver.queues[0].queue.kick.ring()
      try driver.queues[0].queue.expectError()
      driver.disconnect()
      rounds += 1
    }
    #expect(rounds > 10)
    #expect(try daemon.counters().sum("faults") == UInt64(rounds))
    try daemon.stop()
    let lines = daemon.log.split(separator: "\n").filter { !$0.hasPrefix("{") }.joined(separator: "\n")
    #expect((1...10).contains(busiestSecond(lines)), "\(lines)")
  }

  @Test("RS03: requests that no device can serve are counted exactly and not logged")
  func refusedRequests() throws {
    let daemon = try Daemon.disk(["--log-level", "trace"])
    let driver = try daemon.connect()
    let lines = daemon.log.split(separator: "\n").count
    for i in 0..<2000 as Range<UInt64> {
      let wanted: (DiskRequest, UInt8) =
        i % 2 == 0
        ? (DiskRequest(type: 0x1000 + UInt32(i)), DiskRequest.unsupported)
        : (.write(sector: UInt64.max - i, [UInt8](repeating: 1, count: 512)), DiskRequest.ioError)
      #expect(try driver.perform(wanted.0).status == wanted.1)
    }
    #expect(daemon.log.split(separator: "\n").count == lines, "\(daemon.log)")
    let counters = try daemon.counters()
    #expect(counters.sum("unsupported") == 1000 && counters.sum("errors") == 1000)
    try daemon.stop()
  }
}
