// The part of a shared inflight region that belongs to one queue (vhost-user, "Inflight I/O tracking"): memory that
// survives this process, in which it notes which requests it has taken and not given back. Its content is as foreign as a
// guest's: whoever sends it may have changed it.

import CLinux

/// One queue's bytes of an inflight region.
@safe public struct InflightArea: Sendable {
  // SAFETY: `owner` keeps `byteCount` bytes at `base` mapped; only this queue's ring writes there.
  nonisolated(unsafe) let base: UnsafeMutableRawPointer
  let byteCount: Int
  let owner: any AnyObject & Sendable
  /// Descriptors it has room for; the ring may have fewer.
  let descriptorCount: UInt16
  // SAFETY: one word, alive as long as `owner`, read atomically.
  /// Counts pages of the region that were gone when they were touched; nil where none can go.
  private nonisolated(unsafe) let lost: UnsafeMutablePointer<UInt64>?

  // SAFETY: the caller promises what is stated above.
  public init(
    base: UnsafeMutableRawPointer, byteCount: Int, descriptorCount: UInt16, owner: any AnyObject & Sendable,
    lost: UnsafeMutablePointer<UInt64>? = nil
  ) {
    unsafe self.base = unsafe base
    unsafe self.lost = unsafe lost
    self.byteCount = byteCount
    self.descriptorCount = descriptorCount
    self.owner = owner
  }

  /// Whether every page of the region was there when it was touched.
  public var isWhole: Bool { unsafe lost.map { unsafe clx_load_relaxed_u64($0) == 0 } ?? true }

  /// Bytes that a queue of this size needs, a multiple of 64.
  public static func byteCount(size: UInt16, packed: Bool) -> Int {
    let bytes = packed ? 32 + 32 * Int(size) : 16 + 16 * Int(size)
    return (bytes + 63) / 64 * 64
  }
}

/// Why a queue cannot go on from an inflight region.
public enum InflightError: Error, Equatable, Sendable {
  case version(UInt16)
  case descriptorCount(UInt16, expected: UInt16)
  case tooSmall(bytes: Int, needed: Int)
  /// An index, a list or a position in it that cannot be.
  case corrupt(String)
}

/// Heads (or entries) whose completion is not public yet. Bounded by the queue's size.
@safe @usableFromInline final class PendingList {
  // SAFETY: `capacity` cells; `count` of them are set, never more than there is room for.
  private let cells: UnsafeMutablePointer<UInt64>
  private let capacity: Int
  @usableFromInline private(set) var count = 0

  @usableFromInline init(capacity: Int) {
    self.capacity = capacity
    unsafe cells = .allocate(capacity: capacity)
  }

  deinit { unsafe cells.deallocate() }

  @usableFromInline func append(_ value: UInt64) {
    guard count < capacity else { return }
    unsafe cells[count] = value
    count += 1
  }

  @usableFromInline func removeAll() { count = 0 }

  @usableFromInline subscript(index: Int) -> UInt64 { index < count ? unsafe cells[index] : 0 }
}
