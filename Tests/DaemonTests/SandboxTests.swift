// The program's sandbox from outside: what the kernel says of each of its threads, what a queue thread is refused, and that
// everything a service does still works inside.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("Sandbox")
struct SandboxTests {
  private static let none = "0000000000000000"

  /// Lines of /proc/PID/task/*/status, a dictionary a thread.
  private func threads(of daemon: Daemon) throws -> [[String: String]] {
    let tasks = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(daemon.pid)/task")
    return tasks.map { task in
      let data = FileManager.default.contents(atPath: "/proc/\(daemon.pid)/task/\(task)/status") ?? Data()
      return String(decoding: data, as: UTF8.self).split(separator: "\n").reduce(into: [:]) { facts, line in
        let parts = line.split(separator: ":", maxSplits: 1)
        if parts.count == 2 { facts[String(parts[0])] = parts[1].trimmingCharacters(in: .whitespaces) }
      }
    }
  }

  /// Requires it of every thread: no new privileges, a filter, no capability of any kind.
  private func expectClosed(_ daemon: Daemon, threads count: Int, _ line: Int = #line) throws {
    let threads = try threads(of: daemon)
    #expect(threads.count >= count, "\(threads.map { $0["Name"] ?? "?" }), line \(line)")
    for thread in threads {
      let name = "\(thread["Name"] ?? "?"), line \(line)"
      #expect(thread["NoNewPrivs"] == "1", "\(name)")
      #expect(thread["Seccomp"] == "2", "\(name)")
      for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] where set != "CapBnd" || geteuid() == 0 {
        #expect(thread[set] == Self.none, "\(name): \(set)")
      }
    }
  }

  private func expectData(_ driver: BlockDriver, seed: UInt64) throws {
    let data = BytePattern(seed: seed).bytes(at: 0, count: 8192)
    try driver.write(sector: 8, data)
    try driver.flush()
    #expect(try driver.read(sector: 8, bytes: data.count) == data)
  }

  @Test("Every thread is closed while a front-end is served, after each signal and a reconnect, to the end")
  func life() throws {
    let folder = try TemporaryFolder()
    let image = try Image.make(in: folder)
    let daemon = try Daemon.disk(
      ["--threads", "2", "--watch-size", "--stats", folder.file("stats")], image: image.path, in: folder)
    for round: UInt64 in 0..<2 {
      let driver = try daemon.connect()
      // Main, control, two queue threads with their helpers.
      try expectClosed(daemon, threads: 6)
      try expectData(driver, seed: round)
      daemon.process.signal(SIGHUP)
      daemon.process.signal(SIGUSR1)
      try daemon.process.wait(until: "statistics", within: 30) {
        (FileManager.default.contents(atPath: folder.file("stats")) ?? Data()).contains(UInt8(ascii: "{"))
      }
      try expectData(driver, seed: round + 10)
      try expectClosed(daemon, threads: 6)
      driver.disconnect()
    }
    try daemon.stop()
    #expect(daemon.log == "", "nothing is amiss on a kernel that has all of it: \(daemon.log)")
  }

  @Test("A disk discards, zeroes, bounces and grows inside it", arguments: [["--direct"], []])
  func changes(options: [String]) throws {
    let folder = try TemporaryFolder()
    let image = try Image.make(in: folder)
    let daemon = try Daemon.disk(options, image: image.path, in: folder)
    let driver = try daemon.connect()
    let data = BytePattern(seed: 3).bytes(at: 0, count: 4096)
    try driver.write(sector: 64, data)
    try driver.writeZeroes([DiskSegment(sector: 64, sectors: 8)])
    try driver.discard([DiskSegment(sector: 128, sectors: 8)])
    #expect(try driver.read(sector: 64, bytes: 4096) == [UInt8](repeating: 0, count: 4096))
    // One sector, from an odd address: past the page cache it is copied on the helper.
    try driver.write(sector: 3, Array(data[..<512]))
    #expect(try driver.read(sector: 3, bytes: 512) == Array(data[..<512]))
    // The front-end is told of a new size, over its channel.
    let (channel, ack) = try driver.connection.openBackendChannel()
    #expect(!ack.isNack && truncate(image.path, image.bytes * 2) == 0)
    daemon.process.signal(SIGHUP)
    #expect(try channel.receive(timeout: .seconds(20)).request == .configChange)
    #expect(try driver.refreshConfig().capacity == UInt64(image.bytes * 2 / 512))
    try daemon.stop()
  }

  @Test("--sandbox log and off serve as well, and leave the threads as they were", arguments: ["log", "off"])
  func otherModes(mode: String) throws {
    let daemon = try Daemon.disk(["--sandbox", mode])
    let driver = try daemon.connect()
    try expectData(driver, seed: 5)
    let own = try String(contentsOfFile: "/proc/self/status", encoding: .utf8)
    for thread in try threads(of: daemon) {
      #expect(own.contains("CapEff:\t\(thread["CapEff"] ?? "?")"))
      #expect(thread["Seccomp"] == (mode == "log" ? "2" : "0"))
    }
    try daemon.stop()
  }

  @Test(
    "Several devices share one sandbox; an rng serves in it; one that connects to its front-end still does")
  func several() throws {
    let folder = try TemporaryFolder()
    let image = try Image.make(in: folder)
    let listener = try FrontendListener(path: folder.file("front"))
    let config = """
      {"devices": [{"device": "blk", "socket-path": "\(folder.file("s"))", "blk-file": "\(image.path)"},
                   {"device": "rng", "connect": "\(folder.file("front"))"}]}
      """
    try Data(config.utf8).write(to: URL(fileURLWithPath: folder.file("config")))
    let daemon = try Daemon(["serve", "--config", folder.file("config")], in: folder)
    let driver = try daemon.connect()
    try expectData(driver, seed: 6)
    for _ in 0..<2 {
      let connection = try listener.accept(timeout: .seconds(20))
      try connection.barrier()
      connection.disconnect()
    }
    try expectClosed(daemon, threads: 6)
    try daemon.stop()
  }

  @Test(
    "A part of the sandbox that the kernel lacks is told in one line, once, and the rest is used",
    .enabled(if: access("/usr/bin/strace", X_OK) == 0, "needs strace"),
    arguments: [
      ("landlock_create_ruleset:error=ENOSYS", "Landlock is not in this kernel, or off", "2"),
      ("landlock_create_ruleset:error=EOPNOTSUPP", "Landlock is not in this kernel, or off", "2"),
      (
        "seccomp:error=EINVAL", "seccomp filters are not in this kernel: system calls are not restricted", "0"
      ),
      (
        "seccomp:error=ENOSYS", "seccomp filters are not in this kernel: system calls are not restricted", "0"
      ),
    ])
  func gaps(fault: String, told: String, filter: String) throws {
    let daemon = try Daemon.disk(
      prefix: [
        "strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=\(fault.prefix { $0 != ":" })", "-e",
        "inject=\(fault)",
      ])
    for seed in 0..<2 as Range<UInt64> {
      let driver = try daemon.connect()
      try expectData(driver, seed: seed)
      driver.disconnect()
    }
    for thread in try threads(of: daemon) {
      #expect(thread["NoNewPrivs"] == "1" && thread["CapEff"] == Self.none && thread["Seccomp"] == filter)
    }
    let lines = daemon.log.split(separator: "\n")
    #expect(lines.count == 1 && daemon.log.contains(told), "\(daemon.log)")
    try daemon.stop()
  }

  @Test(
    "selftest-sandbox is refused everything, and says so with status 0",
    arguments: [[], ["--device", "net"], ["--device", "rng"]])
  func selftest(device: [String]) throws {
    let folder = try TemporaryFolder()
    let run = try Run(["selftest-sandbox"] + device, in: folder)
    #expect(run.exit == .status(0), "\(run.output)\(run.errors)")
    for act in [
      "open a file", "run a program", "a socket to the network", "trace a process", "another io_uring",
      "OPENAT",
      "executable memory", "userfaultfd", "bpf", "mount", "no capabilities",
    ] {
      #expect(
        run.output.split(separator: "\n").contains { $0.contains(act) && $0.hasSuffix(" ok") }, "\(act)")
    }
    #expect(run.output.contains("closed: "))
  }

  @Test("selftest-sandbox --sandbox off does all of it, and says so with status 1")
  func selftestCanFail() throws {
    let folder = try TemporaryFolder()
    let run = try Run(["selftest-sandbox", "--sandbox", "off"], in: folder)
    #expect(run.exit == .status(1), "\(run.output)")
    for act in ["open a file", "run a program", "a socket to the network", "another io_uring", "OPENAT"] {
      #expect(
        run.output.split(separator: "\n").contains { $0.contains(act) && $0.hasSuffix("NOT OK") }, "\(act)")
    }
    #expect(run.output.contains("NOT CLOSED: "))
  }

  @Test("--user serves as that user, with its socket, and can still remove it", .enabled(if: geteuid() == 0))
  func user() throws {
    let folder = try TemporaryFolder()
    chown(folder.path, 65534, 65534)
    let daemon = try Daemon.disk(["--user", "65534:65534"], in: folder)
    let driver = try daemon.connect()
    try expectData(driver, seed: 7)
    for thread in try threads(of: daemon) {
      #expect(thread["Uid"]?.split(separator: "\t") == ["65534", "65534", "65534", "65534"])
      #expect(thread["Gid"]?.split(separator: "\t") == ["65534", "65534", "65534", "65534"])
      #expect(thread["Groups"] == "65534")
    }
    try expectClosed(daemon, threads: 4)
    var facts = stat()
    #expect(lstat(daemon.socket, &facts) == 0 && facts.st_uid == 65534)
    try daemon.stop()
  }

  @Test("--user takes a name or numbers; others, and a caller who is not root, are told so in one line")
  func userNames() throws {
    let folder = try TemporaryFolder()
    for wrong in ["no such user", "", "1:", ":1", "4294967295", "-1", "1:2:3"] {
      let run = try Run(
        ["blk", "--socket-path", "{folder}/s", "--null-size", "1M", "--user", wrong], in: folder)
      run.expectFailure(2, naming: ["--user"])
    }
    guard geteuid() == 0 else { return }
    let run = try Run(
      ["blk", "--socket-path", "{folder}/s", "--null-size", "1M", "--user", "0"], in: folder,
      prefix: ["setpriv", "--reuid", "65534", "--clear-groups"])
    run.expectFailure(2, naming: ["only root"])
  }
}
