// `vhost-swiftd switch --uplink-tap`, with the kernel's own network on the tap's other side: in a namespace that each test makes.

import Foundation
import GuestHarness
import Synchronization
import Testing
import VhostFrontend

/// Whether this process may make network namespaces. As root it may.
private let mayHaveNamespaces = (try? NetworkNamespace()) != nil

/// A guest with nothing but a card and an address: answers ARP and pings on a thread of its own.
private final class AnsweringGuest: Sendable {
  private let ended = Atomic(false)
  private let done = DispatchSemaphore(value: 0)

  init(_ path: String, address: [UInt8], number: UInt8) throws {
    let options = DriverOptions.with {
      $0.features = VirtioBits.driven
      $0.queues = 2
      $0.timeout = .seconds(30)
    }
    let driver = DeviceDriver(
      try .connect(to: path, waiting: .seconds(30), timeout: .seconds(30)),
      arena: try GuestArena(bytes: 4 << 20), options)
    try driver.connect()
    try driver.start()
    let mac: [UInt8] = [2, 0, 0, 0, 0, number]
    let buffers = try (0..<32).map { _ in try driver.arena.allocate(2048) }
    let room = try driver.arena.allocate(2048)
    let thread = Thread { [self] in
      defer { done.signal() }
      try? Self.answer(driver, mac, address, buffers, room) { ended.load(ordering: .relaxed) }
      driver.disconnect()
    }
    thread.start()
  }

  /// Hangs up.
  func leave() {
    ended.store(true, ordering: .relaxed)
    done.wait()
  }

  private static func answer(
    _ driver: DeviceDriver, _ mac: [UInt8], _ address: [UInt8], _ buffers: [UInt64], _ room: UInt64,
    until ended: () -> Bool
  ) throws {
    var posted: [UInt16: UInt64] = [:]
    for buffer in buffers {
      guard let token = driver.queues[0].ring.add([DescriptorSpec(buffer, 2048, write: true)]) else { return }
      posted[token] = buffer
    }
    driver.queues[0].publish()
    while !ended() {
      guard let used = try? driver.queues[0].wait(timeout: .milliseconds(100)),
        let buffer = posted.removeValue(forKey: used.token)
      else { continue }
      let frame = Array(try driver.arena.read(at: buffer, count: Int(used.length))[12...])
      if let token = driver.queues[0].ring.add([DescriptorSpec(buffer, 2048, write: true)]) {
        posted[token] = buffer
      }
      driver.queues[0].publish()
      guard let reply = reply(to: frame, mac, address) else { continue }
      try driver.arena.write([UInt8](repeating: 0, count: 12) + reply, at: room)
      _ = try driver.queues[1].submit([DescriptorSpec(room, UInt32(12 + reply.count))])
      _ = try driver.queues[1].wait()
    }
  }

  /// What a host says to "who has" and to an echo request; nil: nothing.
  private static func reply(to frame: [UInt8], _ mac: [UInt8], _ address: [UInt8]) -> [UInt8]? {
    guard frame.count >= 42 else { return nil }
    var answer = Array(frame[6..<12]) + mac + frame[12...]
    switch (frame[12], frame[13]) {
    case (8, 6) where frame[21] == 1 && Array(frame[38..<42]) == address:
      answer[21] = 2
      answer.replaceSubrange(22..<42, with: mac + address + frame[22..<32])
      return answer
    case (8, 0) where frame[23] == 1 && frame[34] == 8 && Array(frame[30..<34]) == address:
      answer.replaceSubrange(26..<34, with: address + frame[26..<30])
      answer[34] = 0
      // The type has become less by 8, so the checksum becomes more by that (RFC 1624).
      let sum = UInt32(frame[36]) << 8 + UInt32(frame[37]) + 0x800
      let folded = sum & 0xffff + sum >> 16
      answer[36] = UInt8(truncatingIfNeeded: folded >> 8)
      answer[37] = UInt8(truncatingIfNeeded: folded)
      return answer
    default: return nil
    }
  }
}

@Suite("Switch uplink", .enabled(if: mayHaveNamespaces))
struct UplinkTests {
  private let folder: TemporaryFolder
  private let namespace: NetworkNamespace

  init() throws {
    folder = try TemporaryFolder()
    namespace = try NetworkNamespace()
  }

  private var prefix: [String] { Array(namespace.command("", []).dropLast()) }

  private func serve(_ options: [String]) throws -> Daemon {
    try Daemon(["switch"] + options, in: folder, prefix: prefix)
  }

  private func ping(_ address: String, count: Int = 3) throws {
    try namespace.run("busybox", ["ping", "-A", "-c", "\(count)", "-w", "20", address])
  }

