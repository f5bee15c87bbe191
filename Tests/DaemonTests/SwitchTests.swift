// `vhost-swiftd switch`: from the command line and from a file, with guests on its sockets; and what it refuses.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("Switch")
struct SwitchTests {
  /// A card with one buffer posted, and room for a frame.
  private struct Guest {
    let driver: DeviceDriver
    let buffer: UInt64
    let room: UInt64

    init(_ path: String) throws {
      let options = DriverOptions.with {
        $0.features = VirtioBits.driven
        $0.queues = 2
        $0.timeout = .seconds(30)
      }
      let arena = try GuestArena(bytes: 4 << 20)
      driver = DeviceDriver(
        try .connect(to: path, waiting: .seconds(30), timeout: .seconds(30)), arena: arena, options)
      try driver.connect()
      try driver.start()
      buffer = try arena.allocate(2048)
      room = try arena.allocate(2048)
      _ = try driver.queues[0].submit([DescriptorSpec(buffer, 2048, write: true)])
    }

    func send(_ frame: [UInt8]) throws {
      try driver.arena.write([UInt8](repeating: 0, count: 12) + frame, at: room)
      _ = try driver.queues[1].submit([DescriptorSpec(room, UInt32(12 + frame.count))])
      _ = try driver.queues[1].wait()
    }

    func receive() throws -> [UInt8] {
      let used = try driver.queues[0].wait()
      return try Array(driver.arena.read(at: buffer, count: Int(used.length))[12...])
    }
  }

  private static let frame: [UInt8] =
    [UInt8](repeating: 0xff, count: 6) + [2, 0, 0, 0, 0, 1, 0x88, 0xb5] + [UInt8](repeating: 7, count: 50)

  @Test("Two sockets of one process are a network, counters are by port, and the end takes both sockets away")
  func commandLine() throws {
    let daemon = try Daemon([
      "switch", "--port", "{folder}/s", "--port", "{folder}/t,isolated", "--stats", "{folder}/stats",
    ])
    let (a, b) = (try Guest(daemon.socket), try Guest(daemon.folder.file("t")))
    try a.send(Self.frame)
    #expect(try b.receive() == Self.frame)
    // One pair a port, and no feature that says otherwise.
    #expect(try a.driver.connection.getQueueNum() == 2)
    #expect(a.driver.offeredFeatures & (1 << 22) == 0)
    a.driver.disconnect()
    b.driver.disconnect()
    try daemon.stop()
    #expect(access(daemon.folder.file("t"), F_OK) != 0)
    let stats = try String(contentsOfFile: daemon.folder.file("stats"), encoding: .utf8)
    let ports = try stats.split(separator: "\n").map {
      try JSONDecoder().decode(Counters.self, from: Data($0.utf8))
    }
    #expect(ports.map(\.device) == ["port0", "port1"])
    #expect(ports.map { $0.sum("floods") } == [1, 0] && ports.map { $0.sum("delivered") } == [0, 1])
  }

  @Test("A switch in a configuration file, beside a disk")
  func config() throws {
    let folder = try TemporaryFolder()
    let text = """
      {"devices": [
        {"device": "switch", "ageing": 60, "port": ["\(folder.file("s")),vlan=7", "\(folder.file("t")),vlan=7"]},
        {"device": "blk", "socket-path": "\(folder.file("d"))", "null-size": "1M"}
      ]}
      """
    try Data(text.utf8).write(to: URL(fileURLWithPath: folder.file("config.json")))
    let daemon = try Daemon(["serve", "--config", "{folder}/config.json"], in: folder)
    let (a, b) = (try Guest(daemon.socket), try Guest(folder.file("t")))
    try a.send(Self.frame)
    #expect(try b.receive() == Self.frame)
    // Nothing to change, and no harm done.
    daemon.process.signal(SIGHUP)
    try daemon.stop()
    #expect(daemon.log == "")
  }

  @Test(
    "What is no switch is told in one line with status 2",
    arguments: [
      ([], ["--port"]), (["--port", "{folder}/s"], ["2 to 64"]),
      (["--port", "{folder}/s", "--port", "{folder}/s"], ["same path"]),
      (["--port", "{folder}/s,vlan=0", "--port", "{folder}/t"], ["1 to 4094"]),
      (["--port", "{folder}/s,vlan=4095", "--port", "{folder}/t"], ["1 to 4094"]),
      (["--port", "{folder}/s,trunk=1+", "--port", "{folder}/t"], ["1 to 4094"]),
      (["--port", "{folder}/s,isolated=1", "--port", "{folder}/t"], ["isolated=1"]),
      (["--port", "{folder}/s,vlan=1,vlan=2", "--port", "{folder}/t"], ["twice"]),
      (["--port", ",vlan=1", "--port", "{folder}/t"], ["path"]),
      (["--port", "{folder}/s,mac=01:00:00:00:00:00", "--port", "{folder}/t"], ["mac"]),
      (["--port", "{folder}/s,flood=0", "--port", "{folder}/t"], ["flood"]),
      (["--port", "{folder}/s", "--port", "{folder}/t", "--ageing", "0"], ["--ageing"]),
      (["--port", "{folder}/s", "--port", "{folder}/t", "--socket-mode", "9"], ["octal"]),
      (["--uplink-tap", "up0"], ["1 to 64"]),
      (["--port", "{folder}/s", "--uplink-tap", ",vlan=1"], ["name"]),
      (["--port", "{folder}/s", "--uplink-tap", "up0,mac=02:00:00:00:00:01"], ["mac"]),
      (["--port", "{folder}/s", "--port", "{folder}/t", "--create"], ["--uplink-tap"]),
      (["--port", "{folder}/s", "--port", "{folder}/t", "--bridge", "br0"], ["--uplink-tap"]),
    ] as [([String], [String])])
  func refused(options: [String], words: [String]) throws {
    let folder = try TemporaryFolder()
    try Run(["switch"] + options, in: folder).expectFailure(2, naming: words)
    #expect(access(folder.file("s"), F_OK) != 0)
  }
}
