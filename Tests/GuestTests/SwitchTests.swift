// `vhost-swiftd switch` under a real guest: two of its cards, of different abilities, each in a network namespace of its own in the
// guest; and the host behind the uplink.

import Foundation
import GuestHarness
import Testing

extension InAGuest {
  @Suite("A switch", .enabled(if: !BackendProcess.standIn))
  @GuestThread
  struct Switched {
    @Test("Two cards and the host on a switch: ping, checksummed TCP each way, offloads passed or resolved")
    func cards() throws {
      let network = try SwitchedNetwork()
      var configuration = GuestConfiguration()
      // Its solicitations and reports go to everybody when they please, and would be counted below.
      configuration.kernelArguments = ["ipv6.disable=1"]
      configuration.arguments =
        network.card(1, slot: 4, [])
        + network.card(
          2, slot: 5,
          [
            "packed=on", "mrg_rxbuf=off", "csum=off", "gso=off", "host_tso4=off", "host_tso6=off",
            "host_ecn=off", "guest_csum=off", "guest_tso4=off", "guest_tso6=off", "guest_ecn=off",
          ])
      let guest = try Guest.boot(configuration)
      let networked = Networked(guest: guest)
      try guest.check(
        """
        full=$(basename /sys/bus/pci/devices/0000:00:04.0/virtio*/net/*)
        plain=$(basename /sys/bus/pci/devices/0000:00:05.0/virtio*/net/*)
        ip addr add 10.78.0.2/24 dev $full; ip link set $full up
        unshare -n sleep 100000 >/dev/null 2>&1 & echo $! >/tmp/other
        while [ "$(readlink /proc/self/ns/net)" = "$(readlink /proc/$(cat /tmp/other)/ns/net)" ]; do sleep 0.05; done
        ip link set $plain netns $(cat /tmp/other)
        nsenter -t $(cat /tmp/other) -n sh -c "ip addr add 10.78.0.3/24 dev $plain; ip link set $plain up"
        timeout 60 sh -c 'until ping -c 1 -W 1 10.78.0.3 >/dev/null; do :; done'
        """, within: 90)
      try networked.ping(network)
      // Whole segments to the plain card are cut; nobody else hears of them.
      let before = try network.process.counter("delivered", of: "uplink")
      try transfer(guest, from: "", to: "nsenter -t $(cat /tmp/other) -n", address: "10.78.0.3")
      #expect(try network.process.counter("framesCut", of: "port1") > 0)
      #expect(try network.process.counter("bytes", of: "port0") > 1 << 20)
      try transfer(guest, from: "nsenter -t $(cat /tmp/other) -n", to: "", address: "10.78.0.2")
      // ARP asks again now and then; nothing else may have gone out.
      #expect(try network.process.counter("delivered", of: "uplink") - before < 5)

      // To and from the host whole segments pass.
      let (frames, bytes) = try (counter(network, "frames"), counter(network, "bytes"))
      try networked.transfer(network, mebibytes: 2)
      let sent = try (counter(network, "frames") - frames, counter(network, "bytes") - bytes)
      #expect(sent.1 > 2 << 20 && sent.1 > 3000 * sent.0 / 2, "\(sent.1) bytes in \(sent.0) frames")
      for device in ["port0", "port1", "uplink"] {
        for name in ["badHeader", "malformed", "faults", "unresolvable", "tooSmall", "spoofed"] {
          #expect(try network.process.counter(name, of: device) == 0, "\(name) of \(device)")
        }
      }
      try guest.powerOff()
      #expect(network.process.terminate() == .status(0), "\(network.process.log)")
    }

    private func counter(_ network: SwitchedNetwork, _ name: String) throws -> Int {
      try network.process.counter(name, of: "port0")
    }

    /// Moves 1 MiB from one namespace of the guest to another and compares the checksums.
    private func transfer(_ guest: Guest, from: String, to: String, address: String) throws {
      try guest.check(
        """
        head -c 1048576 /dev/urandom >/tmp/out; [ -p /tmp/quiet ] || mkfifo /tmp/quiet
        \(to) nc -l -p 7000 <>/tmp/quiet >/tmp/in & receiver=$!
        timeout 30 sh -c 'until \(from) nc \(address) 7000 </tmp/out 2>/dev/null; do sleep 0.1; done'
        wait $receiver
        cmp /tmp/out /tmp/in
        """, within: 90)
    }
  }
}

/// A switch of two ports and an uplink on a tap in a namespace of the host's.
final class SwitchedNetwork: HostSide {
  let namespace: NetworkNamespace
  let hostAddress = "10.78.0.1"
  let process: ChildProcess
  private let folder: TemporaryFolder

  init() throws {
    namespace = try NetworkNamespace()
    folder = try TemporaryFolder()
    let folder = folder
    try namespace.shell(
      "ip tuntap add dev up0 mode tap; ip addr add \(hostAddress)/24 dev up0; ip link set up0 up")
    process = try namespace.start(
      Environment.program("vhost-swiftd"),
      ["switch", "--port", folder.file("1"), "--port", folder.file("2"), "--uplink-tap", "up0"])
    try process.wait(until: "its sockets are there", within: 60) {
      FileManager.default.fileExists(atPath: folder.file("1"))
        && FileManager.default.fileExists(atPath: folder.file("2"))
    }
  }

  /// QEMU's side of a port; `device` is added to the card's properties.
  func card(_ number: Int, slot: Int, _ device: [String]) -> [String] {
    // vectors=0: QEMU 7.2 without KVM crashes where a vhost-user network card has MSI-X.
    let properties = ["netdev=net\(number)", "mac=52:54:00:78:00:0\(number)", "addr=0x\(slot)", "vectors=0"]
    return [
      "-chardev", "socket,id=net\(number)c,path=\(folder.file("\(number)")),reconnect=1",
      "-netdev", "vhost-user,id=net\(number),chardev=net\(number)c",
      "-device", "virtio-net-pci," + (properties + device).joined(separator: ","),
    ]
  }
}