  @Test(
    "The host pings guests through it; a tap that is deleted and made again is taken up, and nobody notices")
  func pings() throws {
    try namespace.shell("ip tuntap add dev up0 mode tap; ip addr add 10.5.0.1/24 dev up0; ip link set up0 up")
    let daemon = try serve(["--port", "{folder}/s", "--port", "{folder}/t", "--uplink-tap", "up0"])
    let a = try AnsweringGuest(daemon.socket, address: [10, 5, 0, 2], number: 2)
    let b = try AnsweringGuest(folder.file("t"), address: [10, 5, 0, 3], number: 3)
    defer { [a, b].forEach { $0.leave() } }
    try ping("10.5.0.2")
    try ping("10.5.0.3")
    try namespace.shell("ip link set up0 down; ip link set up0 up")
    try ping("10.5.0.2")
    try namespace.shell(
      "ip link del up0; ip tuntap add dev up0 mode tap; ip addr add 10.5.0.1/24 dev up0; ip link set up0 up")
    // Taken up within a while: until then the interface has no carrier, and ping says so at once.
    let deadline = Deadline(seconds: 60)
    while (try? ping("10.5.0.3", count: 1)) == nil, !deadline.hasPassed {}
    try ping("10.5.0.2")
    let text = try #require(daemon.lines(of: "uplink").last)
    #expect(text.sum("delivered") > 0 && text.sum("frames") > 0 && text.sum("unresolvable") == 0)
  }

  @Test("An uplink in one VLAN, from a file: its port is reached, a port of another one is not")
  func networks() throws {
    try namespace.shell("ip tuntap add dev up0 mode tap; ip addr add 10.5.0.1/24 dev up0; ip link set up0 up")
    let file = folder.file("config.json")
    try #"""
    {"devices": [{"device": "switch", "port": ["\#(folder.file("s")),vlan=5", "\#(folder.file("t")),vlan=6"],
                  "uplink-tap": "up0,vlan=5"}]}
    """#.write(toFile: file, atomically: true, encoding: .utf8)
    let daemon = try Daemon(["serve", "--config", file], in: folder, prefix: prefix)
    let a = try AnsweringGuest(daemon.socket, address: [10, 5, 0, 2], number: 2)
    let b = try AnsweringGuest(folder.file("t"), address: [10, 5, 0, 3], number: 3)
    defer { [a, b].forEach { $0.leave() } }
    try ping("10.5.0.2")
    #expect(throws: (any Error).self) {
      try namespace.run("busybox", ["arping", "-c", "1", "-w", "1", "-I", "up0", "10.5.0.3"])
    }
    try ping("10.5.0.2")
  }

  @Test("A tap that was made for it is in its bridge, and goes with it")
  func created() throws {
    try namespace.shell("ip link add br0 type bridge; ip addr add 10.5.0.1/24 dev br0; ip link set br0 up")
    let options = ["--port", "{folder}/s", "--uplink-tap", "mine", "--create", "--bridge", "br0"]
    let daemon = try serve(options)
    #expect(try namespace.run("ip", ["link", "show", "mine"]).contains("master br0"))
    let guest = try AnsweringGuest(daemon.socket, address: [10, 5, 0, 2], number: 2)
    try ping("10.5.0.2")
    guest.leave()
    try daemon.stop()
    try expectGone("mine")
  }

  /// The kernel lets a tap go when it has taken the rings of the process that ended apart.
  private func expectGone(_ name: String) throws {
    let deadline = Deadline(seconds: 30)
    while try namespace.run("ip", ["-o", "link"]).contains(name), !deadline.hasPassed { _ = poll(nil, 0, 20) }
    #expect(try !namespace.run("ip", ["-o", "link"]).contains(name))
  }

  @Test("An uplink that cannot be had gets one line, status 1, and leaves nothing")
  func refusals() throws {
    func refused(_ options: [String], naming words: [String]) throws {
      try Run(["switch", "--port", "{folder}/s"] + options, in: folder, prefix: prefix)
        .expectFailure(1, naming: words)
      #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path) == [])
    }
    try refused(["--uplink-tap", "none"], naming: ["'none'", "--create"])
    try refused(["--uplink-tap", "lo,vlan=5"], naming: ["'lo'", "another kind"])
    try refused(["--uplink-tap", "new", "--create", "--bridge", "nobr"], naming: ["'nobr'"])
    try refused(
      ["--uplink-tap", "new", "--create", "--port", "{folder}/no/such"],
      naming: ["{folder}/no/such".replacing("{folder}", with: folder.path)])
    try expectGone("new")
  }
}

extension Daemon {
  /// The counters that SIGUSR1 brings, of the devices of one name.
  fileprivate func lines(of device: String) throws -> [Counters] {
    _ = try counters()
    return try log.split(separator: "\n").filter {
      $0.hasPrefix("{\"device\":\"\(device)\"") && $0.hasSuffix("}")
    }
    .map { try JSONDecoder().decode(Counters.self, from: Data($0.utf8)) }
  }
}
