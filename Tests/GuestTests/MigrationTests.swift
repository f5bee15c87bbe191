// A guest that moves between two QEMUs while it works: its disks' images are the same files on both sides, its back-ends
// are not the same processes.

import Foundation
import GuestHarness
import Testing

extension InAGuest {
  @Suite("A guest that moves", .enabled(if: !BackendProcess.standIn))
  @GuestThread
  struct Move {
    // Long runs only: QEMU before 9.0 loses writes of a guest that it emulates and moves (docs/COMPATIBILITY.md); once in some
    // eighty moves the guest's kernel panicked.
    @Test(
      "LC04: two disks, split and packed, verified through three moves; one process killed on the way; the lock goes along",
      .enduring)
    func disks() throws {
      let images = [try DiskImage(mebibytes: 32), try DiskImage(mebibytes: 32)]
      var here = try MovingDisks(images, incoming: false)
      var guest = try Guest.boot(here.configuration)
      let disks = try [VerifiedDisk(guest, slot: 4), VerifiedDisk(guest, slot: 5)]
      for round in 0..<Environment.rounds(3) {
        if round == 1 {
          // What it had taken is finished by the one that comes after it, and that one moves.
          try here.backends[0].replace(killing: true)
        }
        for disk in disks { try disk.waitWrites(100, in: guest) }
        try requireLocks(of: here, [true, true])
        let there = try MovingDisks(images, incoming: true)
        try requireLocks(of: there, [false, false])
        let (moved, migration) = try guest.migrate(to: there.configuration) { _ in
          try requireLocks(of: here, [false, false])
          try requireLocks(of: there, [true, true])
        }
        print("move \(round): \(migration.downtime) ms down")
        #expect(migration.downtime < 1000)
        guest = moved
        try here.stop()
        here = there
      }
      for disk in disks { try disk.waitWrites(100, in: guest) }
      for (disk, image) in zip(disks, images) {
        #expect(try disk.finish(in: guest) > 0)
        try guest.check("sync; blockdev --flushbufs /dev/\(disk.name)")
        #expect(
          try guest.check("sha256sum /dev/\(disk.name) | cut -c 1-64", within: 240) == image.checksum())
      }
      #expect(!guest.kernelLog.contains("I/O error"), "\(guest.kernelLog)")
      try guest.powerOff()
      try here.stop()
    }

    /// QEMU says that the guest runs before it has started its devices: the locks are there soon.
    @Test(
      "By postcopy: the disks work on the other side while most of the memory is still on this one",
      .enabled(if: MovingDisks.canTakeIn, "this machine lets nobody have a userfaultfd"))
    func postcopy() throws {
      let images = [try DiskImage(mebibytes: 32), try DiskImage(mebibytes: 32)]
      let here = try MovingDisks(images, incoming: false)
      let guest = try Guest.boot(here.configuration)
      let disks = try [VerifiedDisk(guest, slot: 4), VerifiedDisk(guest, slot: 5)]
      for disk in disks { try disk.waitWrites(100, in: guest) }
      let there = try MovingDisks(images, incoming: true, options: ["--postcopy"])
      let (moved, migration) = try guest.migrate(to: there.configuration, .postcopy)
      print("by postcopy: \(migration.downtime) ms down, \(migration.requestedPages) pages asked for")
      #expect(migration.requestedPages > 0)
      for disk in disks { try disk.waitWrites(100, in: moved) }
      for disk in disks { #expect(try disk.finish(in: moved) > 0) }
      #expect(!moved.kernelLog.contains("I/O error"), "\(moved.kernelLog)")
      try moved.powerOff()
      try here.stop()
      try there.stop()
    }

    private func requireLocks(of side: MovingDisks, _ expected: [Bool]) throws {
      try side.backends[0].process.wait(until: "the locks are held: \(expected)", within: 20) {
        try side.holdLocks() == expected
      }
    }

    @Test(
      "Two cards through two moves: the guest's announcement and our RARP turn the bridges, a flow goes on",
      .enduring)
    func cards() throws {
      let namespace = try NetworkNamespace()
      var here = try MovingCards(namespace, side: 0)
      var guest = try Guest.boot(here.configuration)
      for (index, card) in here.cards.enumerated() {
        try Networked(guest: guest).up(card, slot: 4 + index)
      }
      let server = try namespace.start("iperf3", ["-s"])
      try guest.check("iperf3 -c \(here.cards[0].hostAddress) -t 600 -b 4M >/tmp/flow 2>&1 &")
      try here.waitFlow()
      for side in 1...2 {
        let there = try MovingCards(namespace, side: side)
        let watchers = try here.watch()
        let (moved, migration) = try guest.migrate(to: there.configuration)
        print("move to \(side): \(migration.downtime) ms down")
        #expect(migration.downtime < 1000)
        guest = moved
        try announced(there, watchers)
        try there.waitFlow()
        try guest.check("pidof iperf3")
        try there.cards.forEach { try Networked(guest: guest).ping($0) }
        try here.cards.forEach { try $0.stop() }
        here = there
      }
      try guest.check("kill $(pidof iperf3); while pidof iperf3; do sleep 0.1; done")
      try here.cards.forEach { try Networked(guest: guest).transfer($0, mebibytes: 1) }
      try guest.powerOff()
      try here.cards.forEach { try $0.stop() }
      server.kill()
    }

    /// Waits until the first driver has told its network where it is, we the second's, and both bridges have taken it in.
    private func announced(_ side: MovingCards, _ watchers: [ChildProcess]) throws {
      for (index, card) in side.cards.enumerated() {
        let watcher = watchers[index]
        let address = card.guestAddress
        try watcher.wait(until: "the move is announced", within: 60) {
          watcher.log.split(separator: "\n").filter { $0.contains(card.guestMAC) }.contains {
            index == 1
              ? $0.contains("Reverse Request")
              : $0.contains("Announcement \(address)")
                || $0.contains("who-has \(address)") && $0.contains("tell \(address)")
          }
        }
        watcher.kill()
        try card.process.wait(until: "the bridge has the guest there", within: 60) {
          try card.bridgeKnowsGuest()
        }
      }
    }
  }
}

