// What an image's storage can do, found out when it is opened, and the calls that change it other than by writing. The
// probe is the control side's; the calls are made on a helper thread, since each may take long.

import CLinux
import Glibc
import HostIO

/// How requests reach the storage.
public enum BlockEngine: String, Sendable {
  /// Nothing is kept.
  case null
  /// io_uring through the page cache, or straight to the device (`--direct`).
  case ring, direct
  /// preadv and pwritev in place: memory file systems have no asynchronous way, and io_uring would only hand each request
  /// to a worker thread.
  case inline
  /// preadv in place, and writes copied into a mapping: hugetlbfs has no other way.
  case huge
}

/// Limits and abilities of the storage, in bytes.
public struct BlockLimits: Sendable, Equatable {
  /// The smallest unit the storage takes (a device's logical block); 512 through the page cache.
  public var logicalBlock: UInt32 = 512
  /// What O_DIRECT asks of the addresses and lengths of memory.
  public var memoryAlignment: UInt32 = 1
  /// The unit it likes, and the one it reads and writes underneath.
  public var physicalBlock: UInt32 = 512
  public var preferred: UInt32 = 512
  public var optimal: UInt32 = 0
  /// A block device's logical block, however it is opened; 512 for a file.
  public var deviceBlock: UInt32 = 512
  /// Whether blocks can be given back.
  public var discards = false
}

/// An open image, as helper threads use it.
struct BlockStorage: Sendable {
  let raw: Int32
  let isBlockDevice: Bool
  /// The block device's own unit; 512 for a file.
  let deviceBlock: UInt32
  /// Where writes go that the file system has no call for.
  let pages: HugePages?

  /// Gives blocks back to the file system or the device; parts of a device's blocks stay as they are. Bytes; 0 or a negated
  /// errno.
  func discard(_ offset: UInt64, _ count: UInt64) -> Int32 {
    guard isBlockDevice else { return allocate(CLX_FALLOC_PUNCH_HOLE, offset, count) }
    let whole = wholeBlocks(offset, count)
    return whole.isEmpty ? 0 : ioctl(clx_BLKDISCARD, whole)
  }

  /// Makes bytes read as zeros; where the range says so, by giving their blocks back.
  func zero(_ range: BlockRange, limits: BlockLimits, bounce: BlockBounce) -> Int32 {
    let end = range.offset + range.count
    if isBlockDevice {
      // The device zeroes whole blocks; what is left of others is written.
      let whole = wholeBlocks(range.offset, range.count)
      if whole.isEmpty { return bounce.zero(range.offset, range.count, storage: self, limits: limits) }
      var code = ioctl(clx_BLKZEROOUT, whole)
      if code == 0 {
        code = bounce.zero(
          range.offset, whole.lowerBound - range.offset, storage: self, limits: limits)
      }
      if code == 0 {
        code = bounce.zero(whole.upperBound, end - whole.upperBound, storage: self, limits: limits)
      }
      return code
    }
    let mode = range.mayUnmap ? CLX_FALLOC_PUNCH_HOLE : CLX_FALLOC_ZERO_RANGE
    // A part of a block that is being written as a whole would come back with it.
    let isWhole = range.offset % UInt64(limits.logicalBlock) == 0 && end % UInt64(limits.logicalBlock) == 0
    let code =
      isWhole
      ? allocate(mode, range.offset, range.count)
      : bounce.alone { allocate(mode, range.offset, range.count) }
    return code == -EOPNOTSUPP
      ? bounce.zero(range.offset, range.count, storage: self, limits: limits) : code
  }

  /// The blocks of the device that lie wholly in a range, in bytes.
  private func wholeBlocks(_ offset: UInt64, _ count: UInt64) -> Range<UInt64> {
    let block = UInt64(deviceBlock)
    let start = (offset + block - 1) / block * block
    return start..<max(start, (offset + count) / block * block)
  }

  /// Makes everything written so far durable.
  func sync() -> Int32 { fdatasync(raw) == 0 ? 0 : -errno }

  private func allocate(_ mode: UInt32, _ offset: UInt64, _ count: UInt64) -> Int32 {
    while true {
      if clx_fallocate(raw, Int32(mode | CLX_FALLOC_KEEP_SIZE), Int64(offset), Int64(count)) == 0 { return 0 }
      if errno != EINTR { return -errno }
    }
  }

