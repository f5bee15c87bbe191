// The back-end on another kernel than this machine's: inside the guest, on Debian's Linux 6.1.

import GuestHarness
import Testing

extension InAGuest {
  @Suite("On Linux 6.1")
  @GuestThread
  struct Kernel {
    @Test(
      "FT12: the program serves disks to a front-end of this project, both inside the guest, through the guest's io_uring, on a node without memory too"
    )
    func inside() throws {
      guard !BackendProcess.standIn else { return }
      let folder = try TemporaryFolder()
      let initramfs = folder.file("initramfs")
      try GuestImage.adding(
        [Environment.program("vhost-swiftd"), Environment.program("disk-check")], writtenTo: initramfs)
      let image = try DiskImage(mebibytes: 16)
      var configuration = GuestConfiguration()
      configuration.initramfs = initramfs
      configuration.memoryMiB = 1024
      // QEMU's own disk: storage that asks for io_uring, which a file in the guest's memory does not.
      configuration.arguments = [
        "-drive", "file=\(image.path),format=raw,if=none,id=plain", "-device", "virtio-blk-pci,drive=plain",
      ]
      configuration.hasEmptyNode = true
      let guest = try Guest.boot(configuration)
      #expect(try guest.check("cat /sys/devices/system/node/online") == "0-1")
      #expect(try guest.check("grep MemTotal /sys/devices/system/node/node1/meminfo").hasSuffix(" 0 kB"))
      #expect(try guest.check("uname -r").hasPrefix("6.1."))
      try guest.check("truncate -s 16M /disk.img")
      // The second node's processor is 1.
      for (name, storage, options) in [("memory", "/disk.img", ""), ("ring", "/dev/vda", "--cpus 1")] {
        let answer = try guest.check(
          """
          set -e
          vhost-swiftd blk --socket-path /\(name).sock --blk-file \(storage) --stats /\(name).json \(options) &
          pid=$!
          for i in $(seq 200); do [ -S /\(name).sock ] && break; sleep 0.1; done
          disk-check /\(name).sock
          kill $pid; wait $pid
          cat /\(name).json
          """, within: 240)
        #expect(answer.contains("all was read as it was written"))
        #expect(answer.contains("\"syncs\":"))
      }
      try guest.powerOff()
    }
  }
}
