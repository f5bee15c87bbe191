// A whole session over a real socket: messages of every kind with descriptors of every kind, whole, cut and joined. Rings
// that get so far run on a queue thread, on memory that the input shares. The session's end must leave no descriptor behind.

import CLinux
import DeviceKit
import Glibc
import HostIO
import Logging
import VhostUser
import VirtQueue

enum SessionTarget {
  static let target = FuzzTarget(
    name: "session", about: "codec and session over a socketpair, with descriptors", longest: 2048
  ) { input in
    guard let stage else { throw Defect("nothing to play with") }
    var feed = Feed(input)
    try stage.play(&feed)
  }

  // SAFETY: targets run on one thread.
  private nonisolated(unsafe) static let stage = try? SessionStage()
}

/// Answers each chain with its first byte, as often as there is room.
private final class EchoDevice: VirtioDevice {
  let identity = DeviceIdentity(id: 0x7f, name: "echo", queueLimit: 2)
  let features: FeatureSet = [FeatureSet(bit: 0)]
  let supportsIOMMU = true
  func readConfig(_ out: inout ConfigWriter) { out.append(UInt64(0x1122_3344_5566_7788)) }
  func writeConfig(_ bytes: RawSpan, at offset: Int) throws(DeviceError) {
    if offset > 8 { throw .configRefused(offset: offset, count: bytes.byteCount) }
  }
  func start(_ queue: consuming QueueStart) throws(DeviceError) { queue.run { EchoWorker() } }
}

private struct EchoWorker: QueueWorker {
  mutating func service<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    while let chain = q.next() {
      let written = Self.answer(chain)
      q.complete(chain, written: written)
    }
  }

  private static func answer(_ chain: borrowing Chain) -> UInt32 {
    chain.writable.store(chain.readable.load(UInt8.self) ?? 0, at: 0) ? 1 : 0
  }
}

/// A descriptor in an array.
private final class SharedFD {
  let raw: Int32
  init(_ raw: Int32) { self.raw = raw }
  deinit { close(raw) }
}

/// Device, thread, and the descriptors that messages carry.
private final class SessionStage {
  private static let memoryBytes = 0x20000
  private let host: DeviceHost
  private let thread: QueueThread
  private let log: Logger
  private let memory: OwnedFD
  private let mapped: Mapping
  private let small: OwnedFD
  private let kick: EventFD
  private let call: EventFD
  private let null: OwnedFD
  private let pair: UnixStreamPair
  private var lowest: Int32 = -1
  /// Ends of pipes that are ours until the session has ended.
  private var channels: [SharedFD] = []

  init() throws {
    thread = try QueueThread(name: "fuzz", cpus: [], policy: .interrupt, seats: 2, files: 0)
    host = try DeviceHost(device: EchoDevice(), threads: [thread])
    _ = try thread.start()
    var log = Logger(label: "fuzz") { _ in SwiftLogNoOpLogHandler() }
    log.logLevel = .critical
    self.log = log
    memory = OwnedFD(adopting: clx_memfd_create("fuzz", UInt32(CLX_MFD_CLOEXEC)))
    small = OwnedFD(adopting: clx_memfd_create("fuzz", UInt32(CLX_MFD_CLOEXEC)))
    ftruncate(memory.raw, off_t(Self.memoryBytes))
    ftruncate(small.raw, 100)
    mapped = try Mapping(file: memory, offset: 0, length: Self.memoryBytes)
    kick = try EventFD()
    call = try EventFD()
    null = OwnedFD(adopting: clx_open("/dev/null", O_RDWR | O_CLOEXEC, 0))
    pair = try UnixStream.pair()
  }

  func play(_ feed: inout Feed) throws {
    // Rings may lie anywhere in it: some of what they find there is a chain.
    memset(mapped.base, 0, 4096)
    for i in 0..<feed.below(64) { mapped.base.storeBytes(of: feed.u8(), toByteOffset: i, as: UInt8.self) }
    var ends: [Int32] = [-1, -1]
    guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0 else {
      throw Defect("no socket to play over")
    }
    let mine = OwnedFD(adopting: ends[0])
    let server = try VhostUserServer(host: host, endpoint: .connected(OwnedFD(adopting: ends[1])), log: log)
    try server.start()
    while !feed.isEmpty {
      var (bytes, descriptors) = message(&feed)
      switch feed.u8() {
      case 255: bytes.removeLast(min(bytes.count, 1 + feed.below(8)))
      case 254: bytes += message(&feed).bytes
      case 253: descriptors += [kick.raw, null.raw]
      case 252 where bytes.count > 1:
        send(Array(bytes[..<(bytes.count / 2)]), descriptors, to: mine.raw)
        (bytes, descriptors) = (Array(bytes[(bytes.count / 2)...]), [])
      default: break
      }
      send(bytes, descriptors, to: mine.raw)
      if feed.u8() & 7 == 0 { kick.signal() }
    }
    // What was sent is read before the end is.
    shutdown(mine.raw, Int32(SHUT_WR))
    let deadline = ContinuousClock.now + .seconds(20)
    while !Poll.one(server.endDescriptor, .readable, milliseconds: 1).contains(.readable) {
      drain(mine.raw)
      if ContinuousClock.now > deadline { throw Defect("a session that does not end") }
    }
    server.finish()
    channels = []
    try checkDescriptors()
  }

