// TCP between a guest and the host: one guest in one QEMU with our cards and cards that QEMU has built in, each on a tap of its own,
// and iperf3 through them in turn. The main thread.

import Foundation
import GuestHarness

enum IperfSuite {
  private static let peer = "QEMU's virtio-net"

  static func run(_ pace: Pace, missing: inout [String]) throws -> [Row] {
    guard Machine.has("iperf3") else {
      missing.append("iperf: iperf3 is not here (apt-get install iperf3)")
      return []
    }
    guard geteuid() == 0 else {
      missing.append("iperf: it makes taps and was left out: run as root")
      return []
    }
    Progress.note("iperf: boots")
    let namespace = try NetworkNamespace()
    let pairs = [
      try Pair(namespace, "offloads on", slot: 4, []),
      try Pair(namespace, "offloads off", slot: 6, NetCard.withoutOffloads),
    ]
    var configuration = GuestConfiguration()
    configuration.namespace = namespace
    configuration.arguments = pairs.flatMap(\.arguments)
    let guest = try Guest.boot(configuration)
    let server = try namespace.start("iperf3", ["-s"])
    defer {
      guest.kill()
      server.kill()
      for pair in pairs { try? pair.ours.stop() }
    }
    let network = Networked(guest: guest)
    for pair in pairs { try pair.up(network) }
    return try pairs.flatMap { try $0.rows(network, pace) }
  }

  /// Our card and QEMU's with the same properties, in two neighbouring slots.
  private struct Pair {
    let name: String
    let slot: Int
    let properties: [String]
    let ours: NetCard
    let peer: BuiltInCard

    init(_ namespace: NetworkNamespace, _ name: String, slot: Int, _ properties: [String]) throws {
      self.name = name
      self.slot = slot
      self.properties = properties
      ours = try NetCard(namespace, number: slot)
      peer = try BuiltInCard(namespace, number: slot + 1)
    }

    var arguments: [String] {
      ours.arguments(slot: slot, properties) + peer.arguments(slot: slot + 1, properties)
    }

    func up(_ network: Networked) throws {
      try network.up(ours, slot: slot)
      try network.up(peer, slot: slot + 1)
    }

    func rows(_ network: Networked, _ pace: Pace) throws -> [Row] {
      let accelerator = try Environment.accelerator.get()
      return try [("guest sends", ""), ("guest receives", "-R")].map { way, option in
        Progress.note("iperf: \(way), \(name)")
        var rate = Measure(name: "rate", unit: "B/s", higherIsBetter: true, ours: [])
        for _ in 0..<pace.rounds {
          rate.ours.append(try network.iperf(ours, seconds: 1, option))
          rate.peer.append(try network.iperf(peer, seconds: 1, option))
        }
        return Row(
          suite: "iperf", name: "TCP, \(way), \(name) (\(accelerator))", peer: IperfSuite.peer,
          measures: [rate])
      }
    }
  }
}

/// A card that QEMU serves itself, on a tap.
private struct BuiltInCard: GuestCard {
  let namespace: NetworkNamespace
  let number: Int
  var hostAddress: String { "10.77.\(number).1" }
  var guestAddress: String { "10.77.\(number).2" }
  private var tap: String { "tap\(number)" }

  init(_ namespace: NetworkNamespace, number: Int) throws {
    self.namespace = namespace
    self.number = number
    try namespace.shell(
      "ip tuntap add dev \(tap) mode tap; ip link set \(tap) up; ip addr add \(hostAddress)/24 dev \(tap)")
  }

  /// Without MSI-X, as ours is.
  func arguments(slot: Int, _ properties: [String]) -> [String] {
    let words = ["netdev=net\(number)", "mac=52:54:00:77:00:0\(number)", "addr=0x\(slot)", "vectors=0"]
    return [
      "-netdev", "tap,id=net\(number),ifname=\(tap),script=no,downscript=no",
      "-device", "virtio-net-pci," + (words + properties).joined(separator: ","),
    ]
  }
}
