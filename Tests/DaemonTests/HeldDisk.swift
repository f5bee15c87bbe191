// A file whose reads, writes and flushes can be held back: a small FUSE server in this process (kernel protocol 7.31), so
// that "slow storage" is slow exactly as long as a test wants. Made and driven on any thread; served on one of its own.

import Foundation
import GuestHarness

/// A file of zeros, served from memory. Needs /dev/fuse and the right to mount.
final class HeldDisk: Sendable {
  /// Whether this process may have one; tests that need one are skipped where not.
  static let isPossible: Bool = {
    guard let disk = try? HeldDisk(bytes: 4096) else { return false }
    return disk.descriptor >= 0
  }()

  /// The file, open. A child that inherits it as its descriptor 3 opens it anew at `pathInChild`; it has no name.
  let descriptor: Int32
  static let pathInChild = "/proc/self/fd/3"
  private let server: Server

  /// How requests come here.
  enum Way {
    /// Each, and who makes it waits for it, in io_uring's submission too.
    case direct
    /// Through the page cache, as with most files.
    case cached
    /// Those of an O_DIRECT descriptor each, and nobody waits: as a block device has them.
    case asynchronous
  }

  init(bytes: Int, way: Way = .direct) throws {
    let folder = try TemporaryFolder()
    let path = folder.file("held")
    try Data().write(to: URL(fileURLWithPath: path))
    let device = open("/dev/fuse", O_RDWR | O_CLOEXEC)
    guard device >= 0 else { throw HarnessError("/dev/fuse: \(String(cString: strerror(errno)))") }
    let server = Server(device: device, bytes: bytes, way: way)
    self.server = server
    let options = "fd=\(device),rootmode=100600,user_id=\(getuid()),group_id=\(getgid()),allow_other"
    guard mount("held", path, "fuse", UInt(MS_NOSUID | MS_NODEV), options) == 0 else {
      let reason = String(cString: strerror(errno))
      close(device)
      throw HarnessError("mount of a FUSE file: \(reason)")
    }
    Thread { server.serve() }.start()
    descriptor = open(path, O_RDWR | O_CLOEXEC)
    let reason = String(cString: strerror(errno))
    // What is open stays; nothing is left to take away should this process die.
    umount2(path, Int32(MNT_DETACH))
    guard descriptor >= 0 else { throw HarnessError("open of a FUSE file: \(reason)") }
    // One close that is answered with ENOSYS, and the kernel asks at no other: a test process that is interrupted would
    // wait in its last close for an answer of its own.
    close(dup(descriptor))
  }

  deinit {
    server.release()
    if descriptor >= 0 { close(descriptor) }
  }

  /// From now on keeps every read and write that touches these bytes, and flushes where asked to.
  func hold(_ bytes: Range<UInt64>, flushes: Bool = false) { server.hold(bytes, flushes: flushes) }

  /// From now on every read and write that touches these bytes fails, as long as there are any.
  func fail(_ bytes: Range<UInt64>, with error: Int32 = EIO) { server.fail(bytes, with: error) }

  /// The next reads and writes fail, so many of them, and succeed when they are tried again.
  func falter(_ times: Int, with error: Int32) { server.falter(times, with: error) }

  /// From now on no read or write moves more than so many bytes.
  func shorten(to bytes: Int) { server.shorten(to: bytes) }

  /// From now on each read and write is answered after a time of its own, up to this one.
  func delay(upToMilliseconds most: Int) { server.delay(upToMilliseconds: most) }

  /// Answers what is kept, as done or as failed and not done, and goes on keeping what comes.
  func settle(doing: Bool) { server.settle(doing: doing) }

  /// Answers what is kept, and keeps nothing more.
  func release() { server.release() }

  /// Waits until so many requests are kept.
  func waitHeld(_ count: Int, within seconds: Double = 30) throws {
    guard server.waitHeld(count, by: Date(timeIntervalSinceNow: seconds)) else {
      throw HarnessError("the storage was asked for less than \(count) held requests in \(seconds) s")
    }
  }

  var held: Int { server.held }

  /// What it holds, without asking the kernel: that would wait for what is kept.
  func bytes(at offset: Int, count: Int) -> [UInt8] { server.bytes(at: offset, count: count) }
}

// SAFETY (Sendable): everything that changes is behind `condition`; `device` is a number.
private final class Server: @unchecked Sendable {
  private struct Request {
    let opcode: UInt32
    let unique: UInt64
    let body: [UInt8]
  }

  private let device: Int32
  private let condition = NSCondition()
  private var content: [UInt8]
  private var kept: [Request] = []
  private var region: Range<UInt64> = 0..<0
  private var keepsFlushes = false
  private var broken: (bytes: Range<UInt64>, error: Int32) = (0..<0, EIO)
  private var faltering: (times: Int, error: Int32) = (0, EIO)
  private var longest = Int.max
  private var slowest: Int?
  private var isClosed = false
  private let uid = getuid()
  /// FOPEN_DIRECT_IO and FOPEN_PARALLEL_DIRECT_WRITES, or nothing.
  private let openFlags: UInt32
  /// FUSE_ASYNC_DIO, or nothing.
  private let wayFlags: UInt32

  init(device: Int32, bytes: Int, way: HeldDisk.Way) {
    self.device = device
    openFlags = way == .direct ? 1 | 1 << 6 : 0
    wayFlags = way == .asynchronous ? 1 << 15 : 0
    content = [UInt8](repeating: 0, count: bytes)
  }

  // MARK: From the tests

  func hold(_ bytes: Range<UInt64>, flushes: Bool) {
    condition.withLock {
      region = bytes
      keepsFlushes = flushes
    }
  }

