// Putting work into the ring, and going to the kernel with it. On the owner's thread only.

import CLinux
import CLiburing
import Glibc

extension IOUring {
  /// A free submission entry, zeroed by the caller's fill. Where the queue is full, what is in it is submitted first.
  @inlinable @inline(__always)
  mutating func entry() -> UnsafeMutableRawPointer {
    while true {
      // SAFETY: liburing hands out entries of its own mapped array; each is filled before the next submission.
      if let sqe = unsafe io_uring_get_sqe(ring) { return UnsafeMutableRawPointer(sqe) }
      submit()
    }
  }

  /// The general form: one operation on a registered file. The token comes back with the completion.
  @inlinable @inline(__always)
  public mutating func submit(
    _ operation: Operation, on file: FileSlot, offset: UInt64, address: UInt, length: UInt32,
    operationFlags: UInt32 = 0, token: UInt64
  ) {
    // SAFETY: an entry of 64 bytes; what `address` names must stay valid until the completion, the caller's promise.
    unsafe clx_sqe_fill(
      entry(), operation.rawValue, UInt8(CLX_IOSQE_FIXED_FILE), Int32(truncatingIfNeeded: file.index),
      offset, UInt64(address), length, operationFlags, token)
  }

  /// What an operation that needs no file names: a sandboxed ring takes no entry without a registered one (`restrict`).
  /// IORING_OP_TIMEOUT_REMOVE does not take one: IORING_OP_ASYNC_CANCEL ends a timeout as well.
  @usableFromInline static var anyFile: FileSlot { FileSlot(0) }

  /// Reads into, or writes from, `count` vectors (at most 1024) at a byte offset. The vectors and the memory they name
  /// must stay valid until the completion.
  @inlinable @inline(__always)
  public mutating func readv(
    _ file: FileSlot, _ vectors: UnsafePointer<iovec>, count: Int, offset: UInt64, token: UInt64
  ) {
    submit(
      .readv, on: file, offset: offset, address: UInt(bitPattern: vectors),
      length: UInt32(truncatingIfNeeded: count), token: token)
  }

  /// As `readv`; `durable` asks for the data to be on stable storage at completion (RWF_DSYNC).
  @inlinable @inline(__always)
  public mutating func writev(
    _ file: FileSlot, _ vectors: UnsafePointer<iovec>, count: Int, offset: UInt64, durable: Bool,
    token: UInt64
  ) {
    submit(
      .writev, on: file, offset: offset, address: UInt(bitPattern: vectors),
      length: UInt32(truncatingIfNeeded: count),
      operationFlags: durable ? UInt32(CLX_RWF_DSYNC) : 0, token: token)
  }

  /// Flushes a file's data (fdatasync).
  @inlinable public mutating func syncData(_ file: FileSlot, token: UInt64) {
    submit(.fsync, on: file, offset: 0, address: 0, length: 0, operationFlags: 1, token: token)
  }

  /// Completes each time the file becomes readable, until it is cancelled or fails (a completion without `more`).
  public mutating func pollReadable(_ file: FileSlot, token: UInt64) {
    // length 1: IORING_POLL_ADD_MULTI
    submit(
      .pollAdd, on: file, offset: 0, address: 0, length: 1, operationFlags: UInt32(CLX_POLLIN),
      token: token)
  }

  /// Completes once, when the file can be written.
  public mutating func pollWritable(_ file: FileSlot, token: UInt64) {
    submit(
      .pollAdd, on: file, offset: 0, address: 0, length: 0, operationFlags: UInt32(CLX_POLLOUT), token: token)
  }

  /// Completes, with -ETIME, after 0.2 s: for what may succeed later.
  public mutating func pause(token: UInt64) {
    // SAFETY: as in `submit`; the time is the ring's own constant.
    submit(
      .timeout, on: Self.anyFile, offset: 0, address: unsafe UInt(bitPattern: pauseTime), length: 1,
      token: token)
  }

  /// Completes, with -ETIME, after so long, or with -ECANCELED when it is cancelled.
  public mutating func wait(nanoseconds: UInt64, token: UInt64) {
    let sqe = unsafe entry()
    // SAFETY: the entry is one of the queue's `capacity` entries of 64 bytes, and its time is its own until the kernel has
    // taken both.
    let place = unsafe timerTimes + (sqe - UnsafeMutableRawPointer(ring.pointee.sq.sqes)) / 64
    unsafe place.pointee = __kernel_timespec(
      tv_sec: Int64(nanoseconds / 1_000_000_000), tv_nsec: Int64(nanoseconds % 1_000_000_000))
    unsafe clx_sqe_fill(
      sqe, Operation.timeout.rawValue, UInt8(CLX_IOSQE_FIXED_FILE), Int32(Self.anyFile.index), 0,
      UInt64(UInt(bitPattern: place)), 1, 0, token)
  }

  /// Ends the wait that was submitted with `target`, if it goes on; both complete.
  public mutating func cancelWait(target: UInt64, token: UInt64) {
    submit(.asyncCancel, on: Self.anyFile, offset: 0, address: UInt(target), length: 0, token: token)
  }

  /// Ends the poll that was submitted with `target`; both complete.
  public mutating func cancelPoll(target: UInt64, token: UInt64) {
    submit(.pollRemove, on: Self.anyFile, offset: 0, address: UInt(target), length: 0, token: token)
  }

  /// How many entries wait to be submitted.
  @inlinable public var unsubmitted: UInt32 {
    // SAFETY: the ring's own fields, which only this thread moves.
    unsafe ring.pointee.sq.sqe_tail &- ring.pointee.sq.sqe_head
  }
  @inlinable public var hasUnsubmitted: Bool { unsubmitted != 0 }

  /// Submits what was prepared and runs what the kernel has ready; does not wait. Nothing prepared is ever dropped:
  /// EINTR, EAGAIN and EBUSY leave it for the next call.
  @inlinable public mutating func submit() {
    // SAFETY: the owner's thread, an enabled ring.
    _ = unsafe io_uring_submit_and_get_events(ring)
  }

  /// Submits what was prepared, as `submit`, and runs nothing.
  @inlinable public mutating func flush() {
    // SAFETY: as `submit`.
    _ = unsafe io_uring_submit(ring)
  }

  /// Submits, then waits until a completion is there or the time is over. Nil waits without a bound.
  public mutating func submitAndWait(nanoseconds: UInt64?) {
    // SAFETY: as `submit`; the timespec and the pointer live across the call.
    var first: UnsafeMutablePointer<io_uring_cqe>?
    guard let nanoseconds else {
      _ = unsafe io_uring_submit_and_wait(ring, 1)
      return
    }
    var limit = __kernel_timespec(
      tv_sec: Int64(nanoseconds / 1_000_000_000), tv_nsec: Int64(nanoseconds % 1_000_000_000))
    _ = unsafe io_uring_submit_and_wait_timeout(ring, &first, 1, &limit, nil)
  }
}
