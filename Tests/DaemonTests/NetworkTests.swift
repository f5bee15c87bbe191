// `vhost-swiftd net` as administrators and management software meet it: its command line, inherited descriptors, and the ends
// that are no tap.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("vhost-swiftd net")
struct NetworkTests {
  private let folder: TemporaryFolder
  init() throws { folder = try TemporaryFolder() }

  /// A wrong command line, and the words that the answer has to name.
  struct Mistake: Sendable {
    let options: [String]
    let named: [String]
    init(_ options: [String], _ named: String...) { (self.options, self.named) = (options, named) }
  }

  @Test(
    "A wrong command line gets one line, status 2, and leaves nothing",
    arguments: [
      Mistake([], "--tap", "--tap-fd", "--backend"),
      Mistake(["--tap", "t0", "--backend", "sink"], "exactly one"),
      Mistake(["--backend", "void"], "--backend", "'void'", "sink", "source", "loop"),
      Mistake(["--backend", "sink", "--create"], "--create", "--tap"),
      Mistake(["--backend", "sink", "--bridge", "br0"], "--bridge", "--tap"),
      Mistake(["--backend", "sink", "--mac", "52:54:00:12:34"], "--mac", "52:54:00:12:34:56"),
      Mistake(["--backend", "sink", "--mac", "ff:ff:ff:ff:ff:ff"], "--mac"),
      Mistake(["--backend", "sink", "--mac", "00:00:00:00:00:00"], "--mac"),
      Mistake(["--backend", "sink", "--queue-pairs", "0"], "--queue-pairs 0", "1 to 127"),
      Mistake(["--backend", "sink", "--queue-pairs", "128"], "--queue-pairs 128", "1 to 127"),
      Mistake(["--backend", "sink", "--num-queues", "2"], "--num-queues", "--queue-pairs"),
      Mistake(["--backend", "sink", "--pcap", ""], "--pcap"),
      Mistake(["--tap", "t0", "--vlan", "0"], "--vlan 0", "1 to 4094"),
      Mistake(["--tap", "t0", "--vlan", "4095"], "--vlan 4095", "1 to 4094"),
      Mistake(["--backend", "loop", "--vlan", "5"], "--vlan", "--tap"),
      Mistake(["--backend", "sink", "--pps", "0"], "--pps"),
      Mistake(["--backend", "sink", "--bandwidth-send", "1Q"], "--bandwidth-send"),
      Mistake(["--tap-fd", "3,3"], "--tap-fd", "3,4"), Mistake(["--tap-fd", "-1"], "--tap-fd"),
      Mistake(["--tap-fd", "a"], "--tap-fd"), Mistake(["--tap-fd", ""], "--tap-fd"),
      Mistake(["--tap-fd", "3,4", "--queue-pairs", "3"], "--queue-pairs 3", "2 descriptors"),
    ])
  func mistakes(_ mistake: Mistake) throws {
    try Run(["net", "--socket-path", "{folder}/s"] + mistake.options, in: folder)
      .expectFailure(2, naming: mistake.named)
    #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path) == [])
  }

  @Test("It says what it is")
  func capabilities() throws {
    let run = try Run(["net", "--print-capabilities"], in: folder)
    #expect(run.exit == .status(0) && run.output == "{\"type\":\"net\"}\n")
  }

  @Test("Descriptors that are no tap's are refused, by their number")
  func foreignDescriptors() throws {
    let pipe = Pipe()
    try Run(
      ["net", "--socket-path", "{folder}/s", "--tap-fd", "3"], in: folder,
      descriptors: [pipe.fileHandleForReading.fileDescriptor]
    ).expectFailure(1, naming: ["--tap-fd 3", "tap"])
    try Run(["net", "--socket-path", "{folder}/s", "--tap-fd", "77"], in: folder)
      .expectFailure(1, naming: ["--tap-fd 77", "not open"])
    #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path) == [])
  }

  @Test("The ends without a kernel device are served, and counted")
  func ends() throws {
    for end in ["sink", "source", "loop"] {
      let daemon = try Daemon(["net", "--socket-path", "{folder}/s", "--backend", end])
      let driver = try daemon.connectCard()
      let out = try driver.arena.allocate(100)
      let into = try driver.arena.allocate(2048)
      if end != "sink" { _ = try driver.queues[0].submit([DescriptorSpec(into, 2048, write: true)]) }
      _ = try driver.queues[1].submit([DescriptorSpec(out, 72)])
      #expect(try driver.queues[1].wait().length == 0)
      if end != "sink" { #expect(try driver.queues[0].wait().length == 72) }
      #expect(try daemon.counters().sum("frames") == (end == "sink" ? 1 : 2))
      driver.disconnect()
      try daemon.stop()
    }
  }
}

@Suite("A card's sessions")
struct CardSessionTests {
  @Test(
    "RS01 three hundred front-ends come and go, and leave no memory behind",
    arguments: [
      ["net", "--socket-path", "{folder}/s", "--backend", "loop"],
      ["switch", "--port", "{folder}/s", "--port", "{folder}/other"],
    ])
  func memory(line: [String]) throws {
    let daemon = try Daemon(line)
    func session() throws {
      let driver = try daemon.connectCard()
      driver.disconnect()
    }
    for _ in 0..<20 { try session() }
    let before = try #require(ProcessFacts(daemon.process).status("VmData"))
    for _ in 0..<300 { try session() }
    // A session's queues have some 80 KiB of their own, most of which is never touched: resident memory would not tell.
    let after = try #require(ProcessFacts(daemon.process).status("VmData"))
    #expect(after - before < 4096, "\(before) KiB before, \(after) after")
    try daemon.stop()
  }
}

extension Daemon {
  /// Drives the first pair of its card.
  func connectCard() throws -> DeviceDriver {
    let driver = DeviceDriver(
      try FrontendConnection.connect(to: socket), arena: try GuestArena(bytes: 4 << 20),
      DriverOptions.with {
        $0.queues = 2
        $0.configBytes = 0
        $0.timeout = .seconds(20)
      })
    try driver.connect()
    try driver.start()
    return driver
  }
}
