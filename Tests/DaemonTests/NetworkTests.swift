// `vhost-swiftd net` as administrators and management software meet it: taps that are there or not, made, taken up again,
// handed over; and what is left behind.

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
      let driver = DeviceDriver(
        try FrontendConnection.connect(to: daemon.socket), arena: try GuestArena(bytes: 4 << 20),
        DriverOptions.with {
          $0.queues = 2
          $0.configBytes = 0
          $0.timeout = .seconds(20)
        })
      try driver.connect()
      try driver.start()
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

/// Whether this process may make network namespaces. As root it may.
private let mayHaveNamespaces = (try? NetworkNamespace()) != nil

@Suite("vhost-swiftd net and its tap", .enabled(if: mayHaveNamespaces))
struct TapLifeTests {
  private let folder: TemporaryFolder
  private let namespace: NetworkNamespace

  init() throws {
    folder = try TemporaryFolder()
    namespace = try NetworkNamespace()
  }

  private var prefix: [String] { Array(namespace.command("", []).dropLast()) }

  private func serve(_ options: [String]) throws -> Daemon {
    try Daemon(["net", "--socket-path", "{folder}/s"] + options, in: folder, prefix: prefix)
  }

  private func refused(_ options: [String], naming words: [String], prefix more: [String] = []) throws {
    try Run(["net", "--socket-path", "{folder}/s"] + options, in: folder, prefix: prefix + more)
      .expectFailure(1, naming: words)
    #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path) == [])
  }

  private var interfaces: [Substring] {
    get throws {
      try namespace.run("ip", ["-o", "link"]).split(separator: "\n").compactMap {
        $0.split(separator: " ").dropFirst().first.map { $0.prefix { $0 != ":" && $0 != "@" } }
      }
    }
  }

  @Test("A tap that cannot be had gets one line, status 1, and leaves nothing")
  func refusals() throws {
    try namespace.shell("ip tuntap add dev one mode tap; ip tuntap add dev tun0 mode tun")
    try refused(["--tap", "none"], naming: ["'none'", "ip tuntap add dev none", "--create"])
    try refused(["--tap", "lo"], naming: ["'lo'", "another kind"])
    try refused(["--tap", "tun0"], naming: ["'tun0'", "another kind"])
    try refused(["--tap", "sixteen-letters-"], naming: ["'sixteen-letters-'", "15 bytes"])
    try refused(["--tap", ""], naming: ["''", "15 bytes"])
    try refused(["--tap", "a/b"], naming: ["'a/b'"])
    try refused(["--tap", "one", "--queue-pairs", "2"], naming: ["'one'", "one queue", "multi_queue"])
    let without = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--"]
    try refused(["--tap", "new", "--create"], naming: ["'new'", "CAP_NET_ADMIN"], prefix: without)
    try refused(
      ["--tap", "one", "--pcap", "{folder}/no/such"],
      naming: ["{folder}/no/such".replacing("{folder}", with: folder.path)])
    try refused(["--tap", "new", "--create", "--bridge", "nobr"], naming: ["'nobr'"])
    try refused(["--tap", "new", "--create", "--bridge", "lo"], naming: ["'lo'"])
    #expect(try interfaces == ["lo", "one", "tun0"])
  }

  @Test("A tap is one process's")
  func exclusive() throws {
    try namespace.shell("ip tuntap add dev one mode tap")
    let daemon = try serve(["--tap", "one"])
    try Run(["net", "--socket-path", "{folder}/t", "--tap", "one"], in: folder, prefix: prefix)
      .expectFailure(1, naming: ["'one'", "in use"])
    try daemon.stop()
    #expect(try interfaces == ["lo", "one"], "a tap of others stays")
  }

