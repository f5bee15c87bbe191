// What a descriptor refers to. Asked by the control thread.

import CLinux
import Glibc

public struct FileFacts: Sendable, Equatable {
  /// `other`: what has no type, such as eventfds and timers.
  public enum Kind: Sendable, Equatable {
    case regular, block, directory, character, pipe, socket, link, other
  }

  public let kind: Kind
  /// Bytes, for a regular file.
  public let size: UInt64
  /// The pages it is mapped in: the system's, or those of its hugetlbfs.
  public let pageSize: Int
  /// On hugetlbfs.
  public let isHuge: Bool
  /// On tmpfs (memfds are), where RWF_NOWAIT does not work.
  public let isTmpfs: Bool
  /// On a file system of this machine's own disks, whose pages stay in the page cache until memory is wanted.
  public let isOnLocalDisk: Bool

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
    isHuge = known && type == UInt64(CLX_HUGETLBFS_MAGIC)
    pageSize = isHuge ? Int(clamping: block) : sysconf(Int32(_SC_PAGESIZE))
    isTmpfs = known && type == UInt64(CLX_TMPFS_MAGIC)
    let local = [CLX_EXT4_MAGIC, CLX_XFS_MAGIC, CLX_BTRFS_MAGIC, CLX_F2FS_MAGIC]
    isOnLocalDisk = known && local.contains { UInt64($0) == type }
  }
}
