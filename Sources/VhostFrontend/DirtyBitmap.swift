// A migration's dirty bitmap, the front-end's end of it: memory that a back-end marks and we clear (vhost-user,
// "Migration"). Any thread.

import CLinux
import Glibc

/// One bit for each 4096 bytes of guest addresses, in a memfd of its own.
@safe public final class DirtyBitmap: Sendable {
  public let descriptor: FrontendDescriptor
  /// Where it lies in the descriptor.
  public let description: WireLog
  // SAFETY: `length` bytes, mapped in init and unmapped in deinit; the bitmap is `inPage` bytes in.
  private nonisolated(unsafe) let mapping: UnsafeMutableRawPointer
  private let length: Int
  private let inPage: Int

  /// - Parameter end: where the guest's memory ends.
  /// - Parameter offset: where in the file it begins; need not be whole pages.
  public init(memoryUpTo end: UInt64, offset: UInt64 = 0) throws(FrontendError) {
    let size = max(1, (end + 4096 * 8 - 1) / (4096 * 8))
    // SAFETY: the name is a literal.
    let raw = unsafe clx_memfd_create("dirty-bitmap", CLX_MFD_CLOEXEC)
    guard raw >= 0 else { throw .last("memfd_create") }
    descriptor = FrontendDescriptor(adopting: raw)
    guard ftruncate(raw, off_t(clamping: offset + size)) == 0 else { throw .last("ftruncate") }
    description = WireLog(size: size, offset: offset)
    inPage = Int(offset % 4096)
    length = inPage + Int(size)
    // SAFETY: a new mapping wherever the kernel likes.
    let start = unsafe mmap(
      nil, length, PROT_READ | PROT_WRITE, MAP_SHARED, raw, off_t(offset) - off_t(inPage))
    guard let start = unsafe start, unsafe start != MAP_FAILED else { throw .last("mmap") }
    unsafe mapping = unsafe start
  }

  // SAFETY: the mapping of init; nobody holds it any more.
  deinit { _ = unsafe munmap(mapping, length) }

  /// The pages marked since the last take, by number; clears them as a migration does before it copies.
  public func take() -> Set<UInt64> {
    var pages: Set<UInt64> = []
    for index in 0..<Int(description.size) {
      // SAFETY: index < size.
      let place = unsafe mapping + inPage + index
      guard unsafe clx_load_relaxed_u8(place) != 0 else { continue }
      let bits = unsafe clx_exchange_acquire_u8(place, 0)
      for bit in 0..<8 where bits >> UInt8(bit) & 1 == 1 { pages.insert(UInt64(index * 8 + bit)) }
    }
    return pages
  }
}
