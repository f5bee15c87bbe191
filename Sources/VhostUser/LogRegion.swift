// The shared memory of a dirty log (VHOST_USER_SET_LOG_BASE), and the eventfd that tells of new marks (SET_LOG_FD). Mapped by
// the control thread, marked by queue threads.

import CLinux
import HostIO
import VirtQueue

/// Why a log is refused.
enum LogRegionError: Error, Equatable {
  case file(HostError)
  case notMappable(FileFacts.Kind)
  case badRange(offset: UInt64, size: UInt64, file: UInt64)
  /// The guest's memory needs more bits than there are.
  case tooSmall(size: UInt64, needed: UInt64)
}

extension DirtyLog {
  /// Maps a log of `size` bytes at any `offset` in a file, which must hold all of it; `memoryEnd`: where the memory ends
  /// whose pages it has to have bits for.
  convenience init(
    file: borrowing OwnedFD, offset: UInt64, size: UInt64, memoryEnd: UInt64
  ) throws(LogRegionError) {
    let facts: FileFacts
    do { facts = try FileFacts(of: file) } catch { throw .file(error) }
    guard facts.kind == .regular else { throw .notMappable(facts.kind) }
    let (end, overflow) = offset.addingReportingOverflow(size)
    guard size > 0, !overflow, end <= facts.size, end <= UInt64(Int64.max) else {
      throw .badRange(offset: offset, size: size, file: facts.size)
    }
    let needed = DirtyLog.byteCount(forMemoryUpTo: memoryEnd)
    guard size >= needed else { throw .tooSmall(size: size, needed: needed) }
    let pageSize = UInt64(facts.pageSize)
    let start = offset / pageSize * pageSize
    // As guest memory: nobody may cut it off under us, where the file still lets us say so.
    _ = clx_fcntl_int(file.raw, Int32(CLX_F_ADD_SEALS), Int(CLX_F_SEAL_SHRINK))
    do {
      let mapping = try Mapping(
        file: file, offset: start, length: Int(end - start), pageSize: facts.pageSize)
      // SAFETY: `size` bytes from there are in the mapping, which the log keeps.
      unsafe self.init(
        base: mapping.base + Int(offset - start), byteCount: Int(size), owner: mapping, cutOff: mapping.lost)
    } catch {
      throw .file(error)
    }
  }
}

/// The front-end's eventfd for new marks.
final class LogSignal: Sendable {
  private let descriptor: OwnedFD
  init(_ descriptor: consuming OwnedFD) { self.descriptor = descriptor }
  /// Any thread.
  func ring() { EventFD.signal(descriptor.raw) }
}
