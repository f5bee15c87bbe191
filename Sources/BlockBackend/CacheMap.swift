// Reads of an image whose data is in the page cache: a copy from a mapping of it costs half of what a read through io_uring does.
// Which data that is changes all the time, and nobody is told: it has to be asked for, and is known for a moment
// (`LookPace`). The map is every queue thread's, without a lock; `CachedReads` is one queue's.

import CLinux
import Glibc
import HostIO

/// What keeps an image's map of the page cache: held by the image.
final class CacheMappings: Sendable {
  fileprivate let image: Mapping
  /// A byte a chunk: what was found there, and when.
  fileprivate let found: Mapping
  private let byteCount: UInt64

  /// Nil where the image cannot be mapped: it is then read the longer way.
  init?(_ file: borrowing OwnedFD, byteCount: UInt64) {
    guard let image = MappedImage.mapping(of: file, byteCount: byteCount),
      let found = try? Mapping(anonymous: Int(byteCount >> CacheMap.chunkShift) + 1)
    else { return nil }
    (self.image, self.found, self.byteCount) = (image, found, byteCount)
    map.image.expectNoOrder()
  }

  var map: CacheMap { CacheMap(self, byteCount: byteCount) }
}

/// Which parts of an image were in the page cache a moment ago. A part is known whole or not at all, and counts only if the one
/// behind it is whole too: where the kernel reads ahead, it goes on with that only if it is asked for the data there.
@safe struct CacheMap: Sendable {
  /// Bytes of a chunk, 256 KiB.
  fileprivate static let chunkShift: UInt64 = 18
  private static let chunkPages: UInt64 = 64

  /// What is known of a chunk.
  enum State { case whole, partial, unknown }

  let image: MappedImage
  // SAFETY: of the image's mappings, which its owner keeps: a byte a chunk. Read and written by any thread, atomically.
  private nonisolated(unsafe) let found: UnsafeMutableRawPointer

  fileprivate init(_ mappings: CacheMappings, byteCount: UInt64) {
    image = MappedImage(mappings.image, byteCount: byteCount)
    unsafe found = mappings.found.base
  }

  /// The chunks that a part of the disk lies in, and the next; nil where not all of it is in the mapping.
  fileprivate func chunks(_ offset: UInt64, _ bytes: UInt32) -> ClosedRange<UInt64>? {
    guard bytes > 0, image.covers(offset, bytes) else { return nil }
    let last = (offset &+ UInt64(bytes) &- 1) >> Self.chunkShift
    return offset >> Self.chunkShift...min(last &+ 1, (image.byteCount &- 1) >> Self.chunkShift)
  }

  /// Times are `LookPace`'s: 1 to 127, and 1 again.
  fileprivate func state(of chunk: UInt64, at time: UInt8) -> State {
    // SAFETY: a chunk of the image.
    let entry = unsafe clx_load_relaxed_u8(found + Int(chunk))
    let age = time &- (entry & 0x7f)
    guard entry != 0, age <= 1 else { return .unknown }
    return entry & 0x80 != 0 ? .whole : .partial
  }

  fileprivate func look(at chunk: UInt64, _ time: UInt8) -> State {
    let first = chunk &* Self.chunkPages
    // The last page may be the file's only in part.
    let pages = (image.byteCount &+ 4095) >> MappedImage.pageShift
    let count = min(Self.chunkPages, pages &- first)
    var there: InlineArray<64, UInt8> = .init(repeating: 0)
    var span = there.mutableSpan
    var isWhole = image.look(at: first, count, &span)
    for i in 0..<Int(count) where span[i] & 1 == 0 { isWhole = false }
    // SAFETY: a chunk of the image.
    unsafe clx_store_relaxed_u8(found + Int(chunk), time | (isWhole ? 0x80 : 0))
    return isWhole ? .whole : .partial
  }
}

/// One queue's reads from the page cache. On the queue's thread.
struct CachedReads {
  private let map: CacheMap
  private var pace = LookPace()

  init(_ map: CacheMap) { self.map = map }

  mutating func beginTurn() { pace.beginTurn(at: Monotonic.now) }

  /// Copies `bytes` at `offset` into the vectors, which have room for them, where they are at hand. False: read them otherwise.
  mutating func read(_ vectors: VectorRun, offset: UInt64, bytes: UInt32) -> Bool {
    guard !pace.pauses, let chunks = map.chunks(offset, bytes) else { return false }
    pace.countAsked(pages: 1 &+ Int(bytes >> 12))
    for chunk in chunks {
      switch map.state(of: chunk, at: pace.time) {
      case .whole: continue
      case .partial: return false
      case .unknown: guard look(at: chunk) else { return false }
      }
    }
    pace.countHit()
    return map.image.copy(to: vectors, from: offset)
  }

  private mutating func look(at chunk: UInt64) -> Bool {
    guard pace.affordsLook, pace.look(faults: clx_thread_major_faults()) else { return false }
    return map.look(at: chunk, pace.time) == .whole
  }
}
