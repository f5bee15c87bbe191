// A disk against requests of every framing: headers, statuses and data cut anywhere, any type, sector and range list, on
// the engines that this machine's file systems give. The queue runs on its own thread, as it does in the program.

import BlockBackend
import CLinux
import DeviceKit
import Glibc
import HostIO
import Synchronization
import VirtQueue

enum BlockTarget {
  static let target = FuzzTarget(
    name: "block", about: "the disk: request headers, framing, ranges and sectors, to a real file",
    longest: 512
  ) { input in
    var feed = Feed(input)
    guard let disks else { throw Defect("no disk to play with") }
    try feed.pick(disks).play(&feed)
  }

  // SAFETY: targets run on one thread.
  private nonisolated(unsafe) static let disks: [FuzzDisk]? = {
    var disks: [FuzzDisk] = []
    // Memory file system (in place), page cache (io_uring), O_DIRECT (bounces), read-only: where they can be had.
    for (folder, direct, readOnly) in [
      ("/dev/shm", false, false), ("/tmp", false, false), ("/tmp", true, false), ("/tmp", false, true),
    ] {
      if let disk = try? FuzzDisk(in: folder, direct: direct, readOnly: readOnly) { disks.append(disk) }
    }
    return disks.isEmpty ? nil : disks
  }()
}

/// One disk, its thread, and the memory its requests are in.
private final class FuzzDisk {
  private static let sectors = 64
  private static let size = 64

  private let memory: FuzzMemory
  private let device: BlockDevice
  private let host: DeviceHost
  private let thread: QueueThread
  private let kick: EventFD
  private let file: Int32

  init(in folder: String, direct: Bool, readOnly: Bool) throws {
    memory = try FuzzMemory()
    kick = try EventFD()
    let path = "\(folder)/vhost-fuzz-\(getpid())-\(direct)-\(readOnly)"
    file = clx_open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    guard file >= 0, ftruncate(file, off_t(Self.sectors * 512)) == 0 else { throw Defect("no image") }
    defer { unlink(path) }
    let image = try BlockImage(path: path, readOnly: readOnly, direct: direct)
    device = BlockDevice(image: image, options: BlockDevice.Options(serial: "fuzzed", queueLimit: 1))
    thread = try QueueThread(name: "fuzz", cpus: [], policy: .interrupt, seats: 1, files: 1, helped: true)
    host = try DeviceHost(device: device, threads: [thread])
    _ = try thread.start()
  }

  func play(_ feed: inout Feed) throws {
    memory.clear()
    let options = feed.u8()
    var features: FeatureSet = [.indirectDescriptors]
    for bit in [9, 11, 13, 14] where options & 1 << UInt8(bit - 8) == 0 {
      features.insert(FeatureSet(bit: UInt8(bit)))
    }
    device.negotiated(features)
    var count: UInt16 = 0
    var free = 0
    while !feed.isEmpty, free < Self.size { addRequest(&feed, &count, &free) }
    let user = memory.ringUser
    let used = 16 * Self.size + 4 + 2 * Self.size + 4
    let layout = RingLayout(
      size: UInt16(Self.size), descriptorArea: user, driverArea: user + UInt64(16 * Self.size),
      deviceArea: user + UInt64(used), base: 0, indirect: true, eventIndex: false)
    let broken = Flag()
    let failure = host.start(
      0,
      QueueSetup(
        layout: layout, features: features, map: memory.map, enabled: true, kick: kick.raw, call: nil,
        onFault: { _ in broken.value.store(true, ordering: .releasing) }))
    if let failure { throw Defect("the queue does not start: \(failure)") }
    defer { _ = host.stop([0]) }
    let deadline = ContinuousClock.now + .seconds(10)
    while clx_load_acquire_u16(memory.ring(used + 2)) != count, !broken.value.load(ordering: .acquiring) {
      if ContinuousClock.now > deadline { throw Defect("requests that do not come back") }
      sched_yield()
    }
    var facts = stat()
    guard fstat(file, &facts) == 0, facts.st_size == Self.sectors * 512 else {
      throw Defect("the image has another size")
    }
  }

  private final class Flag: Sendable { let value = Atomic<Bool>(false) }

  /// A request somewhere between honest and wild: header, data, status, each as the input says.
  private func addRequest(_ feed: inout Feed, _ count: inout UInt16, _ free: inout Int) {
    let header = FuzzMemory.data + 64 * UInt64(count % 64)
    let type: UInt32 = feed.pick([0, 1, 4, 8, 11, 13, 5, 2, 0x8000_0000, UInt32(feed.u8())])
    let sector: UInt64 = feed.pick([
      UInt64(feed.u8() % 64), 0, 63, 64, .max, .max / 512, .max / 512 + 1, 1 << 55,
      feed.isEmpty ? 0 : feed.u64(),
    ])
    let host = memory.regions[2].host + Int(header - FuzzMemory.data)
    clx_store_relaxed_u64(host, UInt64(type))
    clx_store_relaxed_u64(host + 8, sector)
    // What follows the header may be a range list: {sector, sectors, flags}.
    clx_store_relaxed_u64(host + 16, UInt64(feed.u8()))
    clx_store_relaxed_u64(host + 24, UInt64(feed.u8()) | UInt64(feed.u8() & 3) << 32)
    var pieces: [(UInt64, UInt32, Bool)] = []
    let readable = feed.pick([16, 16, 16, 32, 32, 15, 17, 0, 1, 48])
    let cut = feed.below(readable + 1)
    pieces.append((header, UInt32(cut), false))
    pieces.append((header + UInt64(cut), UInt32(readable - cut), false))
    for _ in 0..<feed.below(4) {
      pieces.append(
        (
          FuzzMemory.address(&feed), feed.pick([512, 512, 1024, 4096, 1, 511, 0, FuzzMemory.length(&feed)]),
          feed.flag()
        ))
    }
    if feed.u8() & 7 != 7 { pieces.append((header + 60, 1, true)) }
    if feed.u8() & 15 != 15 { pieces.sort { !$0.2 && $1.2 } }
    let head = free
    for (i, piece) in pieces.enumerated() where free < Self.size {
      let last = i == pieces.count - 1 || free == Self.size - 1
      let flags: UInt64 = (piece.2 ? 2 : 0) | (last ? 0 : 1)
      let place = memory.ring(16 * free)
      clx_store_relaxed_u64(place, piece.0)
      clx_store_relaxed_u64(place + 8, UInt64(piece.1) | flags << 32 | UInt64(free + 1) << 48)
      free += 1
    }
    clx_store_relaxed_u16(memory.ring(16 * Self.size + 4 + 2 * Int(count)), UInt16(head))
    count += 1
    clx_store_release_u16(memory.ring(16 * Self.size + 2), count)
  }
}
