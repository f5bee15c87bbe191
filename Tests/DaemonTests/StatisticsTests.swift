// Counters: at SIGUSR1 and at the end, as JSON on one line, exact.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("Statistics")
struct StatisticsTests {
  @Test("SIGUSR1 writes the counters to standard output as one line of JSON, and they are exact")
  func onSignal() throws {
    let daemon = try Daemon.disk(["--num-queues", "3", "--threads", "2"])
    let before = try daemon.counters()
    #expect(before.device == "blk" && before.threads.count == 2 && before.queues.isEmpty)
    let driver = try daemon.connect { $0.driver.queues = 2 }
    for i in 0..<30 {
      try driver.write(sector: UInt64(i), [UInt8](repeating: 1, count: 1024), queue: i % 2)
    }
    for i in 0..<20 { _ = try driver.read(sector: UInt64(i), bytes: 512, queue: 1) }
    for _ in 0..<10 { try driver.flush() }
    _ = try driver.getID()
    for _ in 0..<4 { _ = try driver.perform(DiskRequest(type: 77)) }
    for _ in 0..<5 { _ = try driver.perform(.read(sector: 1 << 40, bytes: 512), queue: 1) }
    let after = try daemon.counters()
    #expect(after.queues.map { $0["index"] } == [0, 1], "queues that were never used are left out")
    let expected: [String: UInt64] = [
      "reads": 25, "writes": 30, "flushes": 10, "identifications": 1, "bytesRead": 20 * 512,
      "bytesWritten": 30 * 1024, "unsupported": 4, "errors": 5, "malformed": 0, "faults": 0, "chains": 70,
      "completed": 70,
    ]
    for (name, value) in expected { #expect(after.sum(name) == value, "\(name)") }
    #expect(after.queues.map { $0["unsupported"] } == [4, 0])
    #expect(after.sum("calls") + after.sum("callsSuppressed") <= 70)
    try daemon.stop()
    #expect(!daemon.log.split(separator: "\n").contains { !$0.hasPrefix("{") }, "\(daemon.log)")
  }

  /// The objects in a file of counters; nil while it is being written.
  private func read(_ path: String) -> [Counters]? {
    guard let text = try? String(contentsOfFile: path, encoding: .utf8), text.hasSuffix("\n") else {
      return nil
    }
    return try? text.split(separator: "\n").map {
      try JSONDecoder().decode(Counters.self, from: Data($0.utf8))
    }
  }

  @Test("--stats keeps the latest counters in a file: those at SIGUSR1, and those at the end")
  func inFile() throws {
    let folder = try TemporaryFolder()
    let path = folder.file("stats")
    // Longer than what comes: none of it may be left.
    try Data(repeating: UInt8(ascii: "x"), count: 100_000).write(to: URL(fileURLWithPath: path))
    let daemon = try Daemon.disk(["--stats", path], in: folder)
    let driver = try daemon.connect()
    for count in 1...3 as ClosedRange<UInt64> {
      _ = try driver.read(sector: 0, bytes: 512)
      daemon.process.signal(SIGUSR1)
      try daemon.process.wait(until: "\(count) reads in the file", within: 30) {
        read(path)?.first?.sum("reads") == count
      }
    }
    _ = try driver.read(sector: 0, bytes: 512)
    driver.disconnect()
    try daemon.stop()
    let last = try #require(read(path))
    #expect(last.count == 1 && last[0].sum("reads") == 4)
    #expect(daemon.log == "")
  }

  @Test("--stats - writes the counters to standard output at the end too")
  func toOutput() throws {
    let daemon = try Daemon.disk(["--stats", "-"])
    _ = try daemon.connect().read(sector: 0, bytes: 512)
    try daemon.stop()
    let counters = try JSONDecoder().decode(Counters.self, from: Data(daemon.log.utf8))
    #expect(counters.sum("reads") == 1)
  }

  @Test("A place for counters that cannot be written, or is the image, is named with status 1")
  func unusablePlaces() throws {
    let place = try Untouched()
    let folder = place.folder
    #expect(mkfifo(folder.file("fifo"), 0o600) == 0)
    #expect(symlink(folder.file("disk.img"), folder.file("link")) == 0)
    let before = try Untouched(folder)
    for (name, says) in [
      ("none/stats", "No such file"), (".", "Is a directory"), ("fifo", "No such device"),
      ("disk.img", "overwrite the image"), ("link", "overwrite the image"),
    ] {
      let run = try Run(
        [
          "blk", "--socket-path", "{folder}/s", "--blk-file", "{folder}/disk.img", "--stats",
          "{folder}/" + name,
        ],
        in: folder)
      run.expectFailure(1, naming: [folder.file(name), says])
      try before.expectSame()
    }
  }

  @Test("Counters that nobody reads hold up neither requests nor the end", arguments: ["closed", "full"])
  func unreadOutput(kind: String) throws {
    var ends: [Int32] = [-1, -1]
    #expect(pipe(&ends) == 0)
    defer { close(ends[1]) }
    if kind == "closed" { close(ends[0]) }
    defer { if kind == "full" { close(ends[0]) } }
    let folder = try TemporaryFolder()
    let image = try Image.make(in: folder)
    let daemon = try Daemon(
      ["blk", "--socket-path", "{folder}/s", "--blk-file", image.path], in: folder,
      prefix: ["sh", "-c", "exec >&3 3>&-; exec \"$@\"", "sh"], descriptors: [ends[1]])
    let driver = try daemon.connect()
    // The counters of one queue have some 400 bytes; a pipe holds 65536.
    for round in 0..<300 {
      daemon.process.signal(SIGUSR1)
      #expect(try driver.read(sector: UInt64(round), bytes: 512) == image.read(sector: round, count: 512))
    }
    try daemon.stop()
  }
}
