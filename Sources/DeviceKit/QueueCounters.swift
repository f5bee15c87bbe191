// What a queue counts. Written by its thread alone, read by whoever prints statistics: single words, no lock.

import CLinux

/// The counters of one queue: those every queue has, then the device's own.
@safe public final class QueueCounters: Sendable {
  /// Counters of every queue, in order.
  public enum Common: Int, CaseIterable, Sendable {
    /// Chains taken from the ring.
    case chains
    /// Chains completed.
    case completed
    /// Publications that showed the driver something.
    case batches
    /// Calls made, and batches after which the driver wanted none.
    case calls
    case callsSuppressed
    /// Kicks that woke the thread or came while it worked.
    case kicks
    /// Faults that broke the ring.
    case faults
    /// Addresses that the front-end was to translate before a chain could be taken (IOMMU).
    case iotlbMisses
    /// Operations on memory that is held in place (registered buffers).
    case pinned

    public var name: String { String(describing: self) }
  }

  /// The place of the device's first own counter.
  @inlinable public static var firstOwn: Int { Common.pinned.rawValue + 1 }

  public let names: [String]
  // SAFETY: `names.count` words, written by one thread and read by others through atomics only.
  @usableFromInline nonisolated(unsafe) let words: UnsafeMutablePointer<UInt64>

  public init(deviceCounters: [String]) {
    names = Common.allCases.map(\.name) + deviceCounters
    unsafe words = .allocate(capacity: names.count)
    unsafe words.initialize(repeating: 0, count: names.count)
  }

  deinit { unsafe words.deallocate() }

  /// Adds to a counter; by the queue's thread only.
  @inlinable @inline(__always)
  public func add(_ amount: UInt64, to index: Int) {
    guard index >= 0, index < names.count else { return }
    // SAFETY: in bounds; one writer.
    unsafe clx_store_relaxed_u64(words + index, words[index] &+ amount)
  }

  @inlinable @inline(__always)
  public func add(_ amount: UInt64 = 1, to counter: Common) { add(amount, to: counter.rawValue) }

  /// A counter as it stands. Any thread.
  public func value(_ index: Int) -> UInt64 {
    guard index >= 0, index < names.count else { return 0 }
    return unsafe clx_load_relaxed_u64(words + index)
  }

  public func value(_ counter: Common) -> UInt64 { value(counter.rawValue) }

  /// Names and values, in order. Any thread.
  public var snapshot: [(name: String, value: UInt64)] {
    names.enumerated().map { ($0.element, value($0.offset)) }
  }
}
