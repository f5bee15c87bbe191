// Requests that O_DIRECT would not take as they are: memory that is not aligned, or parts of a block. They go through
// memory of our own, on a helper thread.

import CLinux
import Glibc
import Synchronization

/// The vectors of a held chain, on their way to a helper thread and back.
// SAFETY (Sendable): nobody else uses the chain's segments until the completion that the helper's result makes.
@safe struct BorrowedVectors: @unchecked Sendable {
  // SAFETY: `count` entries of a held chain's segment array, whose memory stays mapped while it is held.
  let first: UnsafeMutablePointer<iovec>
  let count: Int

  init(_ run: VectorRun) {
    unsafe first = unsafe run.first
    count = run.count
  }

  /// Copies between the vectors, from their start, and a buffer that is no longer than they are.
  func copy(_ buffer: UnsafeMutableRawBufferPointer, outward: Bool) {
    var done = 0
    for i in 0..<count where done < buffer.count {
      // SAFETY: as many bytes as both sides have.
      guard let near = buffer.baseAddress, let far = unsafe first[i].iov_base else { return }
      let part = unsafe min(first[i].iov_len, buffer.count - done)
      if outward {
        unsafe clx_copy_once(near + done, far, UInt(part))
      } else {
        unsafe clx_copy_once(far, near + done, UInt(part))
      }
      done += part
    }
  }
}

/// Moves unaligned requests, one at a time a device: two writes to one block must not undo each other.
final class BlockBounce: Sendable {
  private let turn = Mutex<Void>(())

  /// Reads or writes `bytes` at `offset`; bytes moved, or a negated errno. Blocks.
  func move(
    _ kind: BlockRequest.Kind, _ vectors: BorrowedVectors, offset: UInt64, bytes: UInt32,
    storage: BlockStorage,
    limits: BlockLimits, durable: Bool
  ) -> Int32 {
    turn.withLock { _ in
      let block = UInt64(limits.logicalBlock)
      let start = offset / block * block
      let end = (offset + UInt64(bytes) + block - 1) / block * block
      let length = Int(end - start)
      let skip = Int(offset - start)
      let alignment = max(Int(block), Int(limits.memoryAlignment), 4096)
      // SAFETY: `length` bytes of our own; the part at `skip` is `bytes` long and within them.
      let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: length, alignment: alignment)
      defer { unsafe buffer.deallocate() }
      let data = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[skip..<(skip + Int(bytes))])
      if kind == .read || skip > 0 || length != Int(bytes) {
        let code = unsafe storage.transfer(buffer, at: start, writing: false)
        // The last block of a file may be short.
        if code < 0 || Int(code) < skip + Int(bytes) { return code < 0 ? code : -EIO }
        if kind == .read {
          unsafe vectors.copy(data, outward: false)
          return Int32(bytes)
        }
      }
      let lost = clx_shared_lost_here()
      unsafe vectors.copy(data, outward: true)
      // Guest memory that is gone reads as zeros, which nobody asked to have written.
      if clx_shared_lost_here() != lost { return -EFAULT }
      let code = unsafe storage.transfer(buffer, at: start, writing: true)
      if code < 0 || Int(code) < length { return code < 0 ? code : -EIO }
      if durable {
        let code = storage.sync()
        if code != 0 { return code }
      }
      return Int32(bytes)
    }
  }
}

extension BlockStorage {
  /// Reads or writes a whole buffer, as far as the file goes; bytes moved, or a negated errno.
  fileprivate func transfer(_ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64, writing: Bool)
    -> Int32
  {
    var done = 0
    while done < buffer.count {
      // SAFETY: the rest of the buffer.
      let rest = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[done...])
      let place = Int(offset) + done
      let count =
        writing
        ? unsafe pwrite(raw, rest.baseAddress, rest.count, place)
        : unsafe pread(raw, rest.baseAddress, rest.count, place)
      if count < 0, errno == EINTR { continue }
      if count < 0 { return -errno }
      if count == 0 { break }
      done += count
    }
    return Int32(clamping: done)
  }
}
