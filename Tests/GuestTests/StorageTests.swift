// What a guest does to a disk beside reading and writing it, with the rings and the bus that the other suites do not use.

import Foundation
import GuestHarness
import Testing

extension InAGuest {
  /// A guest with two disks: one on packed rings, one on the legacy bus, of which the driver knows no VERSION_1.
  @Suite("Disks of other kinds")
  @GuestThread
  struct Storage {
    private static let packedSlot = 4
    private static let legacySlot = 5

    private func blockDevice(_ guest: Guest, _ slot: Int) throws -> String {
      "/dev/" + (try guest.check("basename /sys/bus/pci/devices/0000:00:0\(slot).0/virtio*/block/*"))
    }

    /// Writes with checksums and reads back, past the guest's page cache.
    private func verify(_ guest: Guest, _ disk: String, _ megabytes: Int) throws {
      try guest.check(
        "fio --name=v --filename=\(disk) --size=\(megabytes)m --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite "
          + "--bsrange=512-64k --blockalign=512 --verify=crc32c --do_verify=1 --minimal >/tmp/fio 2>&1 || { cat /tmp/fio; false; }",
        within: 240)
    }

    @Test("Packed rings, the legacy bus, discard, a new size, unplugging and plugging in again")
    func storage() throws {
      guard !BackendProcess.standIn else { return }
      let image = try DiskImage(mebibytes: 64)
      let legacyImage = try DiskImage(mebibytes: 16)
      let backend = try BackendProcess.disk(image.path, queues: 2, options: ["--watch-size"])
      let legacy = try BackendProcess.disk(legacyImage.path)
      var configuration = GuestConfiguration()
      configuration.attachDisk(backend, slot: Self.packedSlot, queues: 2, options: ["packed=on"])
      configuration.attachDisk(
        legacy, slot: Self.legacySlot, options: ["disable-modern=on", "disable-legacy=off"])
      let guest = try Guest.boot(configuration)
      let disk = try blockDevice(guest, Self.packedSlot)
      let old = try blockDevice(guest, Self.legacySlot)

      // Bit 34 is RING_PACKED, bit 32 VERSION_1; the file has a character a bit.
      let features = "cut -c %d /sys/bus/pci/devices/0000:00:0%d.0/virtio*/features"
      #expect(try guest.check(String(format: features, 35, Self.packedSlot)) == "1")
      #expect(try guest.check(String(format: features, 33, Self.legacySlot)) == "0")
      try verify(guest, disk, 32)
      try verify(guest, old, 8)

      try discards(guest, disk, image)
      try resizes(guest, disk, image)
      try replugs(guest, backend)
      try guest.powerOff()
      try backend.stop()
      try legacy.stop()
    }

    /// What the guest deletes returns to the host's file system; what it flushes reaches the storage.
    private func discards(_ guest: Guest, _ disk: String, _ image: DiskImage) throws {
      try guest.check(
        "mkfs.ext4 -q -F \(disk) && mount \(disk) /mnt && dd if=/dev/urandom of=/mnt/f bs=1M count=24 conv=fsync 2>/dev/null",
        within: 240)
      let full = try blocks(image.path)
      try guest.check("rm /mnt/f && sync && /usr/bin/fstrim /mnt || /usr/sbin/fstrim /mnt", within: 120)
      try guest.check("umount /mnt")
      #expect(try blocks(image.path) < full - 20 * 2048, "fstrim gives blocks back")
      try image.requireSoundFileSystem()
    }

    private func blocks(_ path: String) throws -> Int {
      var facts = stat()
      try #require(stat(path, &facts) == 0)
      return Int(facts.st_blocks)
    }

    private func resizes(_ guest: Guest, _ disk: String, _ image: DiskImage) throws {
      try FileHandle(forWritingTo: URL(fileURLWithPath: image.path)).truncate(atOffset: 96 << 20)
      try guest.check(
        "for i in $(seq 300); do [ $(blockdev --getsize64 \(disk)) = \(96 << 20) ] && exit 0; sleep 0.1; done; exit 1",
        within: 60)
      try guest.check("dd if=/dev/zero of=\(disk) bs=1M seek=95 count=1 oflag=direct 2>/dev/null")
    }

    private func replugs(_ guest: Guest, _ backend: BackendProcess) throws {
      try guest.monitor.execute("device_del", ["id": "dev\(Self.packedSlot)"])
      _ = try guest.monitor.waitEvent("DEVICE_DELETED", within: 120)
      try guest.monitor.execute(
        "device_add",
        [
          "driver": "vhost-user-blk-pci", "id": "again", "chardev": "chr\(Self.packedSlot)", "num-queues": 2,
          "addr": "0x\(Self.packedSlot)",
        ])
      try guest.check(
        "for i in $(seq 300); do ls /sys/bus/pci/devices/0000:00:0\(Self.packedSlot).0/virtio*/block/* >/dev/null 2>&1 && exit 0; sleep 0.1; done; exit 1",
        within: 60)
      try verify(guest, try blockDevice(guest, Self.packedSlot), 16)
    }
  }
}
