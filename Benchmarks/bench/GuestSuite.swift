// Against the disk that QEMU has built in: one guest in one QEMU with both disks, on files of the same memory file system, and one
// program in the guest that takes them in turn. The main thread.

import Foundation
import GuestHarness

enum GuestSuite {
  private static let peer = "QEMU's virtio-blk"
  private static let oursSlot = 4
  private static let peerSlot = 5

  private struct Load {
    let name: String
    let arguments: String
    let target: Double?
  }

  static func run(_ pace: Pace, quick: Bool, folder: String) throws -> [Row] {
    Progress.note("guest: boots")
    let bytes = 256 << 20
    let files = try (0..<2).map { _ in try StorageFile(in: folder, bytes: bytes) }
    defer { withExtendedLifetime(files) {} }
    let ours = try BackendProcess.disk(files[0].path)
    var configuration = GuestConfiguration()
    configuration.attachDisk(ours, slot: oursSlot)
    configuration.arguments = [
      "-object", "iothread,id=io", "-blockdev",
      "driver=file,node-name=built-in,filename=\(files[1].path),aio=io_uring", "-device",
      "virtio-blk-pci,drive=built-in,iothread=io,num-queues=1,queue-size=128,addr=0x\(peerSlot)",
    ]
    let image = try TemporaryFolder()
    configuration.initramfs = image.file("initramfs")
    try GuestImage.adding([try Environment.program("guest-load")], writtenTo: image.file("initramfs"))
    let guest = try Guest.boot(configuration)
    defer {
      guest.kill()
      try? ours.stop()
    }
    let disks = try [oursSlot, peerSlot].map { slot in
      "/dev/" + (try guest.check("basename /sys/bus/pci/devices/0000:00:0\(slot).0/virtio*/block/*"))
    }
    let accelerator = try Environment.accelerator.get()
    return try loads(quick).map { load in
      Progress.note("guest: \(load.name)")
      var measure = Measure(
        name: "rate", unit: "requests/s", higherIsBetter: true, ours: [],
        target: load.target.map { .ratio($0) })
      for _ in 0..<pace.rounds {
        measure.ours.append(try rate(guest, disks[0], load, quick))
        measure.peer.append(try rate(guest, disks[1], load, quick))
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
      Load(name: "4 KiB random write, depth 32", arguments: "write 4096 32", target: nil),
      Load(name: "4 KiB random read, depth 128", arguments: "read 4096 128", target: nil),
    ]
  }

  private static func rate(_ guest: Guest, _ disk: String, _ load: Load, _ quick: Bool) throws -> Double {
    let answer = try guest.check("guest-load \(disk) \(load.arguments) \(quick ? 500 : 1000)", within: 60)
    guard let rate = Double(answer) else { throw HarnessError("guest-load printed `\(answer)`") }
    return rate
  }
}
