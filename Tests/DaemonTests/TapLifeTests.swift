// `vhost-swiftd net` and its tap: there or not, made, taken up again, deleted, handed over; and what is left behind.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

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

  private func refused(
    _ options: [String], naming words: [String], prefix more: [String] = [], descriptors: [Int32] = []
  ) throws {
    try Run(
      ["net", "--socket-path", "{folder}/s"] + options, in: folder, prefix: prefix + more,
      descriptors: descriptors
    )
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

  @Test("A tap that somebody else made is used by --create as it is, and stays at a crash and at a clean end")
  func borrowed() throws {
    try namespace.shell("ip tuntap add dev one mode tap; ip link set one alias 'the operator''s'")
    let before = try namespace.run("ip", ["-o", "link", "show", "one"])
    let options = ["--tap", "one", "--create"]
    let first = try serve(options)
    first.process.kill()
    try FileManager.default.removeItem(atPath: first.socket)
    try serve(options).stop()
    // The kernel is done with the process that ended when another one gets the tap.
    try serve(["--tap", "one"]).stop()
    #expect(try interfaces == ["lo", "one"])
    #expect(try namespace.run("ip", ["-o", "link", "show", "one"]) == before)
  }

  @Test("A start that fails takes away the tap that it made, and no other")
  func failedStart() throws {
    try namespace.shell("ip tuntap add dev one mode tap")
    for tap in ["one", "two"] {
      try refused(["--tap", tap, "--create", "--pcap", "{folder}/no/such"], naming: ["no/such"])
    }
    let deadline = Deadline(seconds: 30)
    while try interfaces != ["lo", "one"], !deadline.hasPassed { _ = poll(nil, 0, 20) }
    #expect(try interfaces == ["lo", "one"])
  }

  @Test(
    "NT13 a tap that is deleted costs frames, not processor time; one of its name that comes is taken up",
    arguments: ["direct", "ring"])
  func deleted(way: String) throws {
    let make = "ip tuntap add dev one mode tap; ip link set one up"
    try namespace.shell(make)
    let daemon = try serve(["--tap", "one", "--tap-io", way])
    let driver = try daemon.connectCard()
    let place = try driver.arena.allocate(4096)
    func send() throws {
      _ = try driver.queues[1].submit([DescriptorSpec(place, 72)])
      #expect(try driver.queues[1].wait().length == 0)
    }
    _ = try driver.queues[0].submit([DescriptorSpec(place + 2048, 2048, write: true)])
    try send()
    #expect(try daemon.counters().sum("linkDown") == 0)
    for _ in 0..<2 {
      let before = try daemon.counters().sum("linkDown")
      try namespace.shell("ip link del one")
      for _ in 0..<3 { try send() }
      #expect(try daemon.counters().sum("linkDown") >= before + 3)
      #expect(ProcessFacts(daemon.process).load(over: 1000) < 0.1)
      let lost = try daemon.counters().sum("frames")
      try namespace.shell(make)
      // It looks five times a second.
      try daemon.process.wait(until: "frames pass again", within: 30) {
        try send()
        return try daemon.counters().sum("frames") > lost
      }
    }
    driver.disconnect()
    try daemon.stop()
  }

  @Test("NT18 descriptors of a tap that puts no header before frames are refused, by their number")
  func headerless() throws {
    let queues = try OpenTap.queues(of: "bare", 1, header: false)
    try refused(["--tap-fd", "3"], naming: ["--tap-fd 3", "IFF_VNET_HDR"], descriptors: queues.descriptors)
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
    let driver = try daemon.connectCard()
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

  @Test("A card with --vlan and one without, on bridged taps: the tag is seen by the second one only")
  func networks() throws {
    try namespace.shell(
      """
      ip link add br0 type bridge; ip link set br0 up
      for tap in one two; do ip tuntap add dev $tap mode tap; ip link set $tap master br0 up; done
      """)
    let inside = try serve(["--tap", "one", "--vlan", "5"])
    let outside = try Daemon(
      ["net", "--socket-path", "{folder}/s", "--tap", "two"], in: TemporaryFolder(), prefix: prefix)
    let (one, two) = (try inside.connectCard(), try outside.connectCard())
    let addresses = [UInt8](repeating: 0xff, count: 6) + [2, 0, 0, 0, 0, 9]
    let rest: [UInt8] = [0x88, 0xb5] + (0..<200).map { UInt8($0) }
    func tagged(_ low: UInt8) -> [UInt8] { addresses + [0x81, 0, 0, low] + rest }

    #expect(try exchange(addresses + rest, from: one, to: two) == tagged(5))
    #expect(try exchange(tagged(5), from: two, to: one) == addresses + rest)
    let before = try inside.counters().sum("wrongNetwork")
    try send(tagged(6), by: two)
    try send(addresses + rest, by: two)
    #expect(try exchange(tagged(5), from: two, to: one) == addresses + rest)
    #expect(try inside.counters().sum("wrongNetwork") >= before + 2)
    for driver in [one, two] { driver.disconnect() }
    try inside.stop()
    try outside.stop()
  }

  private func send(_ frame: [UInt8], by driver: DeviceDriver) throws {
    let place = try driver.arena.allocate(12 + frame.count)
    try driver.arena.write([UInt8](repeating: 0, count: 12) + frame, at: place)
    _ = try driver.queues[1].submit([DescriptorSpec(place, UInt32(12 + frame.count))])
    #expect(try driver.queues[1].wait().length == 0)
  }

  /// Sends a frame by one card and returns what comes to the other, but for what the kernel says on its own.
  private func exchange(_ frame: [UInt8], from: DeviceDriver, to: DeviceDriver) throws -> [UInt8] {
    try send(frame, by: from)
    for _ in 0..<64 {
      let place = try to.arena.allocate(2048)
      _ = try to.queues[0].submit([DescriptorSpec(place, 2048, write: true)])
      let used = try to.queues[0].wait()
      let bytes = try to.arena.read(at: place + 12, count: Int(used.length) - 12)
      if Array(bytes[6..<12]) == Array(frame[6..<12]) { return bytes }
    }
    throw HarnessError("the frame did not come")
  }
}
