// What an operator does to a running guest and its disks, and what the guest must see of it.

import Foundation
import GuestHarness
import Testing

extension InAGuest {
  @Suite("Under an operator's hands", .enduring)
  @GuestThread
  struct Operator {
    private static let first = 4
    private static let second = 5

    @Test(
      "Two disks of their own, flushes that reach the host, a new size by signal, memory plugged in under load"
    )
    func operations() throws {
      let folder = try TemporaryFolder()
      let (image, other) = (try DiskImage(mebibytes: 64), try DiskImage(mebibytes: 32))
      let backend = try BackendProcess.disk(
        image.path, queues: 2, options: ["--serial", "first-disk", "--stats", folder.file("stats")])
      let second = try BackendProcess.disk(
        other.path, options: ["--serial", "second-disk", "--block-size", "4096", "--direct"])
      var configuration = GuestConfiguration()
      configuration.pluggableMiB = 256
      configuration.kernelArguments = ["memhp_default_state=online"]
      // The largest ring that QEMU makes, and the smallest that a request fits in.
      configuration.attachDisk(backend, slot: Self.first, queues: 2, options: ["queue-size=1024"])
      configuration.attachDisk(second, slot: Self.second, options: ["queue-size=4"])
      let guest = try Guest.boot(configuration)
      let (disk, small) = (try name(guest, Self.first), try name(guest, Self.second))

      #expect(try guest.check("cat /sys/block/\(disk)/serial") == "first-disk")
      #expect(try guest.check("cat /sys/block/\(small)/serial") == "second-disk")
      #expect(try guest.check("cat /sys/block/\(small)/queue/logical_block_size") == "4096")
      try verify(guest, disk, "--size=16m --iodepth=256")
      try verify(guest, small, "--size=8m --iodepth=4")
      try flushes(guest, disk, backend, folder.file("stats"))
      try grows(guest, small, other, second)
      try plugsMemory(guest, disk)
      try guest.powerOff()
      try backend.stop()
      try second.stop()
    }

    private func name(_ guest: Guest, _ slot: Int) throws -> String {
      try guest.check("basename /sys/bus/pci/devices/0000:00:0\(slot).0/virtio*/block/*")
    }

    private func verify(_ guest: Guest, _ disk: String, _ options: String) throws {
      try guest.check(
        """
        fio --name=v --filename=/dev/\(disk) --direct=1 --ioengine=libaio --rw=randwrite --bsrange=4k-32k \
          --verify=crc32c --verify_fatal=1 --do_verify=1 \(options) >/tmp/fio 2>&1 || { cat /tmp/fio; false; }
        """, within: 240)
    }

    /// Each fsync in the guest is a flush of the storage on the host, and one that the storage has done.
    private func flushes(_ guest: Guest, _ disk: String, _ backend: BackendProcess, _ path: String) throws {
      let before = try syncs(backend, path)
      try guest.check(
        "for i in 1 2 3 4 5; do dd if=/dev/zero of=/dev/\(disk) bs=4k count=1 seek=$i conv=fsync,notrunc 2>/dev/null; done"
      )
      try backend.process.wait(until: "five more syncs", within: 60) {
        try syncs(backend, path) >= before + 5
      }
    }

    /// The storage's syncs so far, over all queues.
    private func syncs(_ backend: BackendProcess, _ path: String) throws -> Int {
      backend.process.signal(SIGUSR1)
      var sum: Int?
      try backend.process.wait(until: "its counters", within: 60) {
        guard let text = try? String(contentsOfFile: path, encoding: .utf8), text.hasSuffix("\n") else {
          return false
        }
        sum = text.components(separatedBy: "\"syncs\":").dropFirst().reduce(0) {
          $0 + (Int($1.prefix { $0.isNumber }) ?? 0)
        }
        return true
      }
      return try #require(sum)
    }

    private func grows(_ guest: Guest, _ disk: String, _ image: DiskImage, _ backend: BackendProcess) throws {
      try FileHandle(forWritingTo: URL(fileURLWithPath: image.path)).truncate(atOffset: 48 << 20)
      backend.process.signal(SIGHUP)
      try guest.check(
        "for i in $(seq 600); do [ $(blockdev --getsize64 /dev/\(disk)) = \(48 << 20) ] && exit 0; sleep 0.1; done; exit 1",
        within: 120)
      try guest.check("dd if=/dev/zero of=/dev/\(disk) bs=1M seek=47 count=1 oflag=direct 2>/dev/null")
    }

    /// LC09: the disk is told of more memory while requests run, and buffers in it are served.
    private func plugsMemory(_ guest: Guest, _ disk: String) throws {
      let free = try #require(Int(try guest.check("awk '/MemFree/ { print int($2 / 1024) }' /proc/meminfo")))
      let total = try #require(
        Int(try guest.check("awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo")))
      try guest.check(
        """
        fio --name=load --filename=/dev/\(disk) --offset=32m --size=32m --rw=randwrite --bs=4k --direct=1 \
          --ioengine=libaio --iodepth=32 --time_based --runtime=600 >/tmp/load 2>&1 &
        echo $! >/tmp/load.pid
        """)
      try guest.monitor.execute(
        "object-add", ["qom-type": "memory-backend-memfd", "id": "more", "size": 256 << 20, "share": true])
      try guest.monitor.execute("device_add", ["driver": "pc-dimm", "id": "dimm", "memdev": "more"])
      try guest.check(
        """
        for i in $(seq 600); do
          [ $(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo) -gt \(total + 200) ] && exit 0
          sleep 0.1
        done
        exit 1
        """, within: 120)
      // What was free before is filled: the buffers that follow are in the new memory.
      try guest.check("mkdir -p /fill && mount -t tmpfs -o size=100% none /fill")
      try guest.check("dd if=/dev/zero of=/fill/x bs=1M count=\(max(1, free - 32)) 2>/dev/null", within: 120)
      try verify(guest, disk, "--size=16m --iodepth=64")
      try guest.check("kill -0 $(cat /tmp/load.pid) && kill $(cat /tmp/load.pid); rm /fill/x")
    }
  }
}
