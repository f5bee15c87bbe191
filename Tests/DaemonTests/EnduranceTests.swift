// What is done over and over: a few rounds in the suite, very many under scripts/endure.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("Over and over")
struct EnduranceTests {
  @Test(
    "LC08 rings that are stopped and started again under load answer each request once",
    arguments: [false, true])
  func stopAndStart(packed: Bool) throws {
    let folder = try TemporaryFolder()
    let blocks = 64
    try Data(count: blocks * Oracle.blockBytes).write(to: URL(fileURLWithPath: folder.file("disk.img")))
    let daemon = try Daemon.disk(["--threads", "2"], image: folder.file("disk.img"), in: folder)
    let driver = try daemon.connect {
      $0.driver.packed = packed
      $0.driver.queues = 2
      $0.driver.queueSize = 64
      $0.dataBytes = Oracle.blockBytes
      $0.depth = 20
    }
    let oracle = Oracle(driver, blocks: blocks)
    for round in 0..<Environment.rounds(100) {
      try oracle.submit((0..<blocks).shuffled().prefix(16))
      if round % 3 == 0 { try oracle.wait(untilOutstanding: Int.random(in: 0...16)) }
      if round % 5 == 0 {
        // One ring by itself, while the other runs.
        let queue = round % 2
        _ = try driver.device.stop(queue: queue)
        try driver.device.resume(queue: queue)
      } else {
        try driver.stop()
        // A stop is over when the last request is answered: those taken have been, those left are taken later.
        try oracle.collect()
        try driver.resume()
      }
      try oracle.wait(untilOutstanding: 0)
    }
    let image = Image(path: folder.file("disk.img"), bytes: blocks * Oracle.blockBytes)
    try oracle.compare { try image.read(sector: $0 / 512, count: $1) }
    try daemon.stop()
  }

  /// How far a handshake goes before the front-end is gone.
  private enum Stage: CaseIterable { case connected, halfMessage, negotiated, memory, rings, running }

  @Test("RS01 front-ends that come and go at any stage leave no descriptor, mapping, thread or memory behind")
  func connections() throws {
    let daemon = try Daemon.disk(["--num-queues", "2"])
    let arena = try GuestArena(bytes: 1 << 20)
    func visit(_ stage: Stage) throws {
      if stage == .running { return try daemon.connect { $0.depth = 2 }.disconnect() }
      let front = try FrontendConnection.connect(
        to: daemon.socket, waiting: .seconds(60), timeout: .seconds(60))
      defer { front.disconnect() }
      if stage == .connected { return }
      if stage == .halfMessage { return try front.sendRaw([1, 0, 0, 0, 1]) }
      _ = try front.setProtocolFeatures(front.getProtocolFeatures())
      _ = try front.setFeatures(front.getFeatures() & VirtioBits.driven)
      if stage == .negotiated { return }
      _ = try front.setMemTable(arena.table, descriptors: arena.descriptors)
      if stage == .memory { return }
      _ = try front.setVringNum(0, 128)
      _ = try front.setVringCall(0, Doorbell())
      _ = try front.setVringErr(0, Doorbell())
      _ = try front.openBackendChannel()
      _ = try front.getInflightFD(queueCount: 2, queueSize: 128)
    }
    for round in 0..<60 { try visit(Stage.allCases[round % Stage.allCases.count]) }
    let before = try Holdings(of: daemon)
    for round in 0..<Environment.rounds(300) { try visit(Stage.allCases[round % Stage.allCases.count]) }
    try before.expectSame(as: Holdings(of: daemon))
    try daemon.stop()
  }