  @Test("A tap that was made outlives a crash, is taken up again, and is gone after a clean end")
  func created() throws {
    try namespace.shell("ip link add br0 type bridge")
    let options = ["--tap", "mine", "--create", "--bridge", "br0"]
    let first = try serve(options)
    #expect(try namespace.run("ip", ["link", "show", "mine"]).contains("master br0"))
    #expect(try namespace.run("ip", ["link", "show", "mine"]).contains("UP"))
    first.process.kill()
    #expect(try interfaces.contains("mine"))
    // Its socket is left behind too; that the next one serves is seen by a new one.
    try FileManager.default.removeItem(atPath: first.socket)
    let second = try serve(options)
    try second.stop()
    // The kernel lets a tap go when it has taken the rings of the process that ended apart.
    let deadline = Deadline(seconds: 30)
    while try interfaces != ["lo", "br0"], !deadline.hasPassed { _ = poll(nil, 0, 20) }
    #expect(try interfaces == ["lo", "br0"])
  }

  @Test("A tap of several queues is served with as many pairs as were asked for, one of them too")
  func queues() throws {
    try namespace.shell("ip tuntap add dev many mode tap multi_queue")
    for pairs in [1, 4] {
      let daemon = try serve(["--tap", "many", "--queue-pairs", "\(pairs)"])
      let connection = try FrontendConnection.connect(to: daemon.socket)
      #expect(try connection.getQueueNum() == UInt64(2 * pairs + 1))
      connection.disconnect()
      try daemon.stop()
    }
  }

  @Test("Inherited descriptors of a tap are served")
  func inherited() throws {
    let queues = try OpenTap.queues(of: "handed", 2)
    let daemon = try Daemon(
      ["net", "--socket-path", "{folder}/s", "--tap-fd", "3,4"], in: folder, descriptors: queues.descriptors)
    let connection = try FrontendConnection.connect(to: daemon.socket)
    #expect(try connection.getQueueNum() == 5)
    connection.disconnect()
    try daemon.stop()
  }

  @Test("A description of several devices may have cards in it")
  func config() throws {
    try namespace.shell("ip tuntap add dev one mode tap")
    let file = folder.file("config.json")
    try #"""
    {"devices": [{"device": "net", "socket-path": "\#(folder.file("s"))", "tap": "one", "mac": "52:54:00:00:00:01"},
                 {"device": "net", "socket-path": "\#(folder.file("t"))", "backend": "loop", "queue-pairs": 2}]}
    """#.write(toFile: file, atomically: true, encoding: .utf8)
    let daemon = try Daemon(["serve", "--config", file], in: folder, prefix: prefix)
    try daemon.process.wait(until: "both serve", within: 60) {
      FileManager.default.fileExists(atPath: folder.file("t"))
    }
    try daemon.stop()
  }

  @Test("A capture is one that tcpdump reads")
  func capture() throws {
    let file = folder.file("frames.pcap")
    let daemon = try serve(["--backend", "loop", "--pcap", file])
    let driver = DeviceDriver(
      try FrontendConnection.connect(to: daemon.socket), arena: try GuestArena(bytes: 4 << 20),
      DriverOptions.with {
        $0.queues = 2
        $0.configBytes = 0
        $0.timeout = .seconds(20)
      })
    try driver.connect()
    try driver.start()
    let out = try driver.arena.allocate(100)
    // ARP: who has 10.0.0.9?
    let arp: [UInt8] =
      [UInt8](repeating: 0xff, count: 6) + [
        2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10, 0, 0, 8,
      ]
      + [0, 0, 0, 0, 0, 0, 10, 0, 0, 9]
    try driver.arena.write([UInt8](repeating: 0, count: 12) + arp, at: out)
    _ = try driver.queues[1].submit([DescriptorSpec(out, UInt32(12 + arp.count))])
    _ = try driver.queues[1].wait()
    driver.disconnect()
    try daemon.stop()
    let text = try Tool.run("tcpdump", ["-nr", file])
    #expect(text.contains("Request who-has 10.0.0.9 tell 10.0.0.8"), "\(text)")
  }
}
