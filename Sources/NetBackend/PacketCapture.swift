// A copy of every frame, in the file format of tcpdump (pcap, nanoseconds, Ethernet). Opened before anything is served;
// written by the queue threads, one write a frame, so that theirs do not mix.

import CLinux
import Glibc
import HostIO
import Synchronization

public final class PacketCapture: Sendable {
  private let file: OwnedFD
  /// A write that was cut short (a full disk) has spoiled the end of the file: nothing follows it.
  private let hasFailed = Atomic<Bool>(false)
  /// The file, where it was not there before.
  private let made: String?
  private static let longest = 1 << 18

  /// Makes the file, or empties the one that is there.
  public init(path: String) throws(HostError) {
    let flags = O_WRONLY | O_APPEND | O_CLOEXEC | O_NONBLOCK
    // SAFETY (both calls): a NUL-terminated copy of the path.
    var raw = unsafe clx_open(path, flags | O_CREAT | O_EXCL, 0o600)
    made = raw >= 0 ? path : nil
    if raw < 0, errno == EEXIST { raw = unsafe clx_open(path, flags | O_TRUNC, 0) }
    file = OwnedFD(adopting: raw)
    guard file.raw >= 0 else { throw .system(call: "open '\(path)'", code: errno) }
    // magic of nanosecond stamps, version 2.4, zone 0, precision 0, longest frame, LINKTYPE_ETHERNET
    let words: [UInt32] = [0xa1b2_3c4d, 4 << 16 | 2, 0, 0, UInt32(Self.longest), 1]
    let bytes = words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * UInt32($0))) } }
    // SAFETY: writes from the array's own storage.
    let written = unsafe bytes.withUnsafeBytes { unsafe write(file.raw, $0.baseAddress, $0.count) }
    guard written == bytes.count else {
      throw .system(call: "write '\(path)'", code: written < 0 ? errno : ENOSPC)
    }
  }

  /// Takes the file away again, where nothing came of the start.
  public func withdraw() {
    // SAFETY: a NUL-terminated copy of the path.
    if let made { unsafe unlink(made) }
  }

  /// Where it is written to.
  public var descriptor: Int32 { file.raw }

  /// Notes the `bytes` that follow the first `skipping` bytes of the vectors. False where it could not.
  // SAFETY: the caller's vectors name memory that may be read.
  func note(_ vectors: UnsafePointer<iovec>, count: Int, skipping: Int, bytes: Int) -> Bool {
    guard !hasFailed.load(ordering: .relaxed) else { return false }
    var time = timespec()
    unsafe clock_gettime(CLOCK_REALTIME, &time)
    let length = UInt64(bytes)
    // {u32 seconds, u32 nanoseconds, u32 bytes here, u32 bytes of the frame}
    let record = (
      UInt64(UInt32(truncatingIfNeeded: time.tv_sec)) | UInt64(time.tv_nsec) << 32, length | length << 32
    )
    // SAFETY: the temporary has room for the record and every vector; each part ends within its vector.
    return unsafe withUnsafeBytes(of: record) { record in
      unsafe withUnsafeTemporaryAllocation(of: iovec.self, capacity: count + 1) { list in
        unsafe list[0] = iovec(
          iov_base: UnsafeMutableRawPointer(mutating: record.baseAddress), iov_len: record.count)
        var used = 1
        var skip = skipping
        var left = bytes
        for i in 0..<count where left > 0 {
          let (base, length) = unsafe (vectors[i].iov_base, vectors[i].iov_len)
          if skip >= length {
            skip -= length
            continue
          }
          let part = min(length - skip, left)
          unsafe list[used] = iovec(iov_base: base.map { unsafe $0 + skip }, iov_len: part)
          used += 1
          left -= part
          skip = 0
        }
        let written = unsafe writev(file.raw, list.baseAddress, Int32(truncatingIfNeeded: used))
        if written == record.count + bytes { return true }
        if written > 0 { hasFailed.store(true, ordering: .relaxed) }
        return false
      }
    }
  }
}
