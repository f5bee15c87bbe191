// Limits from the command line and from a configuration file: enforced, refused where they are none, changed at SIGHUP.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("Limits")
struct LimitTests {
  private static func config(_ folder: TemporaryFolder, _ image: String, _ limits: String) throws {
    let text = """
      {"devices": [{"device": "blk", "socket-path": "\(folder.file("s"))", "blk-file": "\(image)"\(limits)}]}
      """
    try Data(text.utf8).write(to: URL(fileURLWithPath: folder.file("config.json")))
  }

  @Test(
    "A disk at its limit sleeps; SIGHUP takes up another limit from the file, and the request that waited is served"
  )
  func reload() throws {
    let folder = try TemporaryFolder()
    let image = try Image.make(in: folder)
    try Self.config(folder, image.path, #", "bandwidth-read": "1,burst=1024", "iops": 1000000"#)
    let daemon = try Daemon(["serve", "--config", "{folder}/config.json"], in: folder)
    let driver = try daemon.connect()
    let expected = try image.read(sector: 4, count: 1024)
    #expect(try driver.read(sector: 4, bytes: 1024) == expected)
    // The next one would have to wait for a quarter of an hour.
    let waiting = try driver.queues[0].submit(.read(sector: 4, bytes: 1024))
    try daemon.process.wait(until: "a request waits", within: 30) {
      (try? daemon.counters())?.sum("throttles") == 1
    }
    #expect(ProcessFacts(daemon.process).load(over: 1000) < 0.5)
    // Not a limit: refused whole, and told.
    try Self.config(folder, image.path, #", "read-only": true"#)
    daemon.process.signal(SIGHUP)
    try daemon.process.wait(until: "the refusal", within: 30) {
      daemon.log.contains("changes that a running process cannot take up")
    }
    try Self.config(folder, image.path, #", "bandwidth-read": "10M", "iops-write": 5"#)
    daemon.process.signal(SIGHUP)
    let result = try driver.queues[0].wait(for: waiting)
    #expect(result.status == 0 && result.input == expected)
    for _ in 0..<20 { #expect(try driver.read(sector: 4, bytes: 1024) == expected) }
    let counters = try daemon.counters()
    #expect(counters.sum("throttles") == 1)
    #expect(counters.sum("throttledNanoseconds") > 500_000_000)
    driver.disconnect()
    daemon.process.signal(SIGTERM)
    #expect(try daemon.process.waitExit(within: 30) == .status(0))
  }

  @Test(
    "A card at its limit sleeps; SIGHUP takes up another limit from the file, and the frame that waited is sent"
  )
  func card() throws {
    let folder = try TemporaryFolder()
    func configure(_ limits: String) throws {
      let text = """
        {"devices": [{"device": "net", "socket-path": "\(folder.file("s"))", "backend": "loop"\(limits)}]}
        """
      try Data(text.utf8).write(to: URL(fileURLWithPath: folder.file("config.json")))
    }
    try configure(#", "bandwidth-send": "1,burst=60", "pps": 1000000"#)
    let daemon = try Daemon(["serve", "--config", "{folder}/config.json"], in: folder)
    let driver = try daemon.connectCard()
    let out = try driver.arena.allocate(100)
    let into = try driver.arena.allocate(2048)
    for _ in 0..<3 { _ = try driver.queues[0].submit([DescriptorSpec(into, 500, write: true)]) }
    _ = try driver.queues[1].submit([DescriptorSpec(out, 72)])
    #expect(try driver.queues[1].wait().length == 0)
    // The next one would have to wait for a minute.
    _ = try driver.queues[1].submit([DescriptorSpec(out, 72)])
    try daemon.process.wait(until: "a frame waits", within: 30) {
      (try? daemon.counters())?.sum("throttles") == 1
    }
    #expect(ProcessFacts(daemon.process).load(over: 1000) < 0.5)
    try configure(#", "bandwidth-receive": "10M""#)
    daemon.process.signal(SIGHUP)
    #expect(try driver.queues[1].wait().length == 0)
    for _ in 0..<2 { #expect(try driver.queues[0].wait().length == 72) }
    let counters = try daemon.counters()
    #expect(counters.sum("frames") == 4)
    #expect(counters.sum("throttledNanoseconds") > 500_000_000)
    driver.disconnect()
    daemon.process.signal(SIGTERM)
    #expect(try daemon.process.waitExit(within: 30) == .status(0))
  }

  @Test("An end does not wait for the bucket")
  func end() throws {
    let daemon = try Daemon.disk(["--iops", "1,burst=1", "--bandwidth", "1,burst=512"])
    let driver = try daemon.connect()
    _ = try driver.read(sector: 0, bytes: 512)
    _ = try driver.queues[0].submit(.read(sector: 0, bytes: 512))
    try daemon.process.wait(until: "a request waits", within: 30) {
      (try? daemon.counters())?.sum("throttles") == 1
    }
    try daemon.stop()
  }

  @Test(
    "What is no rate is told in one line with status 2",
    arguments: [
      "0", "-1", "1.5", "x", "", "5,", "5,burst=0", "5,burst=", "5,bursts=5", "5,burst=5,burst=6",
      "99999999999999999999",
      "1000000000001", "5K",
    ])
  func refused(text: String) throws {
    let run = try Run(
      ["blk", "--socket-path", "{folder}/s", "--null-size", "1M", "--iops=" + text], in: TemporaryFolder())
    run.expectFailure(2, naming: ["--iops"])
  }

  @Test("A byte rate takes units, and a negative or endless one is refused")
  func units() throws {
    for text in ["-1", "0", "1Q", "9000000G", "1G,burst=0"] {
      let run = try Run(
        ["blk", "--socket-path", "{folder}/s", "--null-size", "1M", "--bandwidth-write=" + text],
        in: TemporaryFolder())
      run.expectFailure(2, naming: ["--bandwidth-write"])
    }
    let daemon = try Daemon.disk(["--bandwidth", "1G,burst=2G", "--bandwidth-write", "64K"])
    try daemon.stop()
  }
}
