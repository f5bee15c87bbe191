// What peers cannot use up: descriptors, memory, mappings, threads, processor time (HOSTILE RS01, FT07, SP18, SP32, and front-ends
// that never read).

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("Resources")
struct ResourceTests {
  /// What must come back to where it was.
  private struct Holdings: Equatable {
    let descriptors: Int
    let threads: Int?
    let sharedKilobytes: Int?

    init(_ facts: ProcessFacts) {
      descriptors = facts.openDescriptors
      threads = facts.status("Threads")
      sharedKilobytes = facts.status("RssShmem")
    }
  }

  /// A front-end that comes so far, and goes. False where there is no stage so late.
  private func visit(_ daemon: Daemon, stage: Int) throws -> Bool {
    let connection = try FrontendConnection.connect(to: daemon.socket, waiting: .seconds(20))
    defer { connection.disconnect() }
    if stage == 0 { return true }
    if stage == 1 {
      try connection.sendRaw(Array(FrontendConnection.encode(.getFeatures).prefix(5)))
      return true
    }
    var options = DriverOptions()
    options.habit = .qemu72
    options.timeout = .seconds(30)
    let arena = try GuestArena(regions: [ArenaRegion(at: 0x10_0000, bytes: 1 << 20)])
    let driver = DeviceDriver(connection, arena: arena, options)
    let steps = options.habit.connecting + options.habit.starting
    for step in steps.prefix(stage - 1) { try driver.play(step) }
    return stage - 1 < steps.count
  }

  /// What it holds with a front-end that has said nothing yet: an answer means that every session before has ended.
  private func holdings(_ daemon: Daemon) throws -> Holdings {
    let connection = try FrontendConnection.connect(to: daemon.socket, waiting: .seconds(20))
    connection.timeout = .seconds(30)
    defer { connection.disconnect() }
    try connection.barrier()
    return Holdings(ProcessFacts(daemon.process))
  }

  @Test("RS01 front-ends that leave at each stage of the handshake, a thousand of them, leave nothing behind")
  func handshakes() throws {
    let daemon = try Daemon.disk(["--num-queues", "2"])
    let facts = ProcessFacts(daemon.process)
    let before = try holdings(daemon)
    var memory: Int?
    var visits = 0
    while visits < 1000 {
      var stage = 0
      while try visit(daemon, stage: stage) {
        stage += 1
        visits += 1
      }
      #expect(stage > 8, "the handshake has stages")
      // The allocator has what it needs after a few rounds.
      if memory == nil, visits > 200 { memory = facts.status("RssAnon") }
    }
    let driver = try daemon.connect()
    _ = try driver.read(sector: 0, bytes: 512)
    driver.disconnect()
    #expect(try holdings(daemon) == before)
    #expect(abs((facts.status("RssAnon") ?? 0) - (memory ?? 0)) < 1024, "kilobytes")
    try daemon.stop()
  }

  @Test(
    "SP18 SP32 half a message, and a front-end that never reads, hold up no other device and no processor")
  func stuck() throws {
    let folder = try TemporaryFolder()
    let image = try Image.make(in: folder)
    let config = """
      {"devices": [{"device": "blk", "socket-path": "\(folder.file("s"))", "blk-file": "\(image.path)"},
                   {"device": "rng", "socket-path": "\(folder.file("half"))"},
                   {"device": "rng", "socket-path": "\(folder.file("full"))"}]}
      """
    try Data(config.utf8).write(to: URL(fileURLWithPath: folder.file("config")))
    let daemon = try Daemon(["serve", "--config", folder.file("config")], in: folder)
    let half = try FrontendConnection.connect(to: folder.file("half"), waiting: .seconds(20))
    try half.sendRaw(Array(FrontendConnection.encode(.getFeatures).prefix(5)))
    let full = try FrontendConnection.connect(to: folder.file("full"), waiting: .seconds(20))
    full.timeout = .milliseconds(300)
    let questions = [[UInt8]](repeating: FrontendConnection.encode(.getFeatures), count: 100).flatMap { $0 }
    while (try? full.sendRaw(questions)) != nil {}
    // The next in the line of either waits; the disk is served.
    let next = try FrontendConnection.connect(to: folder.file("half"), waiting: .seconds(20))
    let driver = try daemon.connect()
    let data = BytePattern(seed: 9).bytes(at: 0, count: 4096)
    try driver.write(sector: 8, data)
    #expect(try driver.read(sector: 8, bytes: 4096) == data)
    let load = ProcessFacts(daemon.process).load(over: 1000)
    #expect(load < 0.05, "\(load) of a processor")
    half.disconnect()
    next.timeout = .seconds(30)
    try next.barrier()
    try daemon.stop()
  }

  @Test(
    "FT07 a connection that is gone, or for which the system has no room, is passed over; the next one is served",
    .enabled(if: access("/usr/bin/strace", X_OK) == 0, "needs strace"),
    arguments: ["ECONNABORTED", "ENFILE", "EMFILE", "ENOMEM"])
  func accept(error: String) throws {
    let daemon = try Daemon.disk(
      prefix: [
        "strace", "-f", "-o", "/dev/null", "-e", "trace=accept4", "-e",
        "inject=accept4:error=\(error):when=1..2",
      ])
    let driver = try daemon.connect()
    _ = try driver.read(sector: 0, bytes: 512)
    driver.disconnect()
    #expect(daemon.log.contains("cannot accept"), "\(daemon.log)")
    #expect(daemon.log.split(separator: "\n").count <= 10, "\(daemon.log)")
    // Ends the traced program, and with it strace.
    let child = try FileManager.default.contentsOfDirectory(atPath: "/proc").compactMap { pid_t($0) }.first {
      process in
      let status = FileManager.default.contents(atPath: "/proc/\(process)/status") ?? Data()
      return String(decoding: status, as: UTF8.self).contains("\nPPid:\t\(daemon.pid)\n")
    }
    kill(try #require(child), SIGTERM)
    #expect(try daemon.process.waitExit(within: 30) == .status(0), "\(daemon.log)")
  }
}
