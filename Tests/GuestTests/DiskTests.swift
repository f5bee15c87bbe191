// What a guest sees of its disks, and what the host then finds in the images.

import GuestHarness
import Testing

extension InAGuest {
  @Suite("A served disk", .machine)
  @GuestThread
  struct Disk {
    @Test(
      "A file system made and filled in the guest is sound, and the file the same, when the host reads it")
    func fileSystem() throws {
      let machine = try Machine.current()
      let disk = try machine.disk()
      let inGuest = try machine.guest.check(
        """
        set -e
        mkfs.ext4 -q -F \(disk) && mount \(disk) /mnt
        dd if=/dev/urandom of=/mnt/data bs=64k count=256 2>/dev/null
        sha256sum /mnt/data | cut -c 1-64
        umount /mnt && blockdev --flushbufs \(disk) && mount -o ro \(disk) /mnt
        sha256sum /mnt/data | cut -c 1-64
        umount /mnt
        """, within: 240
      ).split(separator: "\n")
      try #require(inGuest.count == 2 && inGuest.allSatisfy { $0.count == 64 }, "\(inGuest)")
      #expect(inGuest[1] == inGuest[0], "the guest reads back what it wrote")
      try machine.image.requireSoundFileSystem()
      #expect(try machine.image.checksum(ofFile: "/data") == inGuest[0])
    }

    @Test("The whole disk reads the same in the guest as its image on the host")
    func wholeDisk() throws {
      let machine = try Machine.current()
      let disk = try machine.disk()
      // Something in the first and in the last sector, written past the page cache.
      try machine.guest.check(
        """
        set -e
        head -c 512 /dev/urandom >/tmp/sector
        last=$(($(blockdev --getsz \(disk)) - 1))
        dd if=/tmp/sector of=\(disk) bs=512 seek=0 conv=notrunc 2>/dev/null
        dd if=/tmp/sector of=\(disk) bs=512 seek=$last conv=notrunc 2>/dev/null
        sync && blockdev --flushbufs \(disk)
        """)
      let inGuest = try machine.guest.check("sha256sum \(disk) | cut -c 1-64", within: 240)
      #expect(try machine.image.checksum() == inGuest)
    }

    @Test("fio verifies what two processors write, each through a queue of its own")
    func queues() throws {
      let machine = try Machine.current()
      #expect(try machine.guest.check("ls /sys/block/$(basename \(machine.disk()))/mq | wc -l") == "2")
      let before = try interrupts(machine)
      try machine.verify()
      let after = try interrupts(machine)
      try #require(before.count == 2 && after.count == 2, "\(after)")
      #expect(
        after[0] > before[0] && after[1] > before[1], "both queues completed requests: \(before) \(after)")
    }

    /// Interrupts so far of each request queue of the two-queue disk.
    private func interrupts(_ machine: Machine) throws -> [Int] {
      try machine.guest.check(
        """
        device=$(basename $(readlink -f /sys/block/$(basename \(machine.disk()))/device))
        awk -v name="$device-req" 'index($0, name) { print $2 + $3 }' /proc/interrupts
        """
      ).split(separator: "\n").compactMap { Int($0) }
    }

    @Test("A read-only disk says so, refuses writes and keeps its bytes")
    func readOnly() throws {
      let machine = try Machine.current()
      let before = try machine.readOnlyImage.checksum()
      let disk = try machine.readOnlyDisk()
      #expect(try machine.guest.check("blockdev --getro \(disk)") == "1")
      let write = "dd if=/dev/zero of=\(disk) bs=4k count=1 conv=fsync"
      #expect(try machine.guest.run(write).status != 0)
      #expect(
        try machine.guest.run("blockdev --setrw \(disk); \(write)").status != 0, "not even when asked to")
      #expect(try machine.guest.check("sha256sum \(disk) | cut -c 1-64", within: 240) == before)
      #expect(try machine.readOnlyImage.checksum() == before)
    }

    @Test("The disk's serial is the one given", .enabled(if: !BackendProcess.standIn))
    func serial() throws {
      let machine = try Machine.current()
      #expect(
        try machine.guest.check("cat /sys/block/$(basename \(machine.disk()))/serial") == Machine.serial)
    }

    @Test("The guest's random numbers come from the served entropy device")
    func entropy() throws {
      let guest = try Machine.current().guest
      let source = try guest.check("cat /sys/class/misc/hw_random/rng_current")
      #expect(source.hasPrefix("virtio_rng"))
      let take =
        "dd if=/dev/hwrng bs=512 count=8 iflag=fullblock 2>/dev/null >/tmp/random && sha256sum </tmp/random"
      let draws = try [guest.check(take), guest.check(take)]
      #expect(try guest.check("wc -c </tmp/random") == "4096")
      #expect(draws[0] != draws[1])
      // 4096 random bytes do not compress; a constant, or a pattern that repeats, does.
      let compressed = try #require(Int(try guest.check("gzip -9 </tmp/random | wc -c")))
      #expect(compressed > 4000)
    }
  }
}
