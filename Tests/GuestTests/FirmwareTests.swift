// Firmware that boots from a served disk, each with a driver of its own habits: SeaBIOS a tiny ring without event index,
// OVMF and U-Boot the legacy side of the transitional device, where no VERSION_1 is negotiated.

import Foundation
import GuestHarness
import Testing

extension InAGuest {
  @Suite("Booting from a served disk", .enabled(if: !BackendProcess.standIn))
  @GuestThread
  struct Firmware {
    @Test("SeaBIOS boots GRUB, which reads and writes files")
    func seaBIOS() throws { try bootsGRUB("pc", []) }

    @Test("OVMF boots GRUB, which reads and writes files")
    func ovmf() throws {
      let folder = try TemporaryFolder()
      let variables = folder.file("variables")
      try FileManager.default.copyItem(atPath: "/usr/share/OVMF/OVMF_VARS_4M.fd", toPath: variables)
      try bootsGRUB(
        "efi",
        [
          "-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
          "-drive", "if=pflash,format=raw,file=\(variables)",
        ])
    }

    private func bootsGRUB(_ platform: String, _ firmware: [String]) throws {
      let boot = try BootImage()
      let backend = try BackendProcess.disk(boot.image.path)
      let machine = try FirmwareMachine(booting: backend, firmware: firmware)
      try machine.expect("GRUB on \(platform) reads:", within: 400)
      try machine.expect(BootImage.message)
      try machine.waitOff()
      try backend.stop()
      #expect(try boot.note().contains("booted=\(platform)"), "what it wrote is in the image")
    }

    @Test("U-Boot finds the disk, reads it right, and writes to it")
    func uBoot() throws {
      let boot = try BootImage()
      let backend = try BackendProcess.disk(boot.image.path)
      let machine = try FirmwareMachine(
        booting: backend, firmware: ["-bios", "/usr/lib/u-boot/qemu-x86/u-boot.rom"])
      try machine.expect("stop autoboot", within: 400)
      try machine.type("\n")
      try machine.expect("\n=> ")
      /// What a command prints, its echo included.
      func command(_ line: String) throws -> String {
        try machine.type(line + "\n")
        return try machine.expect("\n=> ")
      }
      _ = try command("virtio scan")
      #expect(try command("virtio info").contains("Capacity: 40.0 MB"))
      #expect(try command("virtio read 2000000 0 200").contains("512 blocks read: OK"))
      #expect(try command("crc32 2000000 40000").contains(boot.checksum(first: 0x40000)))
      #expect(try command("fatload virtio 0:1 3000000 message").contains("22 bytes read"))
      // The first 16 sectors once more, behind the partition.
      #expect(try command("virtio write 2000000 13900 10").contains("16 blocks written: OK"))
      machine.process.kill()
      try backend.stop()
      let image = try Data(contentsOf: URL(fileURLWithPath: boot.image.path))
      #expect(image[0x13900 * 512..<(0x13900 + 16) * 512] == image[..<(16 * 512)])
    }
  }
}
