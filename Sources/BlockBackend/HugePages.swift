// An image on hugetlbfs, whose files the kernel reads as any other and has no write for: writes are copied into a mapping. Made when
// the image is opened; used by helper threads, one after another (`BlockBounce`).

import CLinux
import Glibc
import HostIO

/// An image's huge pages. Those past the size that it had when it was opened are not there to be written.
final class HugePages: Sendable {
  private let image: Mapping
  private let raw: Int32
  private let pageBytes: UInt64

  /// Nil where the image cannot be mapped.
  init?(_ file: borrowing OwnedFD, facts: FileFacts, byteCount: UInt64) {
    guard let length = Int(exactly: byteCount),
      let image = try? Mapping(file: file, offset: 0, length: length, pageSize: facts.pageSize)
    else { return nil }
    image.excludeFromCoreDumps()
    (self.image, raw, pageBytes) = (image, file.raw, UInt64(facts.pageSize))
  }

  /// Copies a buffer to its place; 0 or a negated errno: ENOSPC where there is no huge page left for it.
  func write(_ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) -> Int32 {
    guard offset <= UInt64(image.length), buffer.count <= image.length - Int(offset) else { return -EIO }
    guard let source = buffer.baseAddress else { return 0 }
    let start = offset / pageBytes * pageBytes
    // A page that cannot be had is an error here, and a signal where it is touched first.
    while clx_fallocate(
      raw, Int32(CLX_FALLOC_KEEP_SIZE), Int64(start), Int64(offset - start) + Int64(buffer.count)) != 0
    {
      if errno != EINTR { return errno == ENOMEM ? -ENOSPC : -errno }
    }
    let lost = clx_shared_lost_here()
    // SAFETY: the place is in the mapping, the source as long as the buffer.
    unsafe (image.base + Int(offset)).copyMemory(from: source, byteCount: buffer.count)
    // The image was cut short meanwhile.
    return clx_shared_lost_here() == lost ? 0 : -EIO
  }
}
