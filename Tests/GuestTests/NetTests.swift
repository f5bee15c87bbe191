// The network of a real guest: taps in a network namespace of the test's own, iperf3 and checksummed transfers through
// them.

import Foundation
import GuestHarness
import Testing

extension InAGuest {
  @Suite("A network", .enabled(if: !BackendProcess.standIn))
  @GuestThread
  struct Network {
    @Test(
      "Offloads, several queues, plain cards, large packets, packed rings; ethtool changes them under way")
    func cards() throws {
      let namespace = try NetworkNamespace()
      let full = try NetCard(
        namespace, number: 1, queues: 2, options: ["--threads", "2", "--tap-io", "ring"])
      let plain = try NetCard(
        namespace, number: 2, options: ["--mac", "52:54:00:77:00:02", "--tap-io", "direct"])
      let jumbo = try NetCard(namespace, number: 3, mtu: 9000)
      var configuration = GuestConfiguration()
      configuration.arguments =
        full.arguments(slot: 4)
        + plain.arguments(slot: 5, ["mrg_rxbuf=off"] + NetCard.withoutOffloads)
        + jumbo.arguments(slot: 6, ["packed=on", "host_mtu=9000", "mrg_rxbuf=off"])
      let guest = try Guest.boot(configuration)
      let network = Networked(guest: guest)
      let server = try namespace.start("iperf3", ["-s"])
      let name = try network.up(full, slot: 4)
      try network.up(plain, slot: 5)
      try network.up(jumbo, slot: 6, mtu: 9000)

      try everyWay(network, full)
      try uncut(network, full)
      try severalQueues(network, full, name)
      try guest.check("ethtool -K \(name) tx off sg off tso off gso off")
      try network.transfer(full, mebibytes: 2)
      try guest.check("ethtool -K \(name) tx on sg on tso on gso on")
      try network.transfer(full, mebibytes: 2)

      try network.transfer(plain, mebibytes: 2)
      #expect(try plain.counter("bytes") <= 1518 * plain.counter("frames"))
      // A frame from another address than the card's goes nowhere.
      let other = try guest.check("basename /sys/bus/pci/devices/0000:00:05.0/virtio*/net/*")
      #expect(try plain.counter("spoofed") == 0)
      try guest.check("ip link set \(other) down; ip link set \(other) address 52:54:00:99:99:99 up")
      #expect(try guest.run("ping -c 1 -W 1 \(plain.hostAddress)").status != 0)
      #expect(try plain.counter("spoofed") > 0)

      #expect(try network.iperf(jumbo, seconds: 1) > 0)
      try guest.check("ping -c 1 -W 20 -s 8900 \(jumbo.hostAddress)")
      try network.transfer(jumbo, mebibytes: 2)
      for card in [full, plain, jumbo] {
        for name in ["badHeader", "refused", "malformed", "faults"] {
          #expect(try card.counter(name) == 0, "\(name) of \(card.tap)")
        }
      }
      try guest.powerOff()
      for card in [full, plain, jumbo] { try card.stop() }
      server.kill()
    }

    /// TCP and UDP, both ways.
    private func everyWay(_ network: Networked, _ card: NetCard) throws {
      for options in ["", "-R", "-u -b 20M", "-u -b 20M -R"] {
        #expect(try network.iperf(card, seconds: 1, options) > 100_000, "iperf3 \(options)")
      }
    }

    /// The guest's segments go out uncut, and ours come in so: frames of a stream are larger than any that a wire takes.
    private func uncut(_ network: Networked, _ card: NetCard) throws {
      for (direction, option) in [(1, ""), (0, "-R")] {
        func carried(_ name: String) throws -> Int {
          try [0, 2].reduce(0) { try $0 + card.counter(name, queue: $1 + direction) }
        }
        let before = (bytes: try carried("bytes"), frames: try carried("frames"))
        #expect(try network.iperf(card, seconds: 1, option) > 100_000)
        let (bytes, frames) = try (carried("bytes") - before.bytes, carried("frames") - before.frames)
        #expect(bytes > 3000 * frames, "\(bytes) bytes in \(frames) frames, iperf3 \(option)")
        print("frames of iperf3 \(option): \(bytes / max(1, frames)) bytes")
      }
      try network.transfer(card)
    }

    /// One queue pair, then two again; with two, both send.
    private func severalQueues(_ network: Networked, _ card: NetCard, _ name: String) throws {
      for count in [1, 2] {
        try network.guest.check("ethtool -L \(name) combined \(count)")
        try network.ping(card)
        #expect(try network.iperf(card, seconds: 1, "-P 4") > 100_000)
        try network.transfer(card, mebibytes: 1)
      }
      // Flows from both processors.
      try network.guest.check(
        "for cpu in 0 1; do taskset $((cpu + 1)) ping -c 5 -i 0.1 \(card.hostAddress) >/dev/null; done")
      #expect(try card.counter("frames", queue: 1) > 0)
      #expect(try card.counter("frames", queue: 3) > 0)
    }

    @Test("NT19 traffic goes on after SIGKILL under iperf3, and after the driver was unbound and bound")
    func restarts() throws {
      let namespace = try NetworkNamespace()
      let card = try NetCard(namespace, number: 1, options: ["--tap-io", "ring"])
      var configuration = GuestConfiguration()
      configuration.arguments = card.arguments(slot: 4)
      let guest = try Guest.boot(configuration)
      let network = Networked(guest: guest)
      let server = try namespace.start("iperf3", ["-s"])
      var name = try network.up(card, slot: 4)
      for _ in 0..<2 {
        try guest.check("iperf3 -c \(card.hostAddress) -t 30 >/dev/null 2>&1 &")
        let before = try card.counter("frames")
        try card.process.wait(until: "iperf3 sends", within: 60) { try card.counter("frames") > before + 100 }
        try card.replace()
        // QEMU looks for the socket once a second; what was under way is lost, and TCP sends it again.
        try network.ping(card)
        let after = try card.counter("frames")
        try card.process.wait(until: "iperf3 goes on", within: 60) {
          try card.counter("frames") > after + 100
        }
        try guest.check("kill $(pidof iperf3); while pidof iperf3; do sleep 0.1; done")
      }
      try network.transfer(card, mebibytes: 2)
      for _ in 0..<2 {
        try guest.check("echo 0000:00:04.0 >/sys/bus/pci/drivers/virtio-pci/unbind")
        try guest.check("echo 0000:00:04.0 >/sys/bus/pci/drivers/virtio-pci/bind")
        name = try network.up(card, slot: 4)
      }
      #expect(!name.isEmpty)
      try network.transfer(card, mebibytes: 2)
      // The tap goes away for a while, as an administrator's mistake: nothing ends.
      try namespace.shell("ip link set \(card.tap) down")
      #expect(try guest.run("ping -c 1 -W 1 \(card.hostAddress)").status != 0)
      try namespace.shell("ip link set \(card.tap) up")
      try network.ping(card)
      try guest.powerOff()
      try card.stop()
      server.kill()
    }
  }
}
