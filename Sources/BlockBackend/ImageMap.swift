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
    let pages = (byteCount >> MappedImage.pageShift) + 1
    guard let image = MappedImage.mapping(of: file, byteCount: byteCount),
      let bits = try? Mapping(anonymous: Int(pages / 8 + 1)),
      let looked = try? Mapping(anonymous: Int(pages / ImageMap.chunkPages + 1))
    else { return nil }
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
  private static let pageShift = MappedImage.pageShift
  /// Pages of a chunk: what one look is for. 2 MiB.
  fileprivate static let chunkPages: UInt64 = 512

  let image: MappedImage
  // SAFETY: of the image's mappings, which its owner keeps: a bit a page; a byte a chunk. Changed by any thread, atomically.
  private nonisolated(unsafe) let bits: UnsafeMutableRawPointer
  private nonisolated(unsafe) let looked: UnsafeMutableRawPointer
  private var byteCount: UInt64 { image.byteCount }

  fileprivate init(_ mappings: ImageMappings, byteCount: UInt64) {
    image = MappedImage(mappings.image, byteCount: byteCount)
    unsafe bits = mappings.bits.base
    unsafe looked = mappings.looked.base
  }

  /// Copies `bytes` at `offset` into the vectors, which have room for them. False: read them otherwise.
  func read(_ vectors: VectorRun, offset: UInt64, bytes: UInt32) -> Bool {
    image.covers(offset, bytes) && areThere(offset, bytes) && image.copy(to: vectors, from: offset)
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
    if image.look(at: first, count, &span) {
      for i in 0..<Int(count) where span[i] & 1 != 0 { mark(first &+ UInt64(i), first &+ UInt64(i)) }
    }
    unsafe clx_store_relaxed_u8(looked + Int(chunk), 1)
  }
}
