// What a frame costs the device when it goes through a tap: the processor time of the queue's thread, and of a bare loop of system
// calls beside it, in turn, so that the machine's mood is the same for all. `net-bench [--json] [FRAMES]`, as root: the tap is in a
// network namespace of its own. The 64 KiB frames are what offloads make of a stream, the 1514 bytes what it is without.

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

  /// Nanoseconds of processor time a frame, of each round, by what took it.
  struct Figure {
    let name: String
    var ours: [Double] = []
    var bare: [Double] = []

    var json: String {
      "{\"name\":\"tap, \(name)\",\"measure\":\"processor\",\"unit\":\"ns a frame\",\"higherIsBetter\":false,"
        + "\"ours\":\(ours),\"peer\":\(bare)}"
    }
  }

  static func main() throws {
    let words = CommandLine.arguments.dropFirst()
    let frames = words.compactMap { Int($0) }.first ?? 100_000
    guard clx_unshare_network() == 0 else {
      write("net-bench: needs the right to make a network namespace (root)\n")
      exit(1)
    }
    let tap = try Tap.open(name: "bench0", queues: 1, create: true)
    defer { tap.retire() }
    var figures: [Figure] = []
    for (name, bytes, segment) in [("60 B", 60, false), ("1514 B", 1514, false), ("64 KiB", 65000, true)] {
      let wanted = segment ? max(1, frames / 10) : frames
      let frame = Frame(bytes: bytes, segment: segment)
      var direct = Figure(name: "guest sends \(name), --tap-io direct")
      var ring = Figure(name: "guest sends \(name)")
      var received = Figure(name: "guest receives \(name)")
      for _ in 0..<rounds {
        direct.ours.append(try Transmission(tap, frame, usesRing: false).run(wanted))
        direct.bare.append(bare(tap, frame, wanted))
        ring.ours.append(try Transmission(tap, frame, usesRing: true).run(wanted))
        let both = try Reception(tap, frame).run(max(Reception.batch, wanted / 4))
        received.ours.append(both.ours)
        received.bare.append(both.bare)
      }
      ring.bare = direct.bare
      figures += [direct, ring, received]
    }
    if words.contains("--json") {
      write("[" + figures.map(\.json).joined(separator: ",\n") + "]\n")
      return
    }
    write("tap: ns of processor time a frame, median of \(rounds) (least to most); bare: readv, writev\n")
    for figure in figures {
      write("  \(padded(figure.name, 36)) ours \(text(figure.ours))   bare \(text(figure.bare))\n")
    }
  }

  private static func text(_ runs: [Double]) -> String {
    let sorted = runs.sorted()
    return "\(Int(sorted[runs.count / 2])) (\(Int(sorted[0])) to \(Int(sorted[runs.count - 1])))"
  }

  /// The same frames by the shortest loop there is.
  private static func bare(_ tap: Tap, _ frame: Frame, _ count: Int) -> Double {
    // The header's size is still what the device agreed on.
    let raw = tap.descriptors[0]
    // SAFETY: reads from the array's own storage.
    return unsafe frame.content.withUnsafeBytes { bytes in
      guard let base = bytes.baseAddress else { return 0 }
      var parts = unsafe (
        iovec(iov_base: UnsafeMutableRawPointer(mutating: base), iov_len: 12),
        iovec(iov_base: UnsafeMutableRawPointer(mutating: base + 12), iov_len: bytes.count - 12)
      )
      let before = ThreadClock.own.now
      for _ in 0..<count {
        _ = unsafe withUnsafePointer(to: &parts) {
          unsafe writev(raw, UnsafeRawPointer($0).assumingMemoryBound(to: iovec.self), 2)
        }
      }
      return Double(ThreadClock.own.now - before) / Double(count)
    }
  }

  private static func padded(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(0, width - text.count))
  }

  private static func write(_ text: String) {
    // SAFETY: writes from the string's own storage.
    unsafe text.withCString { unsafe _ = Glibc.write(STDOUT_FILENO, $0, strlen($0)) }
  }
}

/// A header and a frame that the kernel takes.
struct Frame {
  let content: [UInt8]
  let isSegmented: Bool

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
    isSegmented = segment
  }
}

/// The processor time of one thread of this process, exact to the moment.
struct ThreadClock {
  private let id: clockid_t
  static let own = ThreadClock(id: CLOCK_THREAD_CPUTIME_ID)

  private init(id: clockid_t) { self.id = id }

  /// The thread of a name, of which there is one at a time.
  init?(of name: String) {
    var found: Int32?
    // SAFETY: entries are read before the next call; the directory is closed once.
    guard let folder = unsafe opendir("/proc/self/task") else { return nil }
    defer { unsafe closedir(folder) }
    while let entry = unsafe readdir(folder) {
      let number = unsafe withUnsafeBytes(of: entry.pointee.d_name) {
        unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
      }
      guard let thread = Int32(number), Self.name(of: thread) == name else { continue }
      found = thread
    }
    guard let found else { return nil }
    // The kernel's clock of a thread: CPUCLOCK_SCHED and CPUCLOCK_PERTHREAD_MASK (clock_getcpuclockid(3)).
    id = ~found << 3 | 6
  }

  /// Nanoseconds.
  var now: UInt64 {
    var time = timespec()
    // SAFETY: fills the local value.
    unsafe clock_gettime(id, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }

  private static func name(of thread: Int32) -> String {
    // SAFETY: a NUL-terminated copy of the path; reads into the array's own storage.
    let file = OwnedFD(adopting: unsafe clx_open("/proc/self/task/\(thread)/comm", O_RDONLY | O_CLOEXEC, 0))
    var bytes = [UInt8](repeating: 0, count: 32)
    let count = unsafe bytes.withUnsafeMutableBytes { unsafe read(file.raw, $0.baseAddress, $0.count) }
    return String(decoding: bytes.prefix(max(0, count - 1)), as: UTF8.self)
  }
}
