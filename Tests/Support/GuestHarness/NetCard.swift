// Network cards for a guest, each on a tap of its own in a network namespace that the caller made. Used on any thread, one call at
// a time.

import Foundation

/// Where a guest finds the host: an address in a network namespace.
public protocol HostSide {
  var namespace: NetworkNamespace { get }
  var hostAddress: String { get }
}

/// What a guest has one interface for.
public protocol GuestCard: HostSide {
  var guestAddress: String { get }
}

/// A tap, the process that serves it, and the card that a guest sees.
public final class NetCard: GuestCard {
  public let namespace: NetworkNamespace
  public let tap: String
  /// The bridge that the tap is a port of, with the host's address; nil: the tap has the address itself.
  private let bridge: String?
  /// The addresses of both sides.
  public let hostAddress: String
  public let guestAddress: String
  public let queues: Int
  private let folder: TemporaryFolder
  private let options: [String]
  public private(set) var process: ChildProcess
  public let number: Int
  public var socket: String { folder.file("s") }

  /// `side`: one of several cards of this number, each of which is the card for a guest that moves between them: their taps
  /// are ports of one bridge.
  public init(
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
  public func bridgeKnowsGuest() throws -> Bool {
    try namespace.run("bridge", ["fdb", "show", "br", bridge ?? ""]).split(separator: "\n").contains {
      $0.hasPrefix("\(guestMAC) ") && $0.contains(" \(tap) ")
    }
  }

  public var guestMAC: String { "52:54:00:77:00:0\(number)" }

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

  /// Properties of a card that leaves checksums and segments to the guest.
  public static let withoutOffloads = [
    "csum=off", "gso=off", "host_tso4=off", "host_tso6=off", "host_ecn=off", "host_ufo=off",
    "guest_csum=off", "guest_tso4=off", "guest_tso6=off", "guest_ecn=off", "guest_ufo=off",
  ]

  /// QEMU's side of it; `device` is added to the card's properties.
  public func arguments(slot: Int, _ device: [String] = []) -> [String] {
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
  public func replace() throws {
    process.kill()
    process = try Self.serve(namespace, tap, queues, folder, options)
  }

  /// Ends the process as an administrator does.
  public func stop() throws {
    guard process.terminate() == .status(0) else {
      throw HarnessError("vhost-swiftd did not end well", logs: [("vhost-swiftd", process.log)])
    }
  }
}