/// Two cards as one side of a move serves them: the first guest driver announces itself, the second cannot.
private struct MovingCards {
  let cards: [NetCard]
  let configuration: GuestConfiguration
  private let namespace: NetworkNamespace

  init(_ namespace: NetworkNamespace, side: Int) throws {
    self.namespace = namespace
    cards = try [1, 2].map { try NetCard(namespace, number: $0, side: side) }
    var configuration = GuestConfiguration()
    configuration.arguments =
      cards[0].arguments(slot: 4) + cards[1].arguments(slot: 5, ["guest_announce=off"])
    self.configuration = configuration
  }

  /// Programs that print what tells a network where a guest is, one for each bridge; they see frames by now.
  func watch() throws -> [ChildProcess] {
    try cards.map { card in
      let watcher = try namespace.start(
        "tcpdump", ["-l", "-n", "-e", "-i", "bridge\(card.number)", "arp or rarp"])
      try watcher.wait(until: "it listens", within: 60) { watcher.log.contains("listening on") }
      return watcher
    }
  }

  /// Waits until the flow of the first card goes on here.
  func waitFlow() throws {
    let before = try cards[0].counter("frames")
    try cards[0].process.wait(until: "the flow goes on", within: 60) {
      try cards[0].counter("frames") > before + 20
    }
  }
}

/// Two disks as one side of a move serves them: the first with a split ring, the second with a packed one.
private struct MovingDisks {
  let backends: [BackendProcess]
  let configuration: GuestConfiguration

  /// Whether this process, and so QEMU and our programs, may have the kernel tell them of faults.
  static let canTakeIn: Bool = {
    if access("/dev/userfaultfd", R_OK | W_OK) == 0 { return true }
    return (try? String(contentsOfFile: "/proc/sys/vm/unprivileged_userfaultfd", encoding: .utf8)) == "1\n"
  }()

  init(_ images: [DiskImage], incoming: Bool, options: [String] = []) throws {
    backends = try images.map {
      try BackendProcess.disk($0.path, queues: 2, options: options + (incoming ? ["--incoming"] : []))
    }
    var configuration = GuestConfiguration()
    for (index, backend) in backends.enumerated() {
      configuration.attachDisk(
        backend, slot: 4 + index, queues: 2, reconnects: true,
        options: ["packed=\(index == 1 ? "on" : "off")"])
    }
    self.configuration = configuration
  }

  func stop() throws { for backend in backends { try backend.stop() } }

  /// Whether each process holds its image's lock, as the kernel tells of its descriptors.
  func holdLocks() throws -> [Bool] {
    try backends.map { backend in
      let folder = "/proc/\(backend.process.pid)/fdinfo"
      return try FileManager.default.contentsOfDirectory(atPath: folder).contains {
        (try? String(contentsOfFile: "\(folder)/\($0)", encoding: .utf8))?.contains("OFDLCK") ?? false
      }
    }
  }
}
