// What a frame costs the device when it goes through a tap: the processor time of the queue's thread, by calls
// (`--tap-io direct`), by operations of the io_uring (`ring`), and of a bare loop of system calls beside them, in turn, so
// that the machine's mood is the same for all. `net-bench [FRAMES]`, as root: the tap is in a network namespace of its own.

import CLinux
import DeviceKit
import Glibc
import HostIO
import NetBackend
import VhostFrontend
import VirtQueue

@main
struct NetBench {
  static let rounds = 5

  static func main() throws {
    let frames = CommandLine.arguments.dropFirst().compactMap { Int($0) }.first ?? 100_000
    guard clx_unshare_network() == 0 else {
      write("net-bench: needs the right to make a network namespace (root)\n")
      exit(1)
    }
    let tap = try Tap.open(name: "bench0", queues: 1, create: true)
    defer { tap.retire() }
    write("tap, transmit: ns of processor time a frame, median of \(rounds) (least to most)\n")
    for (name, bytes, segment) in [
      ("60 bytes", 60, false), ("1514 bytes", 1514, false), ("64 KiB, to be cut", 65000, true),
    ] {
      let wanted = segment ? max(1, frames / 10) : frames
      let frame = Frame(bytes: bytes, segment: segment)
      var figures: [String: [Double]] = [:]
      for _ in 0..<rounds {
        figures["direct", default: []].append(try transmit(tap, frame, wanted, ring: false))
        figures["ring", default: []].append(try transmit(tap, frame, wanted, ring: true))
        figures["bare writev", default: []].append(bare(tap, frame, wanted))
      }
      for way in ["direct", "ring", "bare writev"] {
        let sorted = (figures[way] ?? []).sorted()
        write(
          "  \(padded(name, 20)) \(padded(way, 12)) \(Int(sorted[rounds / 2])) (\(Int(sorted[0])) to \(Int(sorted[rounds - 1])))\n"
        )
      }
    }
  }

  /// A header and a frame that the kernel takes.
  struct Frame {
    let content: [UInt8]

