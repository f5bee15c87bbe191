// Disks behind an IOMMU that the guest's kernel programs: no address in their rings is one of the guest's memory, and each
// request's mappings end with it.

import GuestHarness
import Testing

extension InAGuest {
  @Suite("Disks behind an IOMMU", .enabled(if: !BackendProcess.standIn))
  @GuestThread
  struct IOMMU {
    @Test("Two disks, split and packed, keep what is written through mappings that end with each request")
    func disks() throws {
      let images = [try DiskImage(mebibytes: 64), try DiskImage(mebibytes: 64)]
      let backends = try images.map { try BackendProcess.disk($0.path, queues: 2) }
      var configuration = GuestConfiguration(behindIOMMU: true)
      configuration.attachDisk(backends[0], slot: 4, queues: 2)
      configuration.attachDisk(backends[1], slot: 5, queues: 2, options: ["packed=on", "queue-size=256"])
      let guest = try Guest.boot(configuration, within: 300)
      #expect(try guest.check("ls /sys/class/iommu") != "")
      for (number, disk) in ["vda", "vdb"].enumerated() {
        // Translated, and each mapping taken away with its request: no flush queue.
        #expect(try guest.check("cat $(readlink -f /sys/block/\(disk)/device/..)/iommu_group/type") == "DMA")
        // Bit 33 of what the driver negotiated, bit 34 on the packed one.
        #expect(try guest.check("cut -c 34-35 /sys/block/\(disk)/device/features") == "1\(number)", "\(disk)")
        try guest.check(verify(disk), within: 400)
        // Each request asked for its pages anew, or nearly so.
        let backend = backends[number].process
        #expect(try backend.counter("iotlbMisses") > backend.counter("chains") / 2, "\(disk)")
        #expect(try backend.counter("faults") == 0)
      }
      // The driver gives the rings' memory back, and makes others.
      let address = try guest.check("basename $(readlink -f /sys/block/vda/device/..)")
      for what in ["unbind", "bind"] {
        try guest.check("echo \(address) >/sys/bus/pci/drivers/virtio-pci/\(what)", within: 120)
      }
      try guest.check(verify("vda"), within: 400)
      for (disk, image) in zip(["vda", "vdb"], images) {
        let inGuest = try guest.check(
          "sync; blockdev --flushbufs /dev/\(disk); sha256sum /dev/\(disk) | cut -c 1-64", within: 240)
        #expect(try image.checksum() == inGuest)
      }
      let log = guest.kernelLog
      #expect(!log.contains("DMAR: [DMA"), "the IOMMU saw addresses that are not mapped: \(log)")
      try guest.powerOff()
      for backend in backends { try backend.stop() }
    }

    /// Writes with checksums, from both processors, and reads them back.
    private func verify(_ disk: String) -> String {
      """
      fio --name=verify --filename=/dev/\(disk) --rw=randwrite --bsrange=4k-256k --size=8m \
        --offset_increment=8m --numjobs=2 --direct=1 --ioengine=libaio --iodepth=16 \
        --verify=crc32c --verify_fatal=1 --do_verify=1
      """
    }
  }
}
