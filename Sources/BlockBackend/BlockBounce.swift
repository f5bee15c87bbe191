// Requests that the storage would not take as they are: memory that is not aligned, parts of a block, writes to hugetlbfs. They
// go through memory of our own, on a helper thread.

import CLinux
import Glibc
import HostIO
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

  /// Copies between the vectors, from `start` bytes in, and a buffer that is no longer than what follows there.
  func copy(_ buffer: UnsafeMutableRawBufferPointer, from start: Int, outward: Bool) {
    var skip = start
    var done = 0
    for i in 0..<count where done < buffer.count {
      let length = unsafe first[i].iov_len
      if skip >= length {
        skip -= length
        continue
      }
      // SAFETY: as many bytes as both sides have.
      guard let near = buffer.baseAddress, let far = unsafe first[i].iov_base else { return }
      let part = min(length - skip, buffer.count - done)
      if outward {
        unsafe clx_copy_once(near + done, far + skip, UInt(part))
      } else {
        unsafe clx_copy_once(far + skip, near + done, UInt(part))
      }
      done += part
      skip = 0
    }
  }
}

/// A request that has to go through memory of ours.
struct BounceRequest: Sendable {
  let kind: BlockRequest.Kind
  let vectors: BorrowedVectors
  let offset: UInt64
  let bytes: UInt32
  /// Stable storage before it is done.
  let durable: Bool
}

/// Moves what O_DIRECT or a device's blocks do not take as it is, one request at a time a device: two changes of one block
/// must not undo each other.
final class BlockBounce: Sendable {
  /// Whatever a driver asks for goes through in pieces of this: a multiple of any block.
  private static let room = 1 << 20
  /// Made when it is first wanted, kept out of core dumps: a guest's bytes go through it.
  private let memory = Mutex<Mapping?>(nil)

  /// Reads or writes; bytes moved, or a negated errno. Blocks.
  func move(_ request: BounceRequest, storage: BlockStorage, limits: BlockLimits) -> Int32 {
    // SAFETY: each buffer is `inPieces`'s own.
    unsafe inPieces(request.offset, UInt64(request.bytes), limits) { buffer, place, skip, count, done in
      // SAFETY: the part lies in the buffer.
      let data = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[skip..<skip + count])
      if request.kind == .read || count < buffer.count {
        let code = unsafe storage.readWhole(buffer, at: place, atLeast: skip + count)
        if code < 0 { return code }
        if request.kind == .read {
          unsafe request.vectors.copy(data, from: done, outward: false)
          return 0
        }
      }
      let lost = clx_shared_lost_here()
      unsafe request.vectors.copy(data, from: done, outward: true)
      // Guest memory that is gone reads as zeros, which nobody asked to have written.
      if clx_shared_lost_here() != lost { return -EFAULT }
      return unsafe storage.writeWhole(buffer, at: place)
    } finally: {
      request.durable && request.kind == .write ? storage.sync() : 0
    }
  }

  /// Writes zeros, as far as the storage has no call for that or wants whole blocks; 0 or a negated errno. Blocks.
  func zero(_ offset: UInt64, _ count: UInt64, storage: BlockStorage, limits: BlockLimits) -> Int32 {
    guard count > 0 else { return 0 }
    // SAFETY: each buffer is `inPieces`'s own.
    let code = unsafe inPieces(offset, count, limits) { buffer, place, skip, count, _ in
      if count < buffer.count {
        let code = unsafe storage.readWhole(buffer, at: place, atLeast: skip + count)
        if code < 0 { return code }
      }
      // SAFETY: the part lies in the buffer.
      unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[skip..<skip + count]).initializeMemory(
        as: UInt8.self, repeating: 0)
      return unsafe storage.writeWhole(buffer, at: place)
    } finally: {
      0
    }
    return min(code, 0)
  }

  /// Runs `body` while nobody moves parts of blocks.
  func alone(_ body: () -> Int32) -> Int32 { memory.withLock { _ in body() } }

  /// Calls `piece` for each part of a range, with a buffer of whole blocks: where they are on the storage, and where in them
  /// the part is; the last number counts the bytes before it. Bytes done (at most 2^31 - 1), or the first error.
  private func inPieces(
    _ offset: UInt64, _ bytes: UInt64, _ limits: BlockLimits,
    _ piece: (
      _ buffer: UnsafeMutableRawBufferPointer, _ place: UInt64, _ skip: Int, _ count: Int, _ done: Int
    ) -> Int32,
    finally: () -> Int32
  ) -> Int32 {
    memory.withLock { memory in
      if memory == nil {
        memory = try? Mapping(anonymous: Self.room)
        memory?.excludeFromCoreDumps()
      }
      guard let memory else { return -ENOMEM }
      let block = UInt64(limits.logicalBlock)
      var done: UInt64 = 0
      while done < bytes {
        let skip = (offset + done) % block
        let count = min(bytes - done, UInt64(Self.room) - skip)
        let length = Int((skip + count + block - 1) / block * block)
        // SAFETY: at most `room` bytes: a multiple of the block's size, and `skip + count` is no more.
        let buffer = unsafe UnsafeMutableRawBufferPointer(start: memory.base, count: length)
        let code = unsafe piece(buffer, offset + done - skip, Int(skip), Int(count), Int(done))
        if code < 0 { return code }
        done += count
      }
      let code = finally()
      return code < 0 ? code : Int32(clamping: bytes)
    }
  }
}

extension BlockStorage {
  /// Fills a buffer; 0 or a negated errno. The last block of a file may be short: zeros follow.
  fileprivate func readWhole(
    _ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64, atLeast count: Int
  ) -> Int32 {
    // SAFETY: the caller's buffer; what was read is no longer than it.
    let code = unsafe transfer(buffer, at: offset, writing: false)
    guard code >= 0, Int(code) >= count else { return code < 0 ? code : -EIO }
    unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[Int(code)...]).initializeMemory(
      as: UInt8.self, repeating: 0)
    return 0
  }

  /// Writes all of a buffer; 0 or a negated errno.
  fileprivate func writeWhole(_ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) -> Int32 {
    // SAFETY (both): the caller's buffer.
    if let pages { return unsafe pages.write(buffer, at: offset) }
    let code = unsafe transfer(buffer, at: offset, writing: true)
    return code < 0 ? code : Int(code) < buffer.count ? -EIO : 0
  }

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
