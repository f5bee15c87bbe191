// Network cards for a guest, each on a tap of its own in the test's network namespace. Used on GuestThread.

import Foundation
import GuestHarness

/// Where a guest finds the host: an address in the test's network namespace.
protocol HostSide {
  var namespace: NetworkNamespace { get }
  var hostAddress: String { get }
}

/// A tap, the process that serves it, and the card that a guest sees.
final class NetCard: HostSide {
  let namespace: NetworkNamespace
  let tap: String
  /// The bridge that the tap is a port of, with the host's address; nil: the tap has the address itself.
  private let bridge: String?
  /// The addresses of both sides.
  let hostAddress: String
  let guestAddress: String
  let queues: Int
  private let folder: TemporaryFolder
  private let options: [String]
  private(set) var process: ChildProcess
  let number: Int
  var socket: String { folder.file("s") }

  /// `side`: one of several cards of this number, each of which is the card for a guest that moves between them: their taps
  /// are ports of one bridge.
  init(
    _ namespace: NetworkNamespace, number: Int, queues: Int = 1, mtu: Int = 1500, side: Int? = nil,
    options: [String] = []
  ) throws {
    self.namespace = namespace
    self.number = number
    self.queues = queues
    tap = "tap\(number)" + (side.map { "s\($0)" } ?? "")
    bridge = side == nil ? nil : "bridge\(number)"
    hostAddress = "10.77.\(number).1"
    guestAddress = "10.77.\(number).2"
    folder = try TemporaryFolder()
    self.options = options
    try namespace.shell(
      """
      ip tuntap add dev \(tap) mode tap \(queues > 1 ? "multi_queue" : "")
      ip link set \(tap) mtu \(mtu) up
      \(Self.join(tap, bridge, hostAddress))
      """)
    process = try Self.serve(namespace, tap, queues, folder, options)
  }

  /// Gives the tap its address, or makes it a port of the bridge, which the first one makes.
  private static func join(_ tap: String, _ bridge: String?, _ address: String) -> String {
    guard let bridge else { return "ip addr add \(address)/24 dev \(tap)" }
    return """
      ip link show \(bridge) >/dev/null 2>&1 || {
        ip link add \(bridge) type bridge forward_delay 0
        ip link set \(bridge) up
        ip addr add \(address)/24 dev \(bridge)
      }
      ip link set \(tap) master \(bridge)
      """
  }

  /// Whether the bridge has the guest behind this card's tap.
  func bridgeKnowsGuest() throws -> Bool {
    try namespace.run("bridge", ["fdb", "show", "br", bridge ?? ""]).split(separator: "\n").contains {
      $0.hasPrefix("\(guestMAC) ") && $0.contains(" \(tap) ")
    }
  }

  var guestMAC: String { "52:54:00:77:00:0\(number)" }

  private static func serve(
    _ namespace: NetworkNamespace, _ tap: String, _ queues: Int, _ folder: TemporaryFolder,
    _ options: [String]
  ) throws -> ChildProcess {
    let process = try namespace.start(
      Environment.program("vhost-swiftd"),
      ["net", "--socket-path", folder.file("s"), "--tap", tap, "--queue-pairs", "\(queues)"] + options)
    try process.wait(until: "its socket is there", within: 60) {
      FileManager.default.fileExists(atPath: folder.file("s"))
    }
    return process
  }

  /// QEMU's side of it; `device` is added to the card's properties.
  func arguments(slot: Int, _ device: [String] = []) -> [String] {
    // vectors=0: QEMU 7.2 without KVM crashes where a vhost-user network card has MSI-X.
    let properties = [
      "netdev=net\(number)", "mac=\(guestMAC)", "addr=0x\(String(slot, radix: 16))",
      "vectors=0",
      "id=card\(number)",
    ]
    return [
      "-chardev", "socket,id=net\(number)c,path=\(socket),reconnect=1",
      "-netdev", "vhost-user,id=net\(number),chardev=net\(number)c,queues=\(queues)",
      "-device",
      "virtio-net-pci," + (properties + (queues > 1 ? ["mq=on"] : []) + device).joined(separator: ","),
    ]
  }

