// A queue as a worker sees it: chains in, chains out, and I/O whose completions come back to the worker. On the queue's
// thread.

import CLinux
import Glibc
import HostIO
import VirtQueue

/// One queue and its share of the thread's io_uring. Handed to a worker `inout`, for the length of a call.
@safe public struct QueueIO<R: VirtRing & ~Copyable>: ~Copyable {
  @usableFromInline var ring: R
  // SAFETY: the thread's ring; it outlives every runner of the thread, and only that thread touches either.
  @usableFromInline let uring: UnsafeMutablePointer<IOUring>
  @usableFromInline let tools: ThreadTools
  @usableFromInline let stem: Token
  /// How many more chains, and bytes in them, this turn may take, so that neighbours on the thread get theirs.
  @usableFromInline var budget = 0
  @usableFromInline var byteBudget = 0
  /// Operations submitted and not yet ended.
  @usableFromInline var outstanding = 0
  @usableFromInline var taken: UInt64 = 0
  @usableFromInline var given: UInt64 = 0
  @usableFromInline let counters: QueueCounters
  /// There is more to do without a kick or a completion.
  @usableFromInline var wantsTurn = false

  /// The queue takes no chains until its rate limit lets it.
  @usableFromInline var isThrottled = false
  /// The token of the wait under way, or of the last one.
  @usableFromInline var throttleToken: UInt64 = 0

  /// The queue is being stopped: what cannot end soon is to end badly.
  public internal(set) var isDraining = false

  init(ring: consuming R, tools: ThreadTools, stem: Token, counters: QueueCounters) {
    self.ring = ring
    self.tools = tools
    unsafe uring = unsafe tools.uring
    self.stem = stem
    self.counters = counters
  }

  /// The queue's size; heads are below it.
  @inlinable public var size: UInt16 { ring.size }

  /// The next available chain; nil when there is none or this turn's share is used up.
  @inlinable @inline(__always)
  public mutating func next() -> Chain? {
    guard budget > 0, byteBudget > 0 else { return nil }
    guard let chain = ring.next() else { return nil }
    budget &-= 1
    byteBudget &-= chain.byteCount
    taken &+= 1
    return chain
  }

  /// The next available chain, outside this queue's share: for what a neighbour hands over, whose share it is
  /// (`NeighbourWorker`).
  @inlinable @inline(__always)
  public mutating func pull() -> Chain? {
    guard let chain = ring.next() else { return nil }
    taken &+= 1
    return chain
  }

  /// Gives a chain back. `written`: bytes written from the start of its writable part (virtio 1.3 §2.7.8.2).
  @inlinable @inline(__always)
  public mutating func complete(_ chain: consuming Chain, written: UInt32) {
    if ring.marksBuffers { ring.mark(chain, bytes: written) }
    ring.complete(chain, written: written)
    given &+= 1
  }

  /// As `complete`, where `written` does not tell what was: everything that is still among the chain's writable segments
  /// may have been, and `byte`, in the memory that the chain gave, which may be in none of them any more. A migration has
  /// to know (`noteWritten`).
  @unsafe @inlinable @inline(__always)
  public mutating func complete(
    _ chain: consuming Chain, written: UInt32, touching byte: UnsafeMutableRawPointer
  ) {
    if ring.marksBuffers {
      ring.mark(chain, bytes: chain.writable.byteCount)
      unsafe ring.mark(chain, byte: byte)
    }
    ring.complete(chain, written: written)
    given &+= 1
  }

  /// What a chain's writable segments name may have been written, and they are about to be cut: a device that changes its
  /// chain's segments says so before.
  @inlinable
  public mutating func noteWritten(_ chain: borrowing Chain) {
    if ring.marksBuffers { ring.mark(chain, bytes: chain.writable.byteCount) }
  }

  /// The chain held under `head`; nil where none is.
  @inlinable @inline(__always)
  public mutating func take(_ head: UInt16) -> Chain? { ring.take(head) }

  /// Gives a chain back as if it had never been taken: from `drain`, the last one taken first, by a device that completes
  /// in order.
  @inlinable public mutating func untake(_ chain: consuming Chain) { ring.untake(chain) }

  /// Asks for another turn at once, once the neighbours have had theirs.
  @inlinable @inline(__always)
  public mutating func again() { wantsTurn = true }

  /// Adds to one of the device's own counters, by its place in `DeviceIdentity.counters`.
  @inlinable public func count(_ counter: Int, _ amount: UInt64 = 1) {
    counters.add(amount, to: counter &+ QueueCounters.firstOwn)
  }

  // MARK: I/O; each ends in the worker's `completed` with the same head and part.

  /// Reads from a file, at a byte offset, into 1 to 1024 vectors. They, and what they name, stay valid till completion:
  /// true of a held chain's own segments.
  @unsafe @inlinable @inline(__always)
  public mutating func readv(
    _ file: FileSlot, _ vectors: UnsafePointer<iovec>, count: Int, offset: UInt64, head: UInt16,
    part: UInt8 = 0
  ) {
    outstanding &+= 1
    if unsafe tools.pinned.pointee.count > 0,
      unsafe moveFixed(
        file, vectors, count, offset, writes: false, durable: false, token: stem.with(part: part, head: head))
    {
      return
    }
    unsafe uring.pointee.readv(
      file, vectors, count: count, offset: offset, token: stem.with(part: part, head: head))
  }

