// The bitmap in which a front-end wants to find the pages that we wrote (vhost-user, "Migration"): one bit a page of 4096
// bytes, by guest address. Made by the control thread from what the front-end shares; marked by queue threads, several at once.

import CLinux
import Synchronization

/// A shared dirty bitmap. What lies beyond its end is counted and not marked.
@safe public final class DirtyLog: Sendable {
  /// The unit of marking, whatever the guest's pages are.
  public static var pageBytes: UInt64 { 4096 }
  // SAFETY: `owner` keeps `byteCount` bytes at `base` mapped; they are written by atomic OR alone.
  private nonisolated(unsafe) let base: UnsafeMutableRawPointer
  private let byteCount: UInt64
  private let owner: any AnyObject & Sendable
  private let lost = Atomic<UInt64>(0)
  // SAFETY: one word, alive as long as `owner`, read atomically.
  /// Counts pages of the log itself that were gone when they were touched; nil where none can go.
  private nonisolated(unsafe) let cutOff: UnsafeMutablePointer<UInt64>?

  // SAFETY: the caller promises what is stated above.
  public init(
    base: UnsafeMutableRawPointer, byteCount: Int, owner: any AnyObject & Sendable,
    cutOff: UnsafeMutablePointer<UInt64>? = nil
  ) {
    unsafe self.base = unsafe base
    unsafe self.cutOff = unsafe cutOff
    self.byteCount = UInt64(max(0, byteCount))
    self.owner = owner
  }

  /// Whether every page of the log was there when it was touched: no mark went nowhere.
  public var isWhole: Bool { unsafe cutOff.map { unsafe clx_load_relaxed_u64($0) == 0 } ?? true }

  /// Pages that were to be marked and lie beyond the log's end.
  public var lostPages: UInt64 { lost.load(ordering: .relaxed) }

  /// The bytes a log needs for memory that ends at `end`.
  public static func byteCount(forMemoryUpTo end: UInt64) -> UInt64 {
    end == 0 ? 0 : (end - 1) / (pageBytes * 8) + 1
  }

  /// Marks every page of a range of guest addresses. Called after the bytes were written: the release orders them before
  /// the mark, so that who clears a mark and then copies its page copies what was written.
  ///
  /// A bit that is set already is set again: to look first would let the look pass the write.
  public func mark(_ address: UInt64, _ length: UInt64) {
    guard length > 0 else { return }
    let (last, overflow) = address.addingReportingOverflow(length - 1)
    let end = (overflow ? UInt64.max : last) / Self.pageBytes
    var page = address / Self.pageBytes
    while page <= end {
      guard page / 8 < byteCount else {
        lost.add(end - page + 1, ordering: .relaxed)
        return
      }
      let final = min(page | 7, end)
      let mask = (UInt8(0xff) << UInt8(page & 7)) & (UInt8(0xff) >> UInt8(7 - (final & 7)))
      // SAFETY: the byte's index is below `byteCount`.
      _ = unsafe clx_fetch_or_release_u8(base + Int(page / 8), mask)
      page = final + 1
    }
  }
}

/// What of a queue's writes is noted, and where. The parts are switched apart (vhost-user: VHOST_F_LOG_ALL,
/// VHOST_VRING_F_LOG).
public struct QueueLog: Sendable {
  public let log: DirtyLog
  /// What devices write into buffers.
  public let marksBuffers: Bool
  /// What the ring itself writes.
  public let marksRing: Bool
  /// A split ring's used area as the log knows it; nil: found from where the ring lies.
  public let usedAddress: UInt64?
  /// Called, on the queue's thread, after marks were made.
  public let onMark: (@Sendable () -> Void)?

  public init(
    log: DirtyLog, marksBuffers: Bool, marksRing: Bool, usedAddress: UInt64?,
    onMark: (@Sendable () -> Void)? = nil
  ) {
    self.log = log
    self.marksBuffers = marksBuffers
    self.marksRing = marksRing
    self.usedAddress = usedAddress
    self.onMark = onMark
  }
}
