// Memory mapped into this process, with one owner. Made by the control thread; the bytes belong to whoever holds it.

import CLinux
import Glibc

/// A mapping; unmapped when the last reference goes.
@safe public final class Mapping: Sendable {
  // SAFETY: `length` bytes, mapped in `init` and unmapped in `deinit`.
  public nonisolated(unsafe) let base: UnsafeMutableRawPointer
  /// Bytes, a multiple of the page size it was made with.
  public let length: Int

  /// Maps a shared file, readable and writable, without reserving swap. `offset` and the length are multiples of
  /// `pageSize` (huge pages: theirs). Throws what mmap says: EACCES for a descriptor that may not be written, EPERM for a
  /// seal against writing, ENOMEM.
  public init(file: borrowing OwnedFD, offset: UInt64, length: Int, pageSize: Int = 4096) throws(HostError) {
    let rounded = length.addingReportingOverflow(pageSize - 1)
    guard length > 0, !rounded.overflow, offset <= UInt64(Int64.max) else {
      throw .system(call: "mmap", code: EINVAL)
    }
    let bytes = rounded.partialValue / pageSize * pageSize
    // SAFETY: a new mapping; nothing of ours is replaced.
    let address = unsafe mmap(
      nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | Int32(MAP_NORESERVE), file.raw, Int(offset))
    guard let address = unsafe address, unsafe address != MAP_FAILED else { throw .last("mmap") }
    unsafe base = unsafe address
    self.length = bytes
  }

  deinit { unsafe munmap(base, length) }

  /// Keeps the bytes out of core dumps: they are a guest's, not ours. Best effort.
  public func excludeFromCoreDumps() { unsafe _ = madvise(base, length, MADV_DONTDUMP) }
}

/// What a descriptor refers to.
public struct FileFacts: Sendable, Equatable {
  public enum Kind: Sendable, Equatable { case regular, block, directory, character, pipe, socket, link, other }

  public let kind: Kind
  /// Bytes, for a regular file.
  public let size: UInt64
  /// The pages it is mapped in: the system's, or those of its hugetlbfs.
  public let pageSize: Int
  /// On tmpfs (memfds are), where RWF_NOWAIT does not work.
  public let isTmpfs: Bool

  public init(of descriptor: borrowing OwnedFD) throws(HostError) { try self.init(of: descriptor.raw) }

  public init(of raw: Int32) throws(HostError) {
    var facts = stat()
    // SAFETY: fills the local value.
    guard unsafe fstat(raw, &facts) == 0 else { throw .last("fstat") }
    kind =
      switch facts.st_mode & S_IFMT {
      case S_IFREG: .regular
      case S_IFBLK: .block
      case S_IFDIR: .directory
      case S_IFCHR: .character
      case S_IFIFO: .pipe
      case S_IFSOCK: .socket
      case S_IFLNK: .link
      default: .other
      }
    size = UInt64(max(0, facts.st_size))
    var type: UInt64 = 0
    var block: UInt64 = 0
    // SAFETY: fills the local values.
    let known = unsafe clx_fstatfs(raw, &type, &block) == 0
    let huge = known && type == UInt64(CLX_HUGETLBFS_MAGIC)
    pageSize = huge ? Int(clamping: block) : sysconf(Int32(_SC_PAGESIZE))
    isTmpfs = known && type == UInt64(CLX_TMPFS_MAGIC)
  }
}