    init(bytes: Int, segment: Bool) {
      // IPv4 and TCP to an address that nobody has: it is dropped as soon as it has arrived.
      var frame: [UInt8] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]
      frame += [
        0x45, 0, UInt8((bytes - 14) >> 8), UInt8((bytes - 14) & 0xff), 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1,
        10, 0, 0, 2,
      ]
      frame += [0, 9, 0, 9, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0, 0, 0, 0, 0, 0]
      frame += [UInt8](repeating: 0, count: bytes - frame.count)
      let header: [UInt8] =
        segment ? [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0] : [UInt8](repeating: 0, count: 12)
      content = header + frame
    }
  }

  /// A driver sends `count` frames through the device; nanoseconds of the queue thread's processor time each.
  static func transmit(_ tap: Tap, _ frame: Frame, _ count: Int, ring usesRing: Bool) throws -> Double {
    var options = NetDevice.Options()
    options.usesRing = usesRing
    let device = NetDevice(place: .tap(tap), options: options)
    let thread = try QueueThread(
      name: "net-bench", cpus: [], policy: .adaptive, seats: DeviceHost.seats(for: device, threads: 1),
      files: device.descriptors.count)
    let host = try DeviceHost(device: device, threads: [thread])
    _ = try thread.start()
    defer { thread.finish() }
    let features = FeatureSet([.version1, NetFeature.checksum, NetFeature.hostTSO4])
    device.negotiated(features)
    let arena = try GuestArena(bytes: 4 << 20)
    var driver = try SplitDriverRing(DriverRingOptions(size: 256, eventIndex: true), in: arena)
    let kick = try Doorbell()
    let place = try arena.allocate(frame.content.count, alignment: 4096)
    try arena.write(frame.content, at: place)
    let areas = driver.areas
    let failure = host.start(
      1,
      QueueSetup(
        layout: RingLayout(
          size: 256, descriptorArea: arena.userAddress(of: areas.descriptors),
          driverArea: arena.userAddress(of: areas.driver), deviceArea: arena.userAddress(of: areas.device),
          base: driver.base, indirect: false, eventIndex: true),
        features: features, map: try map(of: arena), enabled: true, kick: kick.raw, call: nil,
        onFault: { _ in }))
    if let failure { throw failure }
    // As Linux does: a header of its own, and the frame.
    let chain = [DescriptorSpec(place, 12), DescriptorSpec(place + 12, UInt32(frame.content.count - 12))]
    let before = threadTime(named: "net-bench")
    var added = 0
    var used = 0
    while used < count {
      while added < count, driver.freeDescriptors >= 2, driver.add(chain.span, table: .direct) != nil {
        added += 1
      }
      driver.publish()
      if driver.needsKick() { kick.ring() }
      while driver.poll() != nil { used += 1 }
    }
    let spent = threadTime(named: "net-bench") - before
    _ = host.stop([1])
    return Double(spent) / Double(count)
  }

  private final class Keeper: Sendable {}

  private static func map(of arena: GuestArena) throws -> GuestMemoryMap {
    let regions = try arena.table.map { region in
      // SAFETY: the arena outlives the queue, and the map is used by it alone.
      unsafe GuestRegion(
        guestAddress: region.guestAddress, size: region.size, userAddress: region.userAddress,
        host: try arena.pointer(to: region.guestAddress, bytes: Int(region.size)), owner: Keeper())
    }
    return try GuestMemoryMap(generation: 1, regions: regions)
  }

  /// The same frames by the shortest loop there is.
  static func bare(_ tap: Tap, _ frame: Frame, _ count: Int) -> Double {
    // The header's size is still what the device agreed on.
    let raw = tap.descriptors[0]
    // SAFETY: reads from the array's own storage.
    return unsafe frame.content.withUnsafeBytes { bytes in
      guard let base = bytes.baseAddress else { return 0 }
      var parts = unsafe (
        iovec(iov_base: UnsafeMutableRawPointer(mutating: base), iov_len: 12),
        iovec(iov_base: UnsafeMutableRawPointer(mutating: base + 12), iov_len: bytes.count - 12)
      )
      let before = ownTime()
      for _ in 0..<count {
        _ = unsafe withUnsafePointer(to: &parts) {
          unsafe writev(raw, UnsafeRawPointer($0).assumingMemoryBound(to: iovec.self), 2)
        }
      }
      return Double(ownTime() - before) / Double(count)
    }
  }

  private static func ownTime() -> UInt64 {
    var time = timespec()
    // SAFETY: fills the local value.
    unsafe clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }

  /// Nanoseconds that a thread of this process has run, by its name (proc(5), schedstat).
  private static func threadTime(named name: String) -> UInt64 {
    var total: UInt64 = 0
    // SAFETY: entries are read before the next call; the directory is closed once.
    guard let folder = unsafe opendir("/proc/self/task") else { return 0 }
    defer { unsafe closedir(folder) }
    while let entry = unsafe readdir(folder) {
      let id = unsafe withUnsafeBytes(of: entry.pointee.d_name) {
        unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
      }
      guard text(of: "/proc/self/task/\(id)/comm").hasPrefix(name) else { continue }
      let words = text(of: "/proc/self/task/\(id)/schedstat").split(separator: " ")
      total += words.first.flatMap { UInt64($0) } ?? 0
    }
    return total
  }

  private static func text(of path: String) -> String {
    // SAFETY: a NUL-terminated copy of the path; reads into the array's own storage.
    let file = OwnedFD(adopting: unsafe clx_open(path, O_RDONLY | O_CLOEXEC, 0))
    var bytes = [UInt8](repeating: 0, count: 256)
    let count = unsafe bytes.withUnsafeMutableBytes { unsafe read(file.raw, $0.baseAddress, $0.count) }
    return String(decoding: bytes.prefix(max(0, count)), as: UTF8.self)
  }

  private static func padded(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(0, width - text.count))
  }

  private static func write(_ text: String) {
    // SAFETY: writes from the string's own storage.
    unsafe text.withCString { unsafe _ = Glibc.write(STDOUT_FILENO, $0, strlen($0)) }
  }
}
