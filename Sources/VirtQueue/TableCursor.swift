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

  init(view: MemoryView, address: UInt64, byteCount: UInt32) {
    self.view = view
    self.address = address
    if let piece = unsafe view.piece(at: address, upTo: UInt64(byteCount), hint: &hint),
      unsafe piece.count == UInt64(byteCount)
    {
      unsafe flat = unsafe piece.start
    } else {
      unsafe flat = nil
    }
  }

  /// Entry `index`, which must be below the table's length; nil where it is not wholly in guest memory.
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