  /// Takes the answers that are there: a back-end whose answers nobody reads waits, and leaves at last.
  private func drain(_ raw: Int32) {
    var bytes: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    // Descriptors that nobody asks for are closed by the kernel.
    withUnsafeMutableBytes(of: &bytes) { buffer in
      while recv(raw, buffer.baseAddress, buffer.count, Int32(MSG_DONTWAIT)) > 0 {}
    }
  }

  private func send(_ bytes: [UInt8], _ descriptors: [Int32], to raw: Int32) {
    guard !bytes.isEmpty else { return }
    drain(raw)
    var tries = 0
    while tries < 20_000, Poll.one(raw, .writable, milliseconds: 1).isEmpty {
      drain(raw)
      tries += 1
    }
    let length = descriptors.count * 4
    var control = [UInt8](repeating: 0, count: max(8, clx_cmsg_space(length)))
    bytes.withUnsafeBytes { bytes in
      control.withUnsafeMutableBytes { control in
        var vector = iovec(
          iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
        withUnsafeMutablePointer(to: &vector) { vector in
          var header = msghdr()
          header.msg_iov = vector
          header.msg_iovlen = 1
          if !descriptors.isEmpty {
            header.msg_control = control.baseAddress
            header.msg_controllen = clx_cmsg_space(length)
            if let entry = clx_cmsg_first(&header), let data = clx_cmsg_data(entry) {
              entry.pointee.cmsg_level = SOL_SOCKET
              entry.pointee.cmsg_type = Int32(SCM_RIGHTS)
              entry.pointee.cmsg_len = clx_cmsg_len(length)
              for (i, raw) in descriptors.enumerated() {
                data.storeBytes(of: raw, toByteOffset: 4 * i, as: Int32.self)
              }
            }
          }
          _ = sendmsg(raw, &header, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
        }
      }
    }
  }

  /// The lowest number that is free does not rise from input to input. On a busy machine the threads of earlier inputs may
  /// still be on their way out, each with a few descriptors.
  private func checkDescriptors() throws {
    let deadline = ContinuousClock.now + .seconds(20)
    while true {
      let probe = clx_fcntl_int(null.raw, F_DUPFD_CLOEXEC, 3)
      close(probe)
      if lowest < 0 { lowest = probe }
      if probe <= lowest + 8 { return }
      if ContinuousClock.now > deadline {
        throw Defect("descriptors are left open: the lowest free one is \(probe), was \(lowest)")
      }
      sched_yield()
    }
  }

  // MARK: Messages

  /// The back-end's end of a pipe for the device's state; one that comes in has it whole, and ends.
  private func channel(_ feed: inout Feed, incoming: Bool) -> SharedFD? {
    var ends: [Int32] = [-1, -1]
    guard pipe(&ends) == 0 else { return nil }
    let (reading, writing) = (SharedFD(ends[0]), SharedFD(ends[1]))
    guard incoming else {
      channels.append(reading)
      return writing
    }
    var state = DeviceState()
    let bytes: [UInt8]
    switch feed.below(3) {
    case 0:
      state.set(1, feed.u64())
      bytes = StateFormat.bytes(of: state, device: 0x7f)
    case 1:
      for _ in 0..<feed.below(4) { _ = state.set(UInt16(feed.u8()), bytes: feed.take(feed.below(12))) }
      bytes = StateFormat.bytes(of: state, device: feed.pick([0x7f, 2]))
    default: bytes = feed.take(feed.below(80))
    }
    bytes.withUnsafeBytes { _ = write(writing.raw, $0.baseAddress, $0.count) }
    return reading
  }

  private func descriptor(_ feed: inout Feed) -> Int32 {
    feed.pick([memory.raw, kick.raw, call.raw, small.raw, null.raw, pair.first.raw])
  }

  /// A message of any kind: header, payload as its kind mostly has it, descriptors as it mostly needs them.
  private func message(_ feed: inout Feed) -> (bytes: [UInt8], descriptors: [Int32]) {
    let request = feed.pick((1...45).map { UInt32($0) } + [0, 200, 0x7fff_ffff])
    var payload: [UInt8] = []
    var descriptors: [Int32] = []
    func put(_ value: UInt64, _ count: Int = 8) {
      for i in 0..<count { payload.append(UInt8(truncatingIfNeeded: value >> UInt64(8 * i))) }
    }
    func address() -> UInt64 {
      let base: UInt64 = feed.pick([0x7000_0000, 0, 0x7000_1000, 0xffff_ffff_ffff_f000])
      return base &+ 16 &* UInt64(feed.u8()) &+ UInt64(feed.u8() == 255 ? feed.u8() : 0)
    }
    func region() {
      put(feed.pick([0, 0x10_0000, 0xffff_ffff_ffff_0000, UInt64(feed.u8()) << 12]))
      put(feed.pick([UInt64(Self.memoryBytes), 4096, 0, .max, 0x10000]))
      put(feed.pick([0x7000_0000, 0, .max - 4096, UInt64(feed.u8()) << 12]))
      put(feed.pick([0, 0, 4096, 16, .max]))
      descriptors.append(feed.u8() & 15 == 15 ? descriptor(&feed) : memory.raw)
    }
    switch request {
    case 2:
      put(
        feed.pick([
          0x1_7000_0001, 0x5_7000_0001, .max, feed.isEmpty ? 0 : feed.u64(), 0x3_7000_0001, 0x7_7000_0001,
        ]))
    case 16: put(feed.pick([0x8b22b, 0, .max, UInt64(feed.u16())]))
    case 5:
      let count = feed.pick([1, 2, 8, 9, 0, 0xffff_ffff])
      put(UInt64(count), 4)
      put(0, 4)
      for _ in 0..<min(count, 9) { region() }
    case 37, 38:
      put(0)
      region()
      if request == 38, feed.flag() { descriptors = [] }
    case 8, 10, 11, 18:
      put(UInt64(feed.u8() == 255 ? feed.u32() : UInt32(feed.u8() & 3)), 4)
      put(feed.pick([1, 8, 0, 256, 32768, 65535, 0x8000_8000, UInt64(feed.u8())]), 4)
    case 9:
      put(UInt64(feed.u8() & 3), 4)
      put(UInt64(feed.u8() & 1), 4)
      for _ in 0..<4 { put(address()) }
    case 12, 13, 14:
      let word = UInt64(feed.u8() & 3) | (feed.u8() & 3 == 3 ? 0x100 : 0)
      put(word)
      if word & 0x100 == 0 { descriptors.append(feed.u8() & 7 == 7 ? descriptor(&feed) : kick.raw) }
    case 22:
      // Rings lie at 0x70000000 and on: as their own addresses, or as some that lead there.
      let iova: UInt64 = feed.pick([0x7000_0000, 0x7000_1000, 0, .max - 4095, UInt64(feed.u8()) << 12])
      put(iova)
      put(feed.pick([4096, UInt64(Self.memoryBytes), 1, 0, .max, UInt64(feed.u16())]))
      put(feed.pick([0x7000_0000, 0x7000_1000, 0, .max, UInt64(feed.u8()) << 12]))
      put(feed.pick([3, 1, 2, 0, 255]), 1)
      put(feed.pick([2, 2, 3, 1, 4, 0]), 1)
      put(0, 6)
    case 24, 25:
      let size = feed.pick([8, 1, 256, 257, 0, 0xffff_ffff])
      put(feed.pick([0, 8, 255, 0xffff_ffff]), 4)
      put(UInt64(size), 4)
      put(UInt64(feed.u8() & 1), 4)
      for _ in 0..<min(size, 300) { payload.append(0) }
    case 31, 32:
      put(feed.pick([4096, 0, 1 << 63, UInt64(Self.memoryBytes)]))
      put(feed.pick([0, 64, 4096, .max]))
      put(feed.pick([2, 1, 0, 3, 65535]), 2)
      put(feed.pick([8, 256, 0, 65535, 32768]), 2)
      put(0, 4)
      if request == 32 { descriptors.append(feed.u8() & 7 == 7 ? descriptor(&feed) : memory.raw) }
    case 21: descriptors.append(feed.u8() & 1 == 0 ? pair.first.raw : descriptor(&feed))
    case 42:
      let direction = feed.below(3)
      put(UInt64(direction), 4)
      put(feed.u8() == 255 ? UInt64(feed.u32()) : 0, 4)
      if let end = channel(&feed, incoming: direction == 1) {
        descriptors.append(end.raw)
        channels.append(end)
      }
    case 6, 7: descriptors.append(descriptor(&feed))
    default: payload = feed.take(feed.pick([0, 0, 8, 1, 40]))
    }
    var size = UInt32(payload.count)
    var flags: UInt32 = feed.u8() & 3 == 0 ? 9 : 1
    switch feed.u8() {
    case 255: size = feed.u32()
    case 254: flags = feed.u32()
    case 253: descriptors.append(descriptor(&feed))
    case 252: descriptors = []
    default: break
    }
    var bytes: [UInt8] = []
    for word in [request, flags, size] {
      for i in 0..<4 { bytes.append(UInt8(truncatingIfNeeded: word >> UInt32(8 * i))) }
    }
    return (bytes + payload, descriptors)
  }
}