  /// As `readv`, the other way; `durable`: on stable storage at completion.
  @unsafe @inlinable @inline(__always)
  public mutating func writev(
    _ file: FileSlot, _ vectors: UnsafePointer<iovec>, count: Int, offset: UInt64, durable: Bool,
    head: UInt16,
    part: UInt8 = 0
  ) {
    outstanding &+= 1
    if unsafe tools.pinned.pointee.count > 0,
      unsafe moveFixed(
        file, vectors, count, offset, writes: true, durable: durable, token: stem.with(part: part, head: head)
      )
    {
      return
    }
    unsafe uring.pointee.writev(
      file, vectors, count: count, offset: offset, durable: durable,
      token: stem.with(part: part, head: head))
  }

  /// The same with a registered buffer, where all the vectors lie in one. False: go the usual way.
  @unsafe @usableFromInline @inline(never)
  mutating func moveFixed(
    _ file: FileSlot, _ vectors: UnsafePointer<iovec>, _ count: Int, _ offset: UInt64, writes: Bool,
    durable: Bool, token: UInt64
  ) -> Bool {
    // SAFETY: `count` vectors, which are valid till completion; the view is the thread's own.
    guard let slot = unsafe tools.pinned.pointee.slot(of: vectors, count) else { return false }
    let one = count == 1
    let operation: IOUring.Operation =
      writes ? (one ? .writeFixed : .writevFixed) : (one ? .readFixed : .readvFixed)
    unsafe uring.pointee.moveFixed(
      operation, on: file, offset: offset,
      address: one ? UInt(bitPattern: vectors[0].iov_base) : UInt(bitPattern: vectors),
      length: UInt32(truncatingIfNeeded: one ? vectors[0].iov_len : count),
      operationFlags: durable ? UInt32(CLX_RWF_DSYNC) : 0, buffer: slot, token: token)
    counters.add(to: .pinned)
    return true
  }

  /// Comes back each time the file becomes readable, with `more` set, until it is cancelled or the file fails: then once
  /// without.
  @inlinable public mutating func pollReadable(_ file: FileSlot, head: UInt16, part: UInt8 = 0) {
    outstanding &+= 1
    unsafe uring.pointee.pollReadable(file, token: stem.with(part: part, head: head))
  }

  /// Comes back once, when the file can be written.
  @inlinable public mutating func pollWritable(_ file: FileSlot, head: UInt16, part: UInt8 = 0) {
    outstanding &+= 1
    unsafe uring.pointee.pollWritable(file, token: stem.with(part: part, head: head))
  }

  /// Ends a poll; it comes back once more, without `more`.
  @inlinable public mutating func cancelPoll(head: UInt16, part: UInt8 = 0) {
    unsafe uring.pointee.cancelPoll(
      target: stem.with(part: part, head: head), token: Token(.ignored, seat: stem.seat, epoch: 0).raw)
  }

  /// Comes back after a while (0.2 s), to try again what failed for want of something.
  @inlinable public mutating func pause(head: UInt16, part: UInt8 = 0) {
    outstanding &+= 1
    unsafe uring.pointee.pause(token: stem.with(part: part, head: head))
  }

  /// Takes no more chains for so long: a rate limit is reached. Then the worker's `completed` comes, once, and the queue
  /// goes on; a queue that is stopped meanwhile does not wait for it. The chain that has to wait is held under `head`.
  public mutating func throttle(nanoseconds: UInt64, head: UInt16, part: UInt8) {
    outstanding &+= 1
    isThrottled = true
    budget = 0
    throttleToken = stem.with(part: part, head: head)
    unsafe uring.pointee.wait(nanoseconds: nanoseconds, token: throttleToken)
  }

  /// Ends the wait there may be, for a queue that is stopped.
  mutating func endThrottle() {
    guard isThrottled else { return }
    unsafe uring.pointee.cancelWait(
      target: throttleToken, token: Token(.ignored, seat: stem.seat, epoch: 0).raw)
  }

  /// Whether a completion is the end of the wait; the queue goes on then.
  @inlinable @inline(__always)
  mutating func endsThrottle(_ token: UInt64) {
    if isThrottled, token == throttleToken { isThrottled = false }
  }

  /// Does what would hold the queue up on another thread, one after another, and comes back with what it returned.
  @inlinable public mutating func offload(
    head: UInt16, part: UInt8 = 0, _ work: @escaping @Sendable () -> Int32
  ) {
    outstanding &+= 1
    tools.offload(token: stem.with(part: part, head: head), work)
  }

  /// Makes a file's data durable: everything whose completion came before.
  @inlinable public mutating func syncData(_ file: FileSlot, head: UInt16, part: UInt8 = 0) {
    outstanding &+= 1
    unsafe uring.pointee.syncData(file, token: stem.with(part: part, head: head))
  }

  /// Goes to the kernel at once where the thread has prepared so many operations; all others go at the turn's end. For storage
  /// that can work on the first ones meanwhile.
  @inlinable @inline(__always)
  public mutating func submit(atLeast count: UInt32) {
    if unsafe uring.pointee.unsubmitted >= count { unsafe uring.pointee.flush() }
  }
}
