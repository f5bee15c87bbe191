// Memory mapped into this process, with one owner. Made by the control thread; the bytes belong to whoever
// holds it.

import CLinux
import Glibc

/// A mapping; unmapped when the last reference goes.
///
/// A shared file may be cut off by whoever else has it. Touching what is gone reads zeros, and is counted
/// (`clx_shared_add`): the process lives, and whoever works with the memory looks at `lost`.
@safe public final class Mapping: Sendable {
  // SAFETY: `length` bytes, mapped in `init` and unmapped in `deinit`.
  public nonisolated(unsafe) let base: UnsafeMutableRawPointer
  // SAFETY: one word, written by the handler of faults in this mapping, which is out of its table before the word goes.
  /// Counts the pages that were gone when they were touched; read it atomically. As long as the mapping lives.
  public nonisolated(unsafe) let lost: UnsafeMutablePointer<UInt64>
  /// Where it stands in the table of shared mappings; -1: memory of our own, which nobody can cut off.
  private let place: Int32
  /// Bytes: what was asked for, rounded up to the page size it was made with.
  public let length: Int

  /// Maps a shared file, readable and writable, without reserving swap. `offset` is a multiple of the file's
  /// page size (`FileFacts.pageSize`: for huge pages theirs), and the length is rounded up to one. Throws
  /// what mmap says: EACCES for a descriptor that may not be written, EPERM for a seal against writing,
  /// ENODEV for what has no pages, EINVAL, ENOMEM. Whether the file reaches so far is the caller's to check:
  /// pages beyond its end are lost from the beginning. `closed`: nothing of it may be touched before `open`. Not `writable`:
  /// whoever writes to it faults, and the descriptor need not let us.
  public init(
    file: borrowing OwnedFD, offset: UInt64, length: Int, pageSize: Int = 4096, closed: Bool = false,
    writable: Bool = true
  ) throws(HostError) {
    guard let offset = Int(exactly: offset) else { throw .system(call: "mmap", code: EINVAL) }
    let (start, bytes) = try unsafe Self.map(
      MAP_SHARED | Int32(MAP_NORESERVE), file.raw, offset, length, pageSize,
      protection: closed ? PROT_NONE : writable ? PROT_READ | PROT_WRITE : PROT_READ)
    let count = UnsafeMutablePointer<UInt64>.allocate(capacity: 1)
    unsafe count.initialize(to: 0)
    // SAFETY: a mapping of whole pages, new and ours; both stay until `deinit` has taken it out again.
    let place = unsafe clx_shared_add(start, bytes, pageSize, count)
    guard place >= 0 else {
      unsafe munmap(start, bytes)
      unsafe count.deallocate()
      throw .system(call: "mmap", code: ENOMEM)
    }
    (unsafe base, self.length) = unsafe (start, bytes)
    unsafe lost = unsafe count
    self.place = place
  }

  /// Maps zeroed memory of our own.
  public init(anonymous length: Int) throws(HostError) {
    (unsafe base, self.length) = try unsafe Self.map(
      MAP_PRIVATE | Int32(MAP_ANONYMOUS), -1, 0, length, sysconf(Int32(_SC_PAGESIZE)))
    unsafe lost = .allocate(capacity: 1)
    unsafe lost.initialize(to: 0)
    place = -1
  }

  private static func map(
    _ flags: Int32, _ file: Int32, _ offset: Int, _ length: Int, _ pageSize: Int,
    protection: Int32 = PROT_READ | PROT_WRITE
  ) throws(HostError) -> (UnsafeMutableRawPointer, Int) {
    let rounded = length.addingReportingOverflow(pageSize &- 1)
    guard length > 0, pageSize > 0, pageSize & (pageSize - 1) == 0, !rounded.overflow else {
      throw .system(call: "mmap", code: EINVAL)
    }
    // munmap of huge pages wants whole ones.
    let bytes = rounded.partialValue & ~(pageSize - 1)
    // SAFETY: a new mapping; nothing of ours is replaced.
    let address = unsafe mmap(nil, bytes, protection, flags, file, offset)
    guard let address = unsafe address, unsafe address != MAP_FAILED else { throw .last("mmap") }
    return unsafe (address, bytes)
  }

  // SAFETY: the mapping is whole and ours, and nobody holds it any more.
  deinit {
    clx_shared_remove(place)
    unsafe munmap(base, length)
    unsafe lost.deallocate()
  }

  /// How many of its pages were gone when they were touched.
  public var lostPages: UInt64 { unsafe clx_load_relaxed_u64(lost) }

  /// Lets a closed mapping be read and written.
  func open() throws(HostError) {
    // SAFETY: our own mapping.
    guard unsafe mprotect(base, length, PROT_READ | PROT_WRITE) == 0 else { throw .last("mprotect") }
  }

  /// Puts a file without a byte in its place: who touches it finds it gone (`lostPages`), system calls say EFAULT.
  func cutOff() {
    // SAFETY: a constant name.
    let nothing = unsafe OwnedFD(adopting: clx_memfd_create("gone", UInt32(CLX_MFD_CLOEXEC)))
    let flags = MAP_SHARED | Int32(MAP_NORESERVE) | Int32(MAP_FIXED)
    // SAFETY: all of our own mapping and nothing else is replaced; whoever holds it is told by SIGBUS, which is handled.
    _ = unsafe mmap(base, length, PROT_READ | PROT_WRITE, flags, nothing.raw, 0)
  }

  /// Keeps the bytes out of core dumps: they are a guest's, not ours. False where the kernel will not.
  @discardableResult
  public func excludeFromCoreDumps() -> Bool {
    // SAFETY: our own mapping.
    unsafe madvise(base, length, MADV_DONTDUMP) == 0
  }
}