  @Test("RS08: memory, descriptors, threads and latency are late in a long run what they were early in it")
  func soak() throws {
    let folder = try TemporaryFolder()
    let (blocks, bytes) = (64, 128 * Oracle.blockBytes)
    try Data(count: bytes).write(to: URL(fileURLWithPath: folder.file("disk.img")))
    let daemon = try Daemon.disk(
      ["--threads", "2", "--direct"], image: folder.file("disk.img"), in: folder)
    let driver = try daemon.connect {
      $0.driver.queues = 2
      $0.driver.queueSize = 64
      $0.dataBytes = Oracle.blockBytes
      $0.depth = 20
    }
    let oracle = Oracle(driver, blocks: blocks)
    let facts = ProcessFacts(daemon.process)
    let rounds = Environment.rounds(60)
    var latencies: [Duration] = []
    var early: (memory: Int, descriptors: Int, mappings: Int)?
    for round in 0..<rounds {
      try oracle.submit((0..<blocks).shuffled().prefix(40))
      try oracle.wait(untilOutstanding: 0)
      // The other half of the disk: what takes other ways than reads and writes of whole blocks.
      let sector = UInt64(blocks * 8 + round % 64 * 8)
      try driver.write(sector: sector + 1, [UInt8](repeating: 1, count: 512))
      try driver.writeZeroes([DiskSegment(sector: sector, sectors: 8, flags: UInt32(round % 2))])
      try driver.discard([DiskSegment(sector: sector, sectors: 8)])
      #expect(try driver.perform(.read(sector: 1 << 50, bytes: 512)).status == DiskRequest.ioError)
      try driver.flush()
      if round % 8 == 0 {
        try driver.device.reconnect(.connect(to: daemon.socket, waiting: .seconds(60), timeout: .seconds(60)))
      }
      let clock = ContinuousClock()
      let times = try (0..<15).map { _ in try clock.measure { _ = try driver.read(sector: 0, bytes: 4096) } }
      latencies.append(times.sorted()[7])
      if early == nil, round >= rounds / 4 {
        early = (facts.status("RssAnon") ?? 0, facts.openDescriptors, facts.mappings)
      }
    }
    let start = try #require(early)
    #expect((facts.status("RssAnon") ?? 0) - start.memory < 1024, "kilobytes")
    #expect(facts.openDescriptors == start.descriptors && abs(facts.mappings - start.mappings) <= 4)
    let quarter = latencies.count / 4
    let (second, last) = (latencies[quarter..<2 * quarter].sorted(), latencies.suffix(quarter).sorted())
    print("latency: \(second[quarter / 2]) early, \(last[quarter / 2]) late")
    // A few rounds say nothing about drift: other tests run beside this one.
    if rounds >= 1000 { #expect(last[quarter / 2] < second[quarter / 2] * 1.5 + .microseconds(100)) }
    try daemon.stop()
  }

  @Test("SP10 SP11 messages that bring descriptors, repeated on one connection, leave nothing behind")
  func messages() throws {
    let daemon = try Daemon.disk(["--num-queues", "1"])
    let arena = try GuestArena(bytes: 1 << 20)
    let call = try Doorbell()
    let log = try DirtyBitmap(memoryUpTo: 2 << 20)
    func storm(_ rounds: Int) throws {
      let front = try FrontendConnection.connect(to: daemon.socket, timeout: .seconds(60))
      _ = try front.setProtocolFeatures(front.getProtocolFeatures())
      _ = try front.setFeatures(front.getFeatures() & VirtioBits.driven)
      for _ in 0..<rounds {
        #expect(try front.getInflightFD(queueCount: 1, queueSize: 128) != nil)
        #expect(try front.setMemTable(arena.table, descriptors: arena.descriptors) == .ok)
        #expect(try front.setVringNum(0, 128) == .ok)
        #expect(try front.setVringCall(0, call) == .ok)
        #expect(try front.openBackendChannel().ack == .ok)
        try front.setLogBase(log.description, descriptor: log.descriptor.raw)
      }
      front.disconnect()
    }
    try storm(100)
    let before = try Holdings(of: daemon)
    try storm(Environment.rounds(500))
    try before.expectSame(as: Holdings(of: daemon))
    try daemon.stop()
  }
}

/// What the program holds while it serves a front-end that has only just come: those before it are wholly gone.
private struct Holdings {
  let descriptors: Int
  let threads: Int
  let mappings: Int
  /// Kilobytes of its own.
  let memory: Int

  init(of daemon: Daemon) throws {
    let front = try FrontendConnection.connect(
      to: daemon.socket, waiting: .seconds(60), timeout: .seconds(60))
    _ = try front.getFeatures()
    let facts = ProcessFacts(daemon.process)
    descriptors = facts.openDescriptors
    threads = facts.status("Threads") ?? 0
    mappings = facts.mappings
    memory = facts.status("RssAnon") ?? 0
    front.disconnect()
  }

  func expectSame(as later: Holdings, sourceLocation: SourceLocation = #_sourceLocation) {
    #expect(later.descriptors == descriptors && later.threads == threads, sourceLocation: sourceLocation)
    // The allocator may take a mapping or two more for its own ends.
    #expect(abs(later.mappings - mappings) <= 4, sourceLocation: sourceLocation)
    #expect(abs(later.memory - memory) < 1024, "kilobytes", sourceLocation: sourceLocation)
  }
}
