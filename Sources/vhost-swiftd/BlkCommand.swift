// `vhost-swiftd blk`: a disk.

import ArgumentParser
import ServiceConfig
import BlockBackend
import DeviceKit
import Glibc

struct BlkCommand: ServiceCommand {
  static let configuration = CommandConfiguration(
    commandName: "blk",
    abstract: "Serves a raw image or a block device as a virtio-blk disk.",
    discussion: """
      QEMU:
        -object memory-backend-memfd,id=mem,size=1G,share=on \\
        -machine memory-backend=mem \\
        -chardev socket,id=c0,path=vm.sock,reconnect=1 \\
        -device vhost-user-blk-pci,chardev=c0,num-queues=2

      The guest sees a disk that can flush and change its cache mode. A guest that negotiates neither gets every write on \
      stable storage before it completes.

      A disk at its limit is not asked for more until it has its turn; --stats counts how often and how long. Limits of a \
      running disk are changed in the file of `serve` and taken up at SIGHUP; here they hold for the process's life.
      """)

  @OptionGroup(title: "Service") var service: ServiceOptions
  @OptionGroup(title: "Limits") var limitOptions: DiskLimitOptions

  @Option(
    help: ArgumentHelp("A raw image or a block device; its size is a multiple of 512.", valueName: "path"))
  var blkFile: String?

  @Option(
    help: ArgumentHelp(
      "Instead of an image: a disk of this size that moves no data, to measure with.", valueName: "size"),
    transform: ByteSize.init(parsing:))
  var nullSize: ByteSize?

  @Flag(help: "Refuse writes; the guest sees a read-only disk.")
  var readOnly = false

  @Option(help: ArgumentHelp("What the guest sees as the disk's serial, up to 20 bytes.", valueName: "text"))
  var serial: String?

  @Flag(help: "Go past the page cache (O_DIRECT); requests that do not fit its alignment are copied.")
  var direct = false

  @Flag(
    help: ArgumentHelp(
      "Hold all of the guest's memory in place for --direct: requests cost less, large ones half. Not with a balloon, free page "
        + "reporting or virtio-mem: what they take from the guest stays here, and the guest would read zeros. Linux 6.13."
    ))
  var pinGuestMemory = false

  @Option(
    help: ArgumentHelp(
      "The block size that the guest is told: 512 to 4096. Default: what the storage works in.",
      valueName: "bytes"))
  var blockSize: UInt32?

  @Option(
    help: "off: each write is on stable storage before it completes, and the guest is told of no cache.")
  var writeCache = Switch.on

  @Option(help: "Whether the guest may give blocks back to the image's file system or device.")
  var discard = Switch.on

  @Option(help: "A full file system: report the error to the guest, or wait until there is room.")
  var onEnospc = FullStorage.report

  @Option(
    help: "on: only one process writes to the image at a time, from a guest's first request to its last.")
  var lock = Switch.on

  @Option(
    help: ArgumentHelp(
      "How long a starting guest waits for another to let the image go.", valueName: "seconds"))
  var lockWait: Double = 5

  @Flag(help: "The image may still be another's when this program starts: a migration will hand it over.")
  var incoming = false

  @Flag(help: "Watch the image's size and tell the guest; without it, SIGHUP asks for a look.")
  var watchSize = false

  var limit: RateLimits { limitOptions.limits }

  enum Switch: String, ExpressibleByArgument, CaseIterable { case on, off }
  enum FullStorage: String, ExpressibleByArgument, CaseIterable { case report, wait }

  func validate() throws {
    guard (blkFile == nil) != (nullSize == nil) else {
      throw ValidationError("give exactly one of --blk-file and --null-size")
    }
    if blkFile?.isEmpty == true { throw ValidationError("--blk-file '': expected a path") }
    if readOnly, nullSize != nil { throw ValidationError("--read-only goes with --blk-file") }
    if watchSize, nullSize != nil { throw ValidationError("--watch-size goes with --blk-file") }
    guard lockWait >= 0, lockWait <= 86_400 else {
      throw ValidationError("--lock-wait \(lockWait): expected 0 to 86400 seconds")
    }
    if pinGuestMemory, !direct { throw ValidationError("--pin-guest-memory goes with --direct") }
    // To hold memory in place is to touch all of it, on the control thread, before it has come.
    if pinGuestMemory, service.postcopy {
      throw ValidationError("--postcopy does not go with --pin-guest-memory")
    }
    if direct, nullSize != nil { throw ValidationError("--direct goes with --blk-file") }
    if let blockSize, ![512, 1024, 2048, 4096].contains(blockSize) {
      throw ValidationError("--block-size \(blockSize): expected 512, 1024, 2048 or 4096")
    }
    if let serial, serial.utf8.count > 20 {
      throw ValidationError("--serial '\(serial)': \(serial.utf8.count) bytes, at most 20 are possible")
    }
    if let nullSize, nullSize.bytes == 0 || nullSize.bytes % 512 != 0 {
      throw ValidationError("--null-size \(nullSize.bytes): expected a multiple of 512 above 0")
    }
  }

  func makeService() throws -> Service {
    let image = try openImage()
    var options = BlockDevice.Options(
      serial: serial ?? Self.defaultSerial(image.identity), queueLimit: service.numQueues ?? 64)
    options.blockSize = blockSize
    options.writeCache = writeCache == .on
    options.discard = discard == .on
    options.waitsForSpace = onEnospc == .wait
    options.pinsMemory = pinGuestMemory
    let unit = UInt64(blockSize ?? image.limits.logicalBlock)
    guard image.byteCount % unit == 0 else {
      throw Failure.run("image of \(image.byteCount) bytes: expected a multiple of the block size, \(unit)")
    }
    options.lock.isOn = lock == .on
    options.lock.wait = .seconds(lockWait)
    let device = BlockDevice(image: image, options: options)
    if !incoming, device.isInUseElsewhere {
      throw Failure.run(
        "image '\(blkFile ?? "")' is locked by another process: --incoming waits for it, --lock off ignores it"
      )
    }
    let watch =
      try watchSize
      ? SizeWatch(path: blkFile ?? "", refresh: device.refreshSize) : SizeWatch(onRequest: device.refreshSize)
    return try Service(service, device, watch: watch, limits: (device.limiter, limit))
  }

  private func openImage() throws(Failure) -> BlockImage {
    do {
      if let nullSize { return try BlockImage(nullBytes: nullSize.bytes) }
      return try BlockImage(path: blkFile ?? "", readOnly: readOnly, direct: direct)
    } catch {
      throw .run(Self.sentence(for: error))
    }
  }

  private static func sentence(for error: BlockImageError) -> String {
    switch error {
    case .cannotOpen(let path, let code):
      // SAFETY: strerror returns a NUL-terminated string; copied at once, on the only thread there is yet.
      "cannot open image '\(path)': \(unsafe String(cString: strerror(code)))"
    case .notAnImage(let path, let what):
      "'\(path)' is \(what): expected a raw image file or a block device"
    case .oddSize(let path, let bytes):
      "image '\(path)' has \(bytes) bytes: expected a multiple of 512 above 0 (truncate -s makes one)"
    case .noDirect(let path):
      "'\(path)' is on a file system without O_DIRECT: leave --direct out"
    case .readOnlyDevice(let path):
      "'\(path)' is a read-only block device: add --read-only"
    }
  }

  /// The same for the same image each time, and most likely no other's: a hash of where it is.
  private static func defaultSerial(_ identity: String) -> String {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325  // FNV-1a
    for byte in identity.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
    let digits = String(hash, radix: 16)
    return "vs" + String(repeating: "0", count: 16 - digits.count) + digits
  }
}
