// An image on a memory file system, mapped: a read whose pages are there is a copy, without a system call. Made when the image
// is opened; used by every queue thread at once, without a lock.

import CLinux
import Glibc
import HostIO

/// What keeps an image's map: held by the image.
final class ImageMappings: Sendable {
  fileprivate let image: Mapping
  /// A bit a page: there is data. A byte a chunk: it was looked at.
  fileprivate let bits: Mapping
  fileprivate let looked: Mapping
  private let byteCount: UInt64

  /// Nil where the image cannot be mapped: it is then read the longer way.
  init?(_ file: borrowing OwnedFD, byteCount: UInt64) {
    guard let length = Int(exactly: byteCount), length > 0 else { return nil }
    let pages = (byteCount >> ImageMap.pageShift) + 1
    guard let image = try? Mapping(file: file, offset: 0, length: length),
      let bits = try? Mapping(anonymous: Int(pages / 8 + 1)),
      let looked = try? Mapping(anonymous: Int(pages / ImageMap.chunkPages + 1))
    else { return nil }
    image.excludeFromCoreDumps()
    (self.image, self.bits, self.looked, self.byteCount) = (image, bits, looked, byteCount)
  }

  var map: ImageMap { ImageMap(self, byteCount: byteCount) }
}

/// The image's pages as this process sees them, and which of them are known to hold data. Words without an owner: who
/// has one holds the image.
///
/// Reading a hole through a mapping would give the file a page that it did not have, so reads go by the mapping only where a
/// page is known to be there: from what `mincore` says of two mebibytes at their first touch, and from our own writes. The
/// knowledge is a hint. Where it is wrong the file gets a page, or the read takes the longer way: never other bytes.
///
/// Writes do not go this way. A page of the guest's that is gone reads as zeros here, and must not reach the storage so; the
/// kernel's own copy fails instead.
@safe struct ImageMap: Sendable {
  fileprivate static let pageShift: UInt64 = 12
  /// Pages of a chunk: what one look is for. 2 MiB.
  fileprivate static let chunkPages: UInt64 = 512

  // SAFETY: of the image's mappings, which its owner keeps: `byteCount` bytes; a bit a page; a byte a chunk; a count. The
  // hints are changed by any thread, atomically.
  private nonisolated(unsafe) let base: UnsafeMutableRawPointer
  private nonisolated(unsafe) let bits: UnsafeMutableRawPointer
  private nonisolated(unsafe) let looked: UnsafeMutableRawPointer
  private nonisolated(unsafe) let lost: UnsafeMutablePointer<UInt64>
  private let byteCount: UInt64

  fileprivate init(_ mappings: ImageMappings, byteCount: UInt64) {
    unsafe base = mappings.image.base
    unsafe bits = mappings.bits.base
    unsafe looked = mappings.looked.base
    unsafe lost = mappings.image.lost
    self.byteCount = byteCount
  }

  /// Pages of the image that were gone when they were touched: it was cut short, and read as zeros.
  private var isWhole: Bool { unsafe clx_load_relaxed_u64(lost) == 0 }

  /// Copies `bytes` at `offset` into the vectors, which have room for them. False: read them otherwise.
  func read(_ vectors: VectorRun, offset: UInt64, bytes: UInt32) -> Bool {
    // The disk may have grown since. The sum is below 2^64: the request was checked against the disk's size.
    guard offset &+ UInt64(bytes) <= byteCount, isWhole, areThere(offset, bytes) else {
      return false
    }
    // SAFETY: below the mapping's length.
    var source = unsafe UnsafeRawPointer(base + Int(offset))
    for i in 0..<vectors.count {
      // SAFETY: a vector of the request's own chain; together they are `bytes` long.
      let vector = unsafe vectors.first[i]
      unsafe clx_copy_once(vector.iov_base, source, UInt(vector.iov_len))
      unsafe source += vector.iov_len
    }
    // A file that was cut short meanwhile read as zeros.
    return isWhole
  }

  /// Data was written there, so there are pages now.
  func wrote(_ offset: UInt64, _ bytes: UInt32) {
    let end = offset &+ UInt64(bytes)
    guard bytes > 0, end <= byteCount else { return }
    mark(offset >> Self.pageShift, (end &- 1) >> Self.pageShift)
  }

  /// Data is going to be given back there.
  func forget(_ offset: UInt64, _ count: UInt64) {
    let (end, overflow) = offset.addingReportingOverflow(count)
    guard count > 0, !overflow, end <= byteCount else { return }
    let (first, last) = (offset >> Self.pageShift, (end &- 1) >> Self.pageShift)
    // Neighbours in the same bytes are forgotten too, and looked for again.
    for byte in first / 8...last / 8 { unsafe clx_store_relaxed_u8(bits + Int(byte), 0) }
    for chunk in first / Self.chunkPages...last / Self.chunkPages {
      unsafe clx_store_relaxed_u8(looked + Int(chunk), 0)
    }
  }

  /// Whether every page of a range is known to be there.
  private func areThere(_ offset: UInt64, _ bytes: UInt32) -> Bool {
    let first = offset >> Self.pageShift
    let last = (offset &+ UInt64(bytes) &- 1) >> Self.pageShift
    for page in first...max(first, last) where !isThere(page) {
      let chunk = page / Self.chunkPages
      // SAFETY: a chunk of the image.
      guard unsafe clx_load_relaxed_u8(looked + Int(chunk)) == 0 else { return false }
      look(chunk)
      guard isThere(page) else { return false }
    }
    return true
  }

  private func isThere(_ page: UInt64) -> Bool {
    // SAFETY: a page of the image has its bit.
    unsafe clx_load_relaxed_u8(bits + Int(page / 8)) & (1 << UInt8(page % 8)) != 0
  }

  private func mark(_ first: UInt64, _ last: UInt64) {
    for page in first...last where !isThere(page) {
      // SAFETY: as above.
      _ = unsafe clx_fetch_or_release_u8(bits + Int(page / 8), 1 << UInt8(page % 8))
    }
  }

  /// Asks which pages of a chunk the file has.
  private func look(_ chunk: UInt64) {
    let first = chunk &* Self.chunkPages
    // Whole pages: what follows them in the last one of a file is not the file's.
    let count = min(Self.chunkPages, (byteCount >> Self.pageShift) &- first)
    var there: InlineArray<512, UInt8> = .init(repeating: 0)
    var span = there.mutableSpan
    // SAFETY: `count` pages of the mapping, and as many bytes.
    let code = unsafe span.withUnsafeMutableBufferPointer {
      unsafe mincore(base + Int(first << Self.pageShift), Int(count << Self.pageShift), $0.baseAddress)
    }
    if code == 0 {
      for i in 0..<Int(count) where there[i] & 1 != 0 { mark(first &+ UInt64(i), first &+ UInt64(i)) }
    }
    unsafe clx_store_relaxed_u8(looked + Int(chunk), 1)
  }
}
