// What the system refuses or interrupts: memory, processors, messages, waits for the ring (HOSTILE FT05,
// FT08, FT10, FT11).

import Foundation
import GuestHarness
import Testing
import VhostFrontend

private let hasStrace = access("/usr/bin/strace", X_OK) == 0

/// Failures of one system call, injected by strace: "CALL:error=NAME:when=FIRST+STEP".
private struct Injection {
  let prefix: [String]
  private let record: String

  init(_ fault: String, in folder: TemporaryFolder) {
    record = folder.file("injected")
    // The tracer is a process beside the traced one.
    prefix = [
      "strace", "-D", "-f", "-o", record, "-e", "trace=\(fault.prefix { $0 != ":" })", "-e",
      "inject=\(fault)",
    ]
  }

  /// How often a call has failed by it.
  var count: Int {
    let text = String(decoding: FileManager.default.contents(atPath: record) ?? Data(), as: UTF8.self)
    return text.split(separator: "\n").count { $0.contains("(INJECTED)") }
  }
}

@Suite("Faults of the system")
struct SystemFaultTests {
  // MARK: Calls that are interrupted

  @Test(
    "FT08: messages that are interrupted, or for which the socket has no room at once, arrive whole",
    .enabled(if: hasStrace, "needs strace"),
    arguments: [
      "recvmsg:error=EINTR:when=1+2", "recvmsg:error=EAGAIN:when=1+3", "sendmsg:error=EINTR:when=1+2",
      "sendmsg:error=EAGAIN:when=1+2",
    ])
  func messages(fault: String) throws {
    let folder = try TemporaryFolder()
    let injection = Injection(fault, in: folder)
    let image = try Image.make(in: folder)
    let daemon = try Daemon.disk(image: image.path, in: folder, prefix: injection.prefix)
    for habit in [Habit.qemu72, .plain] {
      let driver = try daemon.connect { $0.driver.habit = habit }
      for sector in [0, 77, 8000] {
        #expect(
          try driver.read(sector: UInt64(sector), bytes: 4096) == image.read(sector: sector, count: 4096))
      }
      driver.disconnect()
    }
    try daemon.stop()
    #expect(injection.count > 5)
    #expect(daemon.log == "")
  }

  @Test(
    "Waits and submissions of the ring that are interrupted or refused for now lose no request",
    .enabled(if: hasStrace, "needs strace"), arguments: ["EINTR", "EAGAIN", "EBUSY"], [false, true])
  func ring(error: String, packed: Bool) throws {
    let folder = try TemporaryFolder()
    try Data(count: 64 * Oracle.blockBytes).write(to: URL(fileURLWithPath: folder.file("disk.img")))
    let injection = Injection("io_uring_enter:error=\(error):when=2+3", in: folder)
    let daemon = try Daemon.disk(
      ["--num-queues", "2", "--poll", packed ? "interrupt" : "adaptive"], image: folder.file("disk.img"),
      in: folder, prefix: injection.prefix)
    let driver = try daemon.connect {
      $0.driver.packed = packed
      $0.driver.queues = 2
      $0.driver.queueSize = 64
      $0.dataBytes = Oracle.blockBytes
      $0.depth = 20
    }
    let oracle = Oracle(driver, blocks: 64)
    for _ in 0..<20 {
      try oracle.submit((0..<64).shuffled().prefix(30))
      try oracle.wait(untilOutstanding: 0)
    }
    let image = Image(path: folder.file("disk.img"), bytes: 64 * Oracle.blockBytes)
    try oracle.compare { try image.read(sector: $0 / 512, count: $1) }
    try daemon.stop()
    #expect(injection.count > 20)
  }

  @Test(
    "On a memory file system, a write that is interrupted is made again, and one that is refused is an error",
    .enabled(if: hasStrace, "needs strace"), arguments: [("EINTR", true), ("EAGAIN", true), ("EIO", false)])
  func inPlace(error: String, isTriedAgain: Bool) throws {
    let path = "/dev/shm/vhost-swiftd-\(UUID().uuidString)"
    try Data(count: 1 << 20).write(to: URL(fileURLWithPath: path))
    defer { unlink(path) }
    let folder = try TemporaryFolder()
    let injection = Injection("pwritev2:error=\(error):when=1+2", in: folder)
    let daemon = try Daemon.disk(image: path, in: folder, prefix: injection.prefix)
    let driver = try daemon.connect()
    let data = [UInt8](repeating: 3, count: 4096)
    let statuses = try (0..<10).map { try driver.perform(.write(sector: UInt64(8 * $0), data)).status }
    #expect(statuses.contains(DiskRequest.ioError) != isTriedAgain, "\(statuses)")
    for (index, status) in statuses.enumerated() {
      let expected = status == DiskRequest.ok ? data : [UInt8](repeating: 0, count: 4096)
      #expect(try driver.read(sector: UInt64(8 * index), bytes: 4096) == expected)
    }
    try daemon.stop()
    #expect(injection.count >= 5)
  }

  // MARK: Memory

  /// A process of two disks, each with a socket of its own.
  private func twoDisks() throws -> (Daemon, second: String) {
    let folder = try TemporaryFolder()
    let first = try Image.make(in: folder)
    let second = try Image.make(in: folder, "second.img")
    let config = """
      {"devices": [{"device": "blk", "socket-path": "\(folder.file("s"))", "blk-file": "\(first.path)"},
                   {"device": "blk", "socket-path": "\(folder.file("t"))", "blk-file": "\(second.path)"}]}
      """
    try Data(config.utf8).write(to: URL(fileURLWithPath: folder.file("config")))
    return (try Daemon(["serve", "--config", folder.file("config")], in: folder), folder.file("t"))
  }

  private func exercise(_ driver: BlockDriver, rounds: Int) throws {
    for round in 0..<rounds {
      let data = [UInt8](repeating: UInt8(truncatingIfNeeded: round), count: 4096)
      try driver.write(sector: UInt64(8 * (round % 2000)), data)
      #expect(try driver.read(sector: UInt64(8 * (round % 2000)), bytes: 4096) == data)
    }
  }

  @Test(
    "FT05 FT10: where no memory can be mapped any more a table is refused, the one in use stays, and requests go on"
  )
  func noAddressSpace() throws {
    let (daemon, second) = try twoDisks()
    let facts = ProcessFacts(daemon.process)
    let driver = try daemon.connect()
    try exercise(driver, rounds: 50)
    // Another session, up to its memory; the first table fits.
    let front = try FrontendConnection.connect(to: second, timeout: .seconds(30))
    _ = try front.setProtocolFeatures(front.getProtocolFeatures())
    _ = try front.setFeatures(front.getFeatures() & VirtioBits.driven)
    let (small, large) = (try GuestArena(bytes: 1 << 20), try GuestArena(bytes: 256 << 20))
    #expect(try front.setMemTable(small.table, descriptors: small.descriptors) == .ok)
    let room = (facts.status("VmSize") ?? 0) << 10 + 64 << 20
    try Tool.run("prlimit", ["--pid", "\(daemon.pid)", "--as=\(room):unlimited"])
    for _ in 0..<20 { #expect(try front.setMemTable(large.table, descriptors: large.descriptors).isNack) }
    try exercise(driver, rounds: 500)
    // The old table is as it was: a ring in it can be set up.
    let ring = try QueueDriver(index: 0, DriverRingOptions(size: 16), packed: false, in: small)
    #expect(try front.setVringNum(0, 16) == .ok)
    #expect(try front.setVringBase(0, 0) == .ok)
    #expect(try front.setVringAddr(ring.address(in: small)) == .ok)
    #expect(try front.setVringKick(0, ring.kick) == .ok)
    #expect(try front.getVringBase(0) == 0)
    front.disconnect()
    try Tool.run("prlimit", ["--pid", "\(daemon.pid)", "--as=unlimited:unlimited"])
    let later = try FrontendConnection.connect(to: second, waiting: .seconds(30), timeout: .seconds(30))
    _ = try later.setProtocolFeatures(later.getProtocolFeatures())
    _ = try later.setFeatures(later.getFeatures() & VirtioBits.driven)
    #expect(try later.setMemTable(large.table, descriptors: large.descriptors) == .ok)
    later.disconnect()
    try exercise(driver, rounds: 50)
    try daemon.stop()
  }

  /// A memory control group of this test's own, where there can be one.
  private final class MemoryGroup {
    let path = "/sys/fs/cgroup/memory/vhost-swiftd-\(UUID().uuidString)"
    static let isPossible = {
      guard let group = MemoryGroup() else { return false }
      return access(group.path + "/memory.limit_in_bytes", W_OK) == 0
    }()

    init?() { if mkdir(path, 0o755) != 0 { return nil } }
    deinit { rmdir(path) }

    func set(_ name: String, _ value: String) throws {
      guard FileManager.default.fileExists(atPath: path + "/" + name) else {
        throw HarnessError("no \(name)")
      }
      let file = open(path + "/" + name, O_WRONLY)
      defer { close(file) }
      guard write(file, value, value.utf8.count) == value.utf8.count else {
        throw HarnessError("\(name) = \(value): \(String(cString: strerror(errno)))")
      }
    }
    func number(_ name: String) throws -> Int {
      let text = try String(contentsOfFile: path + "/" + name, encoding: .utf8)
      return Int(text.trimmingCharacters(in: .whitespacesAndNewlines)) ?? -1
    }
  }

  @Test(
    "FT10: at the limit of its memory group the page cache gives way, and every request is answered",
    .enabled(if: MemoryGroup.isPossible, "needs the right to make a group of /sys/fs/cgroup/memory"))
  func memoryGroup() throws {
    let folder = try TemporaryFolder()
    // Nobody has a page of it in memory yet.
    let path = folder.file("disk.img")
    try Data().write(to: URL(fileURLWithPath: path))
    #expect(truncate(path, 128 << 20) == 0)
    let daemon = try Daemon.disk(image: path, in: folder)
    let group = try #require(MemoryGroup())
    try group.set("cgroup.procs", "\(daemon.pid)")
    // What it holds already is the old group's.
    try group.set("memory.limit_in_bytes", "\(32 << 20)")
    let driver = try daemon.connect { $0.dataBytes = 256 << 10 }
    let data = BytePattern(seed: 3).bytes(at: 0, count: 256 << 10)
    for place in stride(from: 0, to: 256 << 10, by: 512) as StrideTo<UInt64> {
      // What is dirty cannot give way at once.
      if place % 16384 == 0 {
        try driver.write(sector: place, data)
        try driver.flush()
      }
      let expected = place % 16384 == 0 ? data : [UInt8](repeating: 0, count: data.count)
      #expect(try driver.read(sector: place, bytes: data.count) == expected)
    }
    driver.disconnect()
    try exercise(daemon.connect(), rounds: 100)
    #expect(try group.number("memory.failcnt") > 0, "the limit was reached")
    try daemon.stop()
  }

  // MARK: Processors

  @Test("FT11: processors that are offline or absent are named in a warning, and the threads run elsewhere")
  func absentProcessors() throws {
    let daemon = try Daemon.disk(["--cpus", "1022,1023", "--threads", "2", "--num-queues", "2"])
    let driver = try daemon.connect { $0.driver.queues = 2 }
    for queue in 0..<2 { _ = try driver.read(sector: 0, bytes: 512, queue: queue) }
    for processor in ["[1022]", "[1023]"] {
      #expect(daemon.log.contains("processors \(processor) cannot be used"), "\(daemon.log)")
    }
    #expect(daemon.log.contains("the thread runs where it may"))
    #expect(ProcessFacts(daemon.process).processors(ofThread: "blk-0") != "1022")
    try daemon.stop()
  }
}
