// An image that three kinds of firmware boot: GRUB for a BIOS in its first sectors, GRUB for EFI as a file, and files that
// a boot loader reads. Made with the host's tools; nothing of it is installed anywhere.

import Foundation
import GuestHarness

struct BootImage {
  static let message = "the words of the disk"
  private static let partitionSector = 2048
  private static let partitionKiB = 38 << 10

  let image: DiskImage
  private let folder: TemporaryFolder
  /// How mtools name the partition.
  private var partition: String { "\(image.path)@@\(Self.partitionSector * 512)" }

  init() throws {
    folder = try TemporaryFolder()
    image = try DiskImage(mebibytes: 40)
    let size = "\(Self.partitionKiB)"
    try Tool.run(
      "mkfs.fat", ["-F", "16", "-s", "16", "--offset", "\(Self.partitionSector)", image.path, size])
    let core = try grub("i386-pc", ["biosdisk"])
    try writeStart(core: core)
    let efi = try grub("x86_64-efi", [])
    try Data((Self.message + "\n").utf8).write(to: URL(fileURLWithPath: folder.file("message")))
    try Tool.run("grub-editenv", [folder.file("grubenv"), "create"])
    try Tool.run("mmd", ["-i", partition, "::/EFI", "::/EFI/BOOT"])
    try Tool.run("mcopy", ["-i", partition, efi, "::/EFI/BOOT/BOOTX64.EFI"])
    try Tool.run("mcopy", ["-i", partition, folder.file("message"), folder.file("grubenv"), "::/"])
  }

  /// GRUB with what it does built in: it reads a file, says so on the serial port, notes in another file that it was here,
  /// and switches the machine off.
  private func grub(_ platform: String, _ modules: [String]) throws -> String {
    let script = """
      serial --unit=0 --speed=115200
      terminal_output serial
      set root=(hd0,msdos1)
      echo "GRUB on $grub_platform reads:"
      cat /message
      set booted=$grub_platform
      save_env --file /grubenv booted
      halt
      """
    try Data(script.utf8).write(to: URL(fileURLWithPath: folder.file("script")))
    let file = folder.file(platform)
    try Tool.run(
      "grub-mkimage",
      ["-O", platform, "-o", file, "-p", "(hd0,msdos1)/", "-c", folder.file("script")] + modules
        + ["part_msdos", "fat", "serial", "terminal", "echo", "cat", "loadenv", "halt", "normal"])
    return file
  }

  /// The boot sector with its table of one partition, and GRUB's core behind it, where the boot sector looks for it.
  private func writeStart(core: String) throws {
    let sector = try Data(contentsOf: URL(fileURLWithPath: "/usr/lib/grub/i386-pc/boot.img"))
    let rest = try Data(contentsOf: URL(fileURLWithPath: core))
    guard rest.count <= (Self.partitionSector - 1) * 512 else {
      throw HarnessError("GRUB's core is too long")
    }
    var start = Data(sector.prefix(440)) + Data(count: 6)
    // Active, of type EFI, which a BIOS does not look at; sectors by their numbers only.
    start += Data([0x80, 0xfe, 0xff, 0xff, 0xef, 0xfe, 0xff, 0xff])
    for number in [UInt32(Self.partitionSector), UInt32(Self.partitionKiB * 2)] {
      withUnsafeBytes(of: number.littleEndian) { start.append(contentsOf: $0) }
    }
    start += Data(count: 48) + Data([0x55, 0xaa]) + rest
    let file = try FileHandle(forWritingTo: URL(fileURLWithPath: image.path))
    try file.write(contentsOf: start)
    try file.close()
  }

  /// What GRUB noted in the image.
  func note() throws -> String { try Tool.run("mtype", ["-i", partition, "::/grubenv"]) }

  /// CRC-32 (that of zlib and of U-Boot's `crc32`) of the first `count` bytes.
  func checksum(first count: Int) throws -> String {
    let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: image.path))
    let bytes = try file.read(upToCount: count) ?? Data()
    var crc = UInt32.max
    for byte in bytes {
      crc ^= UInt32(byte)
      for _ in 0..<8 { crc = crc & 1 == 1 ? (crc >> 1) ^ 0xedb8_8320 : crc >> 1 }
    }
    crc = ~crc
    let digits = String(crc, radix: 16)
    return String(repeating: "0", count: 8 - digits.count) + digits
  }
}