  /// Kills the process and starts another one in its place.
  func replace() throws {
    process.kill()
    process = try Self.serve(namespace, tap, queues, folder, options)
  }

  /// Ends the process as an administrator does.
  func stop() throws {
    guard process.terminate() == .status(0) else {
      throw HarnessError("vhost-swiftd did not end well", logs: [("vhost-swiftd", process.log)])
    }
  }

  /// A counter's sum over the queues, or one queue's.
  func counter(_ name: String, queue: Int? = nil) throws -> Int { try process.counter(name, queue: queue) }
}

/// A guest with cards.
@GuestThread
struct Networked {
  let guest: Guest

  /// Takes a card's interface in the guest up, under its address.
  func up(_ card: NetCard, slot: Int, mtu: Int = 1500) throws -> String {
    let path = "/sys/bus/pci/devices/0000:00:0\(slot).0/virtio*/net"
    let name = try guest.check("basename \(path)/*")
    try guest.check(
      "ip link set \(name) mtu \(mtu) up && ip addr add \(card.guestAddress)/24 dev \(name)")
    try ping(card)
    return name
  }

  /// Waits until the host answers the guest.
  func ping(_ card: some HostSide, within seconds: Int = 60) throws {
    try guest.check(
      "timeout \(seconds) sh -c 'until ping -c 1 -W 1 \(card.hostAddress) >/dev/null; do :; done'",
      within: Double(seconds + 30))
  }

  /// Moves so many bytes each way over TCP and compares their checksums. Each side's `nc` ends when the other one hangs up,
  /// whatever is still under way: the side that only receives keeps its input, a pipe, open.
  func transfer(_ card: some HostSide, mebibytes: Int = 4) throws {
    let bytes = mebibytes << 20
    let folder = try TemporaryFolder()
    let silence = folder.file("silence")
    let script = "mkfifo \(silence); busybox nc -l -p 7000 <>\(silence) >\(folder.file("in"))"
    let server = try card.namespace.start("sh", ["-c", script])
    try waitListening(card, 7000, server)
    let sent = try guest.check(
      "head -c \(bytes) /dev/urandom >/tmp/out; nc \(card.hostAddress) 7000 </tmp/out; sha256sum </tmp/out",
      within: 120)
    try server.waitExit(within: 60)
    let arrived = try Tool.run("sha256sum", [folder.file("in")])
    try requireSame(sent, arrived, "guest to host")
    let back = try card.namespace.start("sh", ["-c", "busybox nc -l -p 7001 <\(folder.file("in"))"])
    try waitListening(card, 7001, back)
    let received = try guest.check(
      "[ -p /tmp/silence ] || mkfifo /tmp/silence; nc \(card.hostAddress) 7001 <>/tmp/silence | sha256sum",
      within: 120)
    try requireSame(received, arrived, "host to guest")
  }

  private func waitListening(_ card: some HostSide, _ port: Int, _ server: ChildProcess) throws {
    let place = String(port, radix: 16, uppercase: true)
    try server.wait(until: "it listens", within: 60) {
      let table =
        try String(contentsOfFile: "/proc/\(server.pid)/net/tcp6", encoding: .utf8)
        + String(contentsOfFile: "/proc/\(server.pid)/net/tcp", encoding: .utf8)
      return table.split(separator: "\n").contains { $0.contains(":\(place) ") && $0.contains(" 0A ") }
    }
  }

  private func requireSame(_ one: String, _ other: String, _ what: String) throws {
    guard one.prefix(64) == other.prefix(64), one.count >= 64 else {
      throw HarnessError("\(what): other bytes arrived than were sent")
    }
  }

  /// Runs iperf3 in the guest against the server on the host; bytes that the receiver counted.
  func iperf(_ card: some HostSide, seconds: Int = 2, _ options: String = "") throws -> Double {
    let output = try guest.check(
      "iperf3 -J -c \(card.hostAddress) -t \(seconds) \(options)", within: Double(seconds + 90))
    let object = try JSONSerialization.jsonObject(with: Data(output.utf8)) as? [String: Any]
    let end = object?["end"] as? [String: Any]
    let sum = end?["sum_received"] as? [String: Any] ?? end?["sum"] as? [String: Any]
    return sum?["bytes"] as? Double ?? 0
  }
}
