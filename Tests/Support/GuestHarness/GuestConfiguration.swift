// What a guest is made of: read by Guest.boot.

/// A machine of the `pc` type with shared memory, to which devices are attached in PCI slots that the caller names. Behind an
/// IOMMU: of the `q35` type, each device on a root port of its own, as the address translation service (ATS) wants it.
public struct GuestConfiguration {
  public var processors = 2
  public var memoryMiB = 512
  /// Room for memory that is plugged in later.
  public var pluggableMiB = 0
  /// Gives the last processor a memory node of its own that has no memory.
  public var hasEmptyNode = false
  /// Added to the kernel's command line.
  public var kernelArguments: [String] = []
  /// Instead of the usual initramfs: see `GuestImage.adding`.
  public var initramfs: String?
  /// Where QEMU runs, for taps that it opens by itself; nil: the host's network.
  public var namespace: NetworkNamespace?
  /// Added to QEMU's command line, after the devices.
  public var arguments: [String] = []
  private(set) var devices: [String] = []
  private(set) var backends: [BackendProcess] = []

  private let isBehindIOMMU: Bool

  /// - Parameter behindIOMMU: devices are, and the kernel gives each the addresses it maps, and none for longer than a request.
  public init(behindIOMMU: Bool = false) {
    isBehindIOMMU = behindIOMMU
    guard behindIOMMU else { return }
    kernelArguments = ["intel_iommu=on", "iommu=nopt", "iommu.strict=1"]
    // Before the devices: they ask for it when they are made.
    devices = ["-device", "intel-iommu,intremap=off,device-iotlb=on,caching-mode=on"]
  }

  /// Attaches a vhost-user disk. The guest calls the disks vda, vdb, … in the order of their slots (4...31). `reconnects`: the
  /// guest waits for a back-end that has gone.
  public mutating func attachDisk(
    _ backend: BackendProcess, slot: Int, queues: Int = 1, reconnects: Bool = false, options: [String] = []
  ) {
    attach(
      "vhost-user-blk-pci", backend, slot: slot, reconnects: reconnects,
      options: ["num-queues=\(queues)"] + options)
  }

  /// Attaches any vhost-user device that takes a chardev: `vhost-user-rng-pci` and its like.
  public mutating func attach(
    _ device: String, _ backend: BackendProcess, slot: Int, reconnects: Bool = false, options: [String] = []
  ) {
    let address = "addr=0x\(String(slot, radix: 16))"
    var place = [address]
    if isBehindIOMMU {
      devices += ["-device", "pcie-root-port,id=port\(slot),bus=pcie.0,chassis=\(slot),\(address)"]
      place = ["bus=port\(slot)", "iommu_platform=on", "ats=on", "disable-legacy=on"]
    }
    let properties = ["chardev=chr\(slot)", "id=dev\(slot)"] + place + options
    let again = reconnects ? ",reconnect=1" : ""
    devices += ["-chardev", "socket,id=chr\(slot),path=\(backend.socketPath)\(again)"]
    backends.append(backend)
    devices += ["-device", "\(device),\(properties.joined(separator: ","))"]
  }

  /// QEMU's whole command line; its descriptors 3 and 4 are the monitor and the command port.
  func commandLine(accelerator: String, kernelLog: String) throws -> [String] {
    // loglevel 5: warnings and worse; printing everything costs a second of each boot.
    // On a busy host an emulated timer can be late for the kernel's trial of it at boot, and the kernel panics.
    let words = ["console=ttyS0", "loglevel=5", "no_timer_check"] + kernelArguments
    let nodes =
      hasEmptyNode
      ? [
        "-machine", "pc", "-numa", "node,nodeid=0,cpus=0-\(processors - 2),memdev=memory",
        "-numa", "node,nodeid=1,cpus=\(processors - 1)",
      ] : ["-machine", "\(isBehindIOMMU ? "q35" : "pc"),memory-backend=memory"]
    return [
      "-accel", accelerator, "-cpu", accelerator == "kvm" ? "host" : "qemu64", "-smp", "\(processors)",
      "-object", "memory-backend-memfd,id=memory,size=\(memoryMiB)M,share=on",
      "-m", "\(memoryMiB)M" + (pluggableMiB > 0 ? ",slots=4,maxmem=\(memoryMiB + pluggableMiB)M" : ""),
      "-nodefaults", "-no-user-config", "-display", "none",
      // SeaBIOS would drive the disks before the kernel does.
      "-bios", "qboot.rom", "-kernel", try Environment.guestKernel(),
      "-initrd", try initramfs ?? Environment.guestInitramfs(), "-append", words.joined(separator: " "),
      "-chardev", "file,id=log,path=\(kernelLog)", "-serial", "chardev:log",
      "-chardev", "socket,id=commands,fd=4", "-serial", "chardev:commands",
      "-chardev", "socket,id=monitor,fd=3", "-mon", "chardev=monitor,mode=control",
    ] + nodes + devices + arguments
  }
}
