// What passes between a guest and the host through a card. Used on any thread, one call at a time.

import Foundation

/// A guest with cards.
public struct Networked {
  public let guest: Guest

  public init(guest: Guest) { self.guest = guest }

  /// Takes a card's interface in the guest up, under its address.
  @discardableResult
  public func up(_ card: some GuestCard, slot: Int, mtu: Int = 1500) throws -> String {
    let path = "/sys/bus/pci/devices/0000:00:0\(slot).0/virtio*/net"
    let name = try guest.check("basename \(path)/*")
    try guest.check(
      "ip link set \(name) mtu \(mtu) up && ip addr add \(card.guestAddress)/24 dev \(name)")
    try ping(card)
    return name
  }

  /// Waits until the host answers the guest.
  public func ping(_ card: some HostSide, within seconds: Int = 60) throws {
    try guest.check(
      "timeout \(seconds) sh -c 'until ping -c 1 -W 1 \(card.hostAddress) >/dev/null; do :; done'",
      within: Double(seconds + 30))
  }

  /// Moves so many bytes each way over TCP and compares their checksums. Each side's `nc` ends when the other one hangs up,
  /// whatever is still under way: the side that only receives keeps its input, a pipe, open.
  public func transfer(_ card: some HostSide, mebibytes: Int = 4) throws {
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
  public func iperf(_ card: some HostSide, seconds: Int = 2, _ options: String = "") throws -> Double {
    let output = try guest.check(
      "iperf3 -J -c \(card.hostAddress) -t \(seconds) \(options)", within: Double(seconds + 90))
    let object = try JSONSerialization.jsonObject(with: Data(output.utf8)) as? [String: Any]
    let end = object?["end"] as? [String: Any]
    let sum = end?["sum_received"] as? [String: Any] ?? end?["sum"] as? [String: Any]
    return sum?["bytes"] as? Double ?? 0
  }
}