  func fail(_ bytes: Range<UInt64>, with error: Int32) { condition.withLock { broken = (bytes, error) } }

  func falter(_ times: Int, with error: Int32) { condition.withLock { faltering = (times, error) } }

  func shorten(to bytes: Int) { condition.withLock { longest = bytes } }

  func delay(upToMilliseconds most: Int) { condition.withLock { slowest = most } }

  func release() {
    condition.withLock {
      region = 0..<0
      keepsFlushes = false
      for request in kept { answer(request) }
      kept = []
      condition.broadcast()
    }
  }

  func settle(doing: Bool) {
    condition.withLock {
      for request in kept {
        if doing { answer(request) } else { reply(request, error: EIO) }
      }
      kept = []
      condition.broadcast()
    }
  }

  func waitHeld(_ count: Int, by date: Date) -> Bool {
    condition.withLock {
      while kept.count < count { if !condition.wait(until: date) { return false } }
      return true
    }
  }

  var held: Int { condition.withLock { kept.count } }

  func bytes(at offset: Int, count: Int) -> [UInt8] {
    condition.withLock { Array(content[offset..<offset + count]) }
  }

  // MARK: The kernel's side

  /// Until the last descriptor of the file is closed, and the kernel lets the connection go.
  func serve() {
    var buffer = [UInt8](repeating: 0, count: 1 << 20)
    while true {
      let count = read(device, &buffer, buffer.count)
      if count < 0, errno == EINTR || errno == ENOENT || errno == EAGAIN { continue }
      guard count >= 40 else { break }
      let request = Request(
        opcode: number(buffer, 4), unique: number(buffer, 8), body: Array(buffer[40..<count]))
      condition.withLock { handle(request) }
    }
    // Answers that are still to come have nobody to go to, and the number may soon be another file's.
    condition.withLock {
      isClosed = true
      close(device)
    }
  }

  private func handle(_ request: Request) {
    switch request.opcode {
    case 2, 42: break  // FORGET, BATCH_FORGET have no answer
    case 36:  // INTERRUPT: who waits for it gives up, as with storage that lets itself be interrupted
      let target: UInt64 = number(request.body, 0)
      guard let index = kept.firstIndex(where: { $0.unique == target }) else { break }
      reply(kept.remove(at: index), error: EINTR)
    case 15, 16:
      let start: UInt64 = number(request.body, 8)
      let size: UInt32 = number(request.body, 16)
      let bytes = start..<start + UInt64(size)
      if broken.bytes.overlaps(bytes) { return reply(request, error: broken.error) }
      if faltering.times > 0 {
        faltering.times -= 1
        return reply(request, error: faltering.error)
      }
      if region.overlaps(bytes) { return keep(request) }
      guard let most = slowest else { return answer(request) }
      DispatchQueue.global().asyncAfter(deadline: .now() + .milliseconds(Int.random(in: 0...most))) {
        [self] in
        condition.withLock { answer(request) }
      }
    case 20: if keepsFlushes { keep(request) } else { answer(request) }
    default: answer(request)
    }
  }

  private func keep(_ request: Request) {
    kept.append(request)
    condition.broadcast()
  }

  private func answer(_ request: Request) {
    switch request.opcode {
    case 26: reply(request, initialisation)
    case 3, 4: reply(request, attributes)  // GETATTR, SETATTR
    case 14: reply(request, words(UInt64(1)) + words(openFlags, 0))
    case 15:
      let start = Int(clamping: number(request.body, 8) as UInt64)
      let size = min(longest, Int(number(request.body, 16) as UInt32))
      reply(request, Array(content[min(start, content.count)..<min(start + size, content.count)]))
    case 16:
      let start = Int(clamping: number(request.body, 8) as UInt64)
      let size = min(longest, Int(number(request.body, 16) as UInt32))
      guard start + size <= content.count else { return reply(request, error: ENOSPC) }
      content.replaceSubrange(start..<start + size, with: request.body[40..<40 + size])
      reply(request, words(UInt32(size), UInt32(0)))
    case 18, 20: reply(request, [])  // RELEASE, FSYNC
    default: reply(request, error: ENOSYS)
    }
  }

  /// 7.31, no flags but ASYNC_READ, BIG_WRITES and MAX_PAGES: 256 KiB at once.
  private var initialisation: [UInt8] {
    words(UInt32(7), 31, 0, 1 << 0 | 1 << 5 | 1 << 22 | wayFlags) + words(UInt16(64), 48)
      + words(UInt32(256 << 10), 1)
      + words(UInt16(64), 0) + [UInt8](repeating: 0, count: 32)
  }

  private var attributes: [UInt8] {
    let size = UInt64(content.count)
    return words(UInt64(0)) + words(UInt32(0), 0) + words(UInt64(1), size, size / 512, 0, 0, 0)
      + words(UInt32(0), 0, 0, 0o100600, 1, uid, 0, 0, 4096, 0)
  }

  private func reply(_ request: Request, _ payload: [UInt8] = [], error: Int32 = 0) {
    guard !isClosed else { return }
    let bytes =
      words(UInt32(16 + payload.count), UInt32(bitPattern: -error)) + words(request.unique) + payload
    _ = write(device, bytes, bytes.count)
  }

  private func number<Number: FixedWidthInteger>(_ bytes: [UInt8], _ offset: Int) -> Number {
    guard bytes.count >= offset + Number.bitWidth / 8 else { return 0 }
    return (0..<Number.bitWidth / 8).reversed().reduce(0) { $0 << 8 | Number(bytes[offset + $1]) }
  }

  private func words<Number: FixedWidthInteger>(_ numbers: Number...) -> [UInt8] {
    numbers.flatMap { number in withUnsafeBytes(of: number.littleEndian) { Array($0) } }
  }
}
