// Reading indirect tables (virtio 1.3 §2.7.5.3, §2.8.7), wherever the guest put them. On the queue's thread.

import CLinux

/// Reads entries of an indirect table, each once, also where the table lies over several regions.
@safe struct TableCursor {
  // SAFETY: `view` and `flat` are of the map that the walk's ring holds.
  private let view: MemoryView
  private let address: UInt64
  /// The whole table, where it is in one region.
  private let flat: UnsafeMutableRawPointer?
  private var hint = 0

  /// Nil where the table is not wholly in guest memory.
  init?(view: MemoryView, address: UInt64, byteCount: UInt32) {
    self.view = view
    self.address = address
    let length = UInt64(byteCount)
    guard let first = unsafe view.piece(at: address, upTo: length, hint: &hint) else { return nil }
    if unsafe first.count == length {
      unsafe flat = unsafe first.start
      return
    }
    unsafe flat = nil
    var done = unsafe first.count
    while done < length {
      let (at, overflow) = address.addingReportingOverflow(done)
      guard !overflow, let piece = unsafe view.piece(at: at, upTo: length - done, hint: &hint) else {
        return nil
      }
      done += unsafe piece.count
    }
  }

  /// Entry `index`, which must be below the table's length.
  mutating func entry(_ index: UInt32) -> SplitDescriptor? {
    let offset = UInt64(index) * 16
    // SAFETY: index is below the table's length, all of which `flat` covers.
    if let flat = unsafe flat { return unsafe SplitDescriptor(at: flat + Int(offset)) }
    var words: (UInt64, UInt64) = (0, 0)
    // SAFETY: each piece is in guest memory and no longer than what is left of the 16 bytes.
    let whole = unsafe withUnsafeMutableBytes(of: &words) { bytes in
      var done = 0
      while done < 16 {
        let (at, overflow) = address.addingReportingOverflow(offset + UInt64(done))
        guard !overflow, let base = bytes.baseAddress,
          let piece = unsafe view.piece(at: at, upTo: UInt64(16 - done), hint: &hint)
        else { return false }
        unsafe clx_copy_once(base + done, piece.start, UInt(piece.count))
        done += unsafe Int(piece.count)
      }
      return true
    }
    return whole ? SplitDescriptor(address: words.0, rest: words.1) : nil
  }
}
