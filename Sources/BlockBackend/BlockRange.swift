// The segments of DISCARD and WRITE_ZEROES requests (virtio 1.3 §5.2.6): read from the chain once, checked, then done one
// after another. On the queue's thread.

import VirtQueue

/// What is to happen to ranges of a disk.
enum RangeAction {
  case discard, zero
}

/// One checked range, in bytes.
struct BlockRange: Sendable, Equatable {
  var offset: UInt64
  var count: UInt64
  var mayUnmap: Bool
}

/// Limits of range requests, as the configuration space tells them.
enum RangeLimit {
  /// Segments in a request.
  static let segments = 256
  /// Sectors in a segment: 2 GiB to discard, 128 MiB to zero (which may mean writing them).
  static let discardSectors: UInt32 = 1 << 22
  static let zeroSectors: UInt32 = 1 << 18
}

/// {le64 sector, le32 sectors, le32 flags} after the header, any number of them.
enum BlockRanges {
  case ranges([BlockRange])
  case refused(BlockStatus)

  init(_ action: RangeAction, in readable: borrowing Segments, byteCount: UInt64) {
    let bytes = Int(readable.byteCount) - BlockHeader.byteCount
    guard bytes > 0, bytes % 16 == 0, bytes / 16 <= RangeLimit.segments else {
      self = .refused(.ioError)
      return
    }
    var words = [UInt64](repeating: 0, count: bytes / 8)
    // SAFETY: the array's own storage; the segments are copied out once.
    let copied = unsafe words.withUnsafeMutableBytes {
      unsafe readable.copyOut(to: $0, from: BlockHeader.byteCount)
    }
    guard copied == bytes else {
      self = .refused(.ioError)
      return
    }
    let limit = action == .discard ? RangeLimit.discardSectors : RangeLimit.zeroSectors
    var ranges: [BlockRange] = []
    for i in 0..<(words.count / 2) {
      let sector = words[2 * i]
      let sectors = UInt32(truncatingIfNeeded: words[2 * i + 1])
      let flags = UInt32(truncatingIfNeeded: words[2 * i + 1] >> 32)
      // Bit 0, unmap, is for zeroing only; all others are reserved.
      guard flags & ~(action == .zero ? 1 : 0) == 0 else {
        self = .refused(.unsupported)
        return
      }
      let (offset, overflow) = sector.multipliedReportingOverflow(by: sectorBytes)
      let count = UInt64(sectors) * sectorBytes
      let (end, pastEnd) = offset.addingReportingOverflow(count)
      guard sectors <= limit, !overflow, !pastEnd, end <= byteCount else {
        self = .refused(.ioError)
        return
      }
      if sectors > 0 { ranges.append(BlockRange(offset: offset, count: count, mayUnmap: flags & 1 == 1)) }
    }
    self = .ranges(ranges)
  }
}

extension BlockStorage {
  /// Does all ranges, in order; the first failure ends it. 0 or a negated errno. Blocks while it works.
  func apply(
    _ action: RangeAction, _ ranges: [BlockRange], durable: Bool, limits: BlockLimits, bounce: BlockBounce
  ) -> Int32 {
    for range in ranges where range.count > 0 {
      let code =
        action == .discard
        ? discard(range.offset, range.count) : zero(range, limits: limits, bounce: bounce)
      if code != 0 { return code }
    }
    return durable ? sync() : 0
  }
}