  private func ioctl(_ request: UInt, _ bytes: Range<UInt64>) -> Int32 {
    var range: (UInt64, UInt64) = (bytes.lowerBound, bytes.upperBound - bytes.lowerBound)
    // SAFETY: both requests take two u64.
    return unsafe clx_ioctl_pointer(raw, request, &range) == 0 ? 0 : -errno
  }
}

/// Finds out what a descriptor's storage can do; changes nothing.
struct BlockProbe {
  private(set) var limits = BlockLimits()
  private(set) var engine: BlockEngine

  init(_ raw: Int32, facts: FileFacts, byteCount: UInt64, direct: Bool) {
    engine = direct ? .direct : facts.isTmpfs ? .inline : facts.isHuge ? .huge : .ring
    if facts.kind == .block {
      askDevice(raw)
      limits.discards = Self.deviceDiscards(raw)
    } else {
      askFile(raw, byteCount)
    }
    if direct { askDirect(raw) } else { limits.logicalBlock = 512 }
  }

  private mutating func askDevice(_ raw: Int32) {
    func number(_ request: UInt) -> UInt32? {
      var value: UInt32 = 0
      // SAFETY: each of these requests fills a 32-bit number.
      return unsafe clx_ioctl_pointer(raw, request, &value) == 0 && value > 0 ? value : nil
    }
    limits.logicalBlock = number(clx_BLKSSZGET) ?? 512
    limits.deviceBlock = limits.logicalBlock
    limits.physicalBlock = number(clx_BLKPBSZGET) ?? limits.logicalBlock
    limits.preferred = number(clx_BLKIOMIN) ?? limits.physicalBlock
    limits.optimal = number(clx_BLKIOOPT) ?? 0
  }

  /// Where the kernel does not say, the largest unit in use works with all of them.
  private mutating func askDirect(_ raw: Int32) {
    var memory: UInt32 = 0
    var offset: UInt32 = 0
    // SAFETY: fills the local values.
    guard unsafe clx_direct_alignment(raw, &memory, &offset) == 0 else {
      limits.logicalBlock = max(limits.logicalBlock, 4096)
      limits.memoryAlignment = limits.logicalBlock
      return
    }
    limits.logicalBlock = max(512, offset)
    limits.memoryAlignment = memory
  }

  private mutating func askFile(_ raw: Int32, _ byteCount: UInt64) {
    var facts = stat()
    // SAFETY: fills the local value.
    if unsafe fstat(raw, &facts) == 0, facts.st_blksize >= 512, facts.st_blksize <= 1 << 20 {
      limits.physicalBlock = UInt32(facts.st_blksize)
      limits.preferred = limits.physicalBlock
    }
    // Past the end of the file there is nothing to punch: only the ability is told.
    let code = clx_fallocate(
      raw, Int32(CLX_FALLOC_PUNCH_HOLE | CLX_FALLOC_KEEP_SIZE), Int64(byteCount), 4096)
    limits.discards = code == 0
    // Some file systems take that for a change of the file.
    if code == 0 {
      let leave = timespec(tv_sec: 0, tv_nsec: (1 << 30) - 2)  // UTIME_OMIT
      let times = [leave, facts.st_mtim]
      // SAFETY: reads the array's two elements.
      _ = unsafe times.withUnsafeBufferPointer { unsafe futimens(raw, $0.baseAddress) }
    }
  }

  /// A device that discards says how much at once, in sysfs.
  private static func deviceDiscards(_ raw: Int32) -> Bool {
    var facts = stat()
    // SAFETY: fills the local value; a NUL-terminated path; reads into a local buffer.
    guard unsafe fstat(raw, &facts) == 0 else { return false }
    let number = UInt64(facts.st_rdev)
    let major = (number >> 8) & 0xfff
    let minor = (number & 0xff) | ((number >> 12) & 0xfff00)
    for place in ["", "../"] {
      let path = "/sys/dev/block/\(major):\(minor)/\(place)queue/discard_max_bytes"
      let file = unsafe OwnedFD(adopting: clx_open(path, O_RDONLY | O_CLOEXEC, 0))
      guard file.raw >= 0 else { continue }
      var bytes = [UInt8](repeating: 0, count: 32)
      let count = unsafe bytes.withUnsafeMutableBytes { unsafe read(file.raw, $0.baseAddress, $0.count) }
      return count > 0 && bytes[..<count].contains { $0 > UInt8(ascii: "0") && $0 <= UInt8(ascii: "9") }
    }
    return false
  }
}
