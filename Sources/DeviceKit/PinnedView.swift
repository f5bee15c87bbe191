// Which memory a queue thread's ring has as registered buffers, for the data path. On that thread.

import CLinux
import Glibc
import HostIO

/// Ranges by address. Behind a pointer of `ThreadTools`, which frees it by `set([])`.
@safe @usableFromInline struct PinnedView {
  // SAFETY: `count` ranges, replaced and freed by `set`, on the thread that reads them.
  private var ranges: UnsafeMutablePointer<PinnedRange>?
  @usableFromInline private(set) var count = 0
  /// Whether one operation may take several vectors (Linux 6.15).
  var takesVectors = false

  init() { unsafe ranges = nil }

  mutating func set(_ new: [PinnedRange]) {
    unsafe ranges?.deallocate()
    unsafe ranges = new.isEmpty ? nil : .allocate(capacity: new.count)
    for (i, range) in new.enumerated() { unsafe ranges?.advanced(by: i).initialize(to: range) }
    count = new.count
  }

  /// The one buffer that all of these vectors lie in; nil: none, or more than one.
  func slot(of vectors: UnsafePointer<iovec>, _ number: Int) -> UInt16? {
    guard number == 1 || takesVectors, number > 0, let ranges = unsafe ranges else { return nil }
    // SAFETY: `number` vectors, the caller's promise; i and `found` are below `count`.
    let first = unsafe UInt(bitPattern: vectors[0].iov_base)
    var found: Int?
    for i in 0..<count where unsafe first &- ranges[i].start < ranges[i].length { found = i }
    guard let found else { return nil }
    let range = unsafe ranges[found]
    for i in 0..<number {
      let vector = unsafe vectors[i]
      let offset = unsafe UInt(bitPattern: vector.iov_base) &- range.start
      guard offset < range.length, unsafe UInt(vector.iov_len) <= range.length &- offset else { return nil }
    }
    return range.slot
  }
}
