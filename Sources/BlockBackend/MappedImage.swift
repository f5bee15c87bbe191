// An image's pages as this process sees them: a read is a copy, without a system call. Which pages may be read so is for `ImageMap`
// and `CacheMap` to know. Any thread.

import CLinux
import Glibc
import HostIO

/// An image that is mapped to be read. Words without an owner: who has one holds the mapping.
///
/// Nothing is written this way. A page of the guest's that is gone reads as zeros here, and must not reach the storage so; the
/// kernel's own copy fails instead.
@safe struct MappedImage: Sendable {
  static let pageShift: UInt64 = 12

  // SAFETY: of a mapping that its owner keeps: `byteCount` bytes; a count.
  private nonisolated(unsafe) let base: UnsafeMutableRawPointer
  private nonisolated(unsafe) let lost: UnsafeMutablePointer<UInt64>
  /// The image's size when it was opened.
  let byteCount: UInt64

  init(_ mapping: Mapping, byteCount: UInt64) {
    unsafe (base, lost) = unsafe (mapping.base, mapping.lost)
    self.byteCount = byteCount
  }

  /// Maps an image to be read; nil where it cannot be: it is then read the longer way.
  static func mapping(of file: borrowing OwnedFD, byteCount: UInt64) -> Mapping? {
    guard let length = Int(exactly: byteCount), length > 0,
      let mapping = try? Mapping(file: file, offset: 0, length: length, writable: false)
    else { return nil }
    mapping.excludeFromCoreDumps()
    return mapping
  }

  /// Whether a part of the disk is in the mapping: the disk may have grown since. The sum is below 2^64, since requests are
  /// checked against the disk's size.
  func covers(_ offset: UInt64, _ bytes: UInt32) -> Bool { offset &+ UInt64(bytes) <= byteCount }

  /// No page was gone, or could not be read, when it was touched: such a one reads as zeros.
  private var isWhole: Bool { unsafe clx_load_relaxed_u64(lost) == 0 }

  /// Copies what is at `offset`, which the mapping covers, into the vectors. False: read it otherwise, and the vectors' memory
  /// may have changed.
  func copy(to vectors: VectorRun, from offset: UInt64) -> Bool {
    guard isWhole else { return false }
    // SAFETY: below the mapping's length.
    var source = unsafe UnsafeRawPointer(base + Int(offset))
    for i in 0..<vectors.count {
      // SAFETY: a vector of the request's own chain; together they are as long as what the mapping covers.
      let vector = unsafe vectors.first[i]
      unsafe clx_copy_once(vector.iov_base, source, UInt(vector.iov_len))
      unsafe source += vector.iov_len
    }
    // A file that was cut short meanwhile read as zeros.
    return isWhole
  }

  /// Asks for the first four lines at a sector, which is any number: they are read soon, and those behind them come by themselves.
  @inline(__always)
  func expect(sector: UInt64) {
    let (offset, overflow) = sector.multipliedReportingOverflow(by: sectorBytes)
    guard !overflow, offset < byteCount else { return }
    // SAFETY: asked for, not touched: a page that is not there stays so.
    let place = unsafe base + Int(offset)
    for line in 0..<4 { unsafe clx_prefetch_read(place + 64 &* line) }
  }

  /// Asks the kernel which pages are in memory: bit 0 of `answer`, which has room for `count` pages. Those are the image's. False
  /// where it does not say.
  func look(at page: UInt64, _ count: UInt64, _ answer: inout MutableSpan<UInt8>) -> Bool {
    // SAFETY: `count` pages of the mapping, and as many bytes.
    unsafe answer.withUnsafeMutableBufferPointer {
      unsafe mincore(base + Int(page << Self.pageShift), Int(count << Self.pageShift), $0.baseAddress) == 0
    }
  }

  /// Tells the kernel that neighbours of what is read say nothing: a page that has gone comes back alone.
  func expectNoOrder() {
    // SAFETY: the mapping, whole.
    unsafe _ = madvise(base, Int(byteCount), MADV_RANDOM)
  }
}
