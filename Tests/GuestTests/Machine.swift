// The guest that the tests of this folder share, with its devices. Used on GuestThread.

import GuestHarness
import Testing

/// Every test in a guest is below this suite: one guest at a time on the machine, whatever else runs.
@Suite("In a real guest", .serialized)
enum InAGuest {}

/// A guest of two processors with a disk on two queues, a read-only disk and a source of random numbers, each
/// served by a back-end process of its own.
@GuestThread
final class Machine {
  /// The machine of the suite that runs: set by `.machine`.
  @TaskLocal static var shared: Machine?

  /// The running suite's machine.
  static func current() throws -> Machine { try #require(shared) }

  private enum Slot {
    static let disk = 4
    static let readOnlyDisk = 5
    static let entropy = 6
  }

  nonisolated static let serial = "vhost-swiftd-disk-07"

  let image: DiskImage
  let readOnlyImage: DiskImage
  let backend: BackendProcess
  private let others: [BackendProcess]
  private let configuration: GuestConfiguration
  private(set) var guest: Guest

  init() throws {
    image = try DiskImage(mebibytes: 64)
    readOnlyImage = try DiskImage(mebibytes: 16)
    try readOnlyImage.fillRandomly()
    let options = BackendProcess.standIn ? [] : ["--serial", Self.serial]
    backend = try BackendProcess.disk(image.path, queues: 2, options: options)
    let readOnly = try BackendProcess.disk(readOnlyImage.path, readOnly: true)
    var configuration = GuestConfiguration()
    configuration.attachDisk(backend, slot: Slot.disk, queues: 2)
    configuration.attachDisk(readOnly, slot: Slot.readOnlyDisk)
    if BackendProcess.standIn {
      others = [readOnly]
      configuration.arguments = ["-device", "virtio-rng-pci,addr=0x\(Slot.entropy)"]
    } else {
      let entropy = try BackendProcess.vhostSwiftd(["rng", "--socket-path", "{socket}"])
      others = [readOnly, entropy]
      configuration.attach("vhost-user-rng-pci", entropy, slot: Slot.entropy)
    }
    self.configuration = configuration
    guest = try Guest.boot(configuration)
  }

  /// Ends QEMU as a crash would and boots another guest on the same back-ends.
  func replaceGuest() throws {
    guest.kill()
    guest = try Guest.boot(configuration)
  }

  /// Shuts everything down; each program has to end well.
  func finish() throws {
    try guest.powerOff()
    for process in [backend] + others { try process.stop() }
  }

  /// The two-queue disk's device in the guest, `/dev/vda` at first: a new name when the driver is bound again
  /// while the old one is still open.
  func disk() throws -> String { try blockDevice(Slot.disk) }
  func readOnlyDisk() throws -> String { try blockDevice(Slot.readOnlyDisk) }

  private func blockDevice(_ slot: Int) throws -> String {
    "/dev/" + (try guest.check("basename /sys/bus/pci/devices/\(address(slot))/virtio*/block/*"))
  }

  private func address(_ slot: Int) -> String { "0000:00:0\(slot).0" }

  /// Takes the disk's driver away; I/O in flight has to end for this to return.
  func unbindDisk() throws { try writeDriver("unbind") }
  func bindDisk() throws { try writeDriver("bind") }

  private func writeDriver(_ what: String) throws {
    try guest.check("echo \(address(Slot.disk)) >/sys/bus/pci/drivers/virtio-pci/\(what)", within: 120)
  }

  /// Takes the driver away while four programs write, once requests complete, and brings it back. Cheaper than `startLoad`, for
  /// many times.
  func rebindDiskUnderLoad() throws {
    try guest.check(
      """
      disk=$(basename /sys/bus/pci/devices/\(address(Slot.disk))/virtio*/block/*)
      for i in 1 2 3 4; do
        dd if=/dev/zero of=/dev/$disk bs=4k count=1000 seek=$((8192 + i * 1000)) oflag=direct conv=notrunc 2>/dev/null &
      done
      for i in $(seq 600); do
        [ $(awk '{ print $5 }' /sys/block/$disk/stat) -gt 20 ] && break
        [ $i = 600 ] && exit 1
        sleep 0.05
      done
      echo \(address(Slot.disk)) >/sys/bus/pci/drivers/virtio-pci/unbind
      wait
      # One that came too late has made a file of that name.
      [ ! -f /dev/$disk ] || rm /dev/$disk
      echo \(address(Slot.disk)) >/sys/bus/pci/drivers/virtio-pci/bind
      """, within: 120)
  }

  /// Writes without end to the upper half of the disk, from both processors; returns once requests complete.
  func startLoad() throws {
    let disk = try disk()
    try guest.check(
      """
      completed() { awk '{ print $5 }' /sys/block/${1#/dev/}/stat; }
      start=$(completed \(disk))
      fio --name=load --filename=\(disk) --offset=32m --size=32m --rw=randwrite --bs=4k --direct=1 \
        --ioengine=libaio --iodepth=32 --numjobs=2 --cpus_allowed=0,1 --cpus_allowed_policy=split \
        --time_based --runtime=600 >/tmp/load 2>&1 &
      timeout 60 sh -c 'until [ $(awk "{ print \\$5 }" /sys/block/${1#/dev/}/stat) -gt $2 ]; do sleep 0.1; done' \
        - \(disk) $((start + 200)) || { cat /tmp/load; exit 1; }
      """, within: 120)
  }

  /// Writes with checksums to the lower half of the disk, from both processors, and reads them back.
  func verify() throws {
    try guest.check(
      """
      fio --name=verify --filename=\(disk()) --rw=randwrite --bsrange=4k-64k --size=8m --offset_increment=8m \
        --numjobs=2 --cpus_allowed=0,1 --cpus_allowed_policy=split --direct=1 --ioengine=libaio --iodepth=16 \
        --verify=crc32c --verify_fatal=1 --do_verify=1
      """, within: 240)
  }
}

/// Boots a machine for a suite, and shuts it down after the suite's last test.
struct MachineTrait: SuiteTrait, TestScoping {
  @GuestThread
  func provideScope(for test: Test, testCase: Test.Case?, performing body: @Sendable () async throws -> Void)
    async throws
  {
    let machine = try Machine()
    try await Machine.$shared.withValue(machine) { try await body() }
    try machine.finish()
  }
}

extension SuiteTrait where Self == MachineTrait {
  static var machine: Self { MachineTrait() }
}

extension Trait where Self == ConditionTrait {
  /// Runs under scripts/endure only.
  static var enduring: Self {
    .enabled(
      if: Environment.value("VHOST_SWIFTD_ROUNDS") != nil && !BackendProcess.standIn,
      "takes long: scripts/endure runs it")
  }
}
