// Against the disk that QEMU has built in: one guest in one QEMU with both disks, on files of the same memory file system, and one
// program in the guest that takes them in turn. The main thread.

import Foundation
import GuestHarness

enum GuestSuite {
  private static let peer = "QEMU's virtio-blk"
  /// Ours and the peer's on storage, and the same two that keep nothing: with those, all that is left of a request is its way.
  private static let slots = (disks: (ours: 4, peer: 5), null: (ours: 6, peer: 7))

  private struct Load {
    let name: String
    let arguments: String
    var target: Double?
    var isNull = false
  }

  static func run(_ pace: Pace, quick: Bool, folder: String) throws -> [Row] {
    Progress.note("guest: boots")
    let bytes = 256 << 20
    let files = try (0..<2).map { _ in try StorageFile(in: folder, bytes: bytes) }
    defer { withExtendedLifetime(files) {} }
    let ours = try BackendProcess.disk(files[0].path)
    let null = try BackendProcess.vhostSwiftd(["blk", "--socket-path", "{socket}", "--null-size", "\(bytes)"])
    var configuration = GuestConfiguration()
    configuration.attachDisk(ours, slot: slots.disks.ours)
    configuration.attachDisk(null, slot: slots.null.ours)
    configuration.arguments =
      ["-object", "iothread,id=io"]
      + builtIn("built-in", "driver=file,filename=\(files[1].path),aio=io_uring", slots.disks.peer)
      + builtIn("null", "driver=null-co,size=\(bytes),read-zeroes=off", slots.null.peer)
    let image = try TemporaryFolder()
    configuration.initramfs = image.file("initramfs")
    try GuestImage.adding([try Environment.program("guest-load")], writtenTo: image.file("initramfs"))
    let guest = try Guest.boot(configuration)
    defer {
      guest.kill()
      try? ours.stop()
      try? null.stop()
    }
    func names(_ slots: (ours: Int, peer: Int)) throws -> (ours: String, peer: String) {
      (try name(slots.ours), try name(slots.peer))
    }
    func name(_ slot: Int) throws -> String {
      "/dev/" + (try guest.check("basename /sys/bus/pci/devices/0000:00:0\(slot).0/virtio*/block/*"))
    }
    let (disks, nullDisks) = (try names(slots.disks), try names(slots.null))
    let accelerator = try Environment.accelerator.get()
    return try loads(quick).map { load in
      Progress.note("guest: \(load.name)")
      var measure = Measure(
        name: "rate", unit: "requests/s", higherIsBetter: true, ours: [],
        target: load.target.map { .ratio($0) })
      for _ in 0..<pace.rounds {
        let pair = load.isNull ? nullDisks : disks
        measure.ours.append(try rate(guest, pair.ours, load, quick))
        measure.peer.append(try rate(guest, pair.peer, load, quick))
      }
      return Row(
        suite: "guest", name: "\(load.name), one guest (\(accelerator))", peer: peer, measures: [measure])
    }
  }

  private static func loads(_ quick: Bool) -> [Load] {
    let few = [
      Load(name: "4 KiB random read, depth 1", arguments: "read 4096 1", target: 1.0),
      Load(name: "4 KiB random read, depth 32", arguments: "read 4096 32", target: 1.5),
      Load(name: "128 KiB sequential read, depth 8", arguments: "sequential 131072 8", target: 1.0),
    ]
    if quick { return few }
    return few + [
      Load(name: "4 KiB random write, depth 32", arguments: "write 4096 32"),
      Load(name: "4 KiB random read, depth 128", arguments: "read 4096 128"),
      Load(name: "4 KiB random read, depth 1, null disks", arguments: "read 4096 1", isNull: true),
      Load(name: "4 KiB random read, depth 32, null disks", arguments: "read 4096 32", isNull: true),
    ]
  }

  /// A disk of QEMU's own on a block node of that name.
  private static func builtIn(_ name: String, _ node: String, _ slot: Int) -> [String] {
    [
      "-blockdev", "node-name=\(name),\(node)", "-device",
      "virtio-blk-pci,drive=\(name),iothread=io,num-queues=1,queue-size=128,addr=0x\(slot)",
    ]
  }

  private static func rate(_ guest: Guest, _ disk: String, _ load: Load, _ quick: Bool) throws -> Double {
    let answer = try guest.check("guest-load \(disk) \(load.arguments) \(quick ? 500 : 1000)", within: 60)
    guard let rate = Double(answer) else { throw HarnessError("guest-load printed `\(answer)`") }
    return rate
  }
}
