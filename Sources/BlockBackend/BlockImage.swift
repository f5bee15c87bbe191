// What a disk's blocks are kept in: a raw file, a block device, or nothing at all (for measurement). Opened by the
// program before its sandbox closes, read by the device.

import CLinux
import Glibc
import HostIO

/// Why an image cannot be served.
public enum BlockImageError: Error, Equatable, Sendable {
  case cannotOpen(path: String, code: Int32)
  /// Not a regular file and not a block device.
  case notAnImage(path: String, what: String)
  /// The size in bytes is 0 or no multiple of 512.
  case oddSize(path: String, bytes: UInt64)
  case readOnlyDevice(path: String)
  /// The file system has no O_DIRECT.
  case noDirect(path: String)
}

/// A disk's storage.
public struct BlockImage: ~Copyable, Sendable {
  /// Nil: a disk that moves no data.
  private let descriptor: OwnedFD?
  public let byteCount: UInt64
  public let isReadOnly: Bool
  public let engine: BlockEngine
  public let limits: BlockLimits
  /// The pages of an image on a memory file system.
  private let mappings: ImageMappings?
  /// What of an image is in the page cache.
  private let cached: CacheMappings?
  /// The same of one on hugetlbfs that is written.
  private let pages: HugePages?
  var map: ImageMap? { mappings?.map }
  var cacheMap: CacheMap? { cached?.map }
  private let isBlockDevice: Bool
  /// The same for every opening of the same storage, different for any other: "device:inode", or the null disk's size.
  public let identity: String

  /// The descriptor, ours for as long as the image lives.
  var raw: Int32? {
    switch descriptor {
    case .some(let descriptor): descriptor.raw
    case .none: nil
    }
  }

  /// The storage's size now, in bytes; nil where it cannot be told.
  var currentByteCount: UInt64? {
    guard let raw else { return nil }
    if isBlockDevice {
      var size: UInt64 = 0
      // SAFETY: BLKGETSIZE64 fills a u64.
      return unsafe clx_ioctl_pointer(raw, clx_BLKGETSIZE64, &size) == 0 ? size : nil
    }
    return (try? FileFacts(of: raw))?.size
  }

  /// The storage, for calls that are no request of the ring's; nil for a disk that keeps nothing.
  var storage: BlockStorage? {
    raw.map {
      BlockStorage(raw: $0, isBlockDevice: isBlockDevice, deviceBlock: limits.deviceBlock, pages: pages)
    }
  }

  /// Opens a raw image. Creates and changes nothing. `direct`: past the page cache (O_DIRECT).
  public init(path: String, readOnly: Bool, direct: Bool = false) throws(BlockImageError) {
    // O_NONBLOCK: a FIFO must not hold us up; it means nothing to files.
    let flags = (readOnly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | (direct ? clx_O_DIRECT : 0)
    // SAFETY: a NUL-terminated path; flags only.
    let raw = unsafe clx_open(path, flags, 0)
    guard raw >= 0 else {
      let code = errno
      if code == EINVAL, direct { throw .noDirect(path: path) }
      if code == EISDIR { throw .notAnImage(path: path, what: "a directory") }
      throw .cannotOpen(path: path, code: code)
    }
    let descriptor = OwnedFD(adopting: raw)
    var facts = stat()
    // SAFETY: fills the local value.
    guard unsafe fstat(raw, &facts) == 0 else { throw .cannotOpen(path: path, code: errno) }
    var bytes = UInt64(max(0, facts.st_size))
    switch facts.st_mode & S_IFMT {
    case S_IFREG: break
    case S_IFBLK:
      var size: UInt64 = 0
      var locked: Int32 = 0
      // SAFETY: BLKGETSIZE64 fills a u64, BLKROGET an int.
      guard unsafe clx_ioctl_pointer(raw, clx_BLKGETSIZE64, &size) == 0 else {
        throw .cannotOpen(path: path, code: errno)
      }
      if !readOnly, unsafe clx_ioctl_pointer(raw, clx_BLKROGET, &locked) == 0, locked != 0 {
        throw .readOnlyDevice(path: path)
      }
      bytes = size
    case let kind: throw .notAnImage(path: path, what: Self.name(of: kind))
    }
    guard bytes > 0, bytes % sectorBytes == 0 else { throw .oddSize(path: path, bytes: bytes) }
    guard let fileFacts = try? FileFacts(of: raw) else { throw .cannotOpen(path: path, code: errno) }
    let probe = BlockProbe(raw, facts: fileFacts, byteCount: bytes, direct: direct)
    let mustCopy = probe.engine == .huge && !readOnly
    let pages = mustCopy ? HugePages(descriptor, facts: fileFacts, byteCount: bytes) : nil
    guard !mustCopy || pages != nil else { throw .cannotOpen(path: path, code: ENOMEM) }
    mappings = probe.engine == .inline ? ImageMappings(descriptor, byteCount: bytes) : nil
    // Where a page may have to come over a network, or from another process, only the ring may wait for it.
    let isLocal = fileFacts.kind == .block || fileFacts.isOnLocalDisk
    cached = probe.engine == .ring && isLocal ? CacheMappings(descriptor, byteCount: bytes) : nil
    self.pages = pages
    self.descriptor = consume descriptor
    byteCount = bytes
    isReadOnly = readOnly
    engine = probe.engine
    limits = probe.limits
    isBlockDevice = fileFacts.kind == .block
    identity = "\(facts.st_dev):\(facts.st_ino)"
  }

  /// A disk of `nullBytes` bytes (a multiple of 512) that keeps nothing: reads leave the driver's buffer as it is.
  public init(nullBytes: UInt64) throws(BlockImageError) {
    guard nullBytes > 0, nullBytes % sectorBytes == 0 else { throw .oddSize(path: "null", bytes: nullBytes) }
    descriptor = nil
    engine = .null
    mappings = nil
    cached = nil
    pages = nil
    limits = BlockLimits()
    isBlockDevice = false
    byteCount = nullBytes
    isReadOnly = false
    identity = "null:\(nullBytes)"
  }

  private static func name(of kind: mode_t) -> String {
    switch kind {
    case S_IFDIR: "a directory"
    case S_IFCHR: "a character device"
    case S_IFIFO: "a FIFO"
    case S_IFSOCK: "a socket"
    default: "no file"
    }
  }
}
