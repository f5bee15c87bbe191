// virtio-blk, data side: moving a request's data, in one operation or several, and giving the request back. On the queue's
// thread.

import CLinux
import DeviceKit
import Glibc
import HostIO
import VirtQueue

extension BlockWorker {
  /// More vectors than the kernel takes in one operation are moved in several.
  private static var vectorLimit: Int { 1024 }
  private static var retryLimit: UInt8 { 100 }
  /// Operations past the page cache that go to the kernel together. It starts the device when it has seen the last of them, after
  /// microseconds for each; the more at once, the longer the device has nothing to do.
  static var directBatch: UInt32 { 8 }

  /// Begins a request, or goes on with one: in place, or with the chain held under its head until the completion.
  mutating func submit<R: VirtRing & ~Copyable>(
    _ chain: consuming Chain, _ request: BlockRequest, _ file: FileSlot, _ q: inout QueueIO<R>
  ) {
    if engine == .inline && request.kind != .flush || engine == .huge && request.kind == .read {
      moveInPlace(chain, request, file, &q)
      return
    }
    let head = chain.hold()
    // SAFETY: head < size. The vectors stay with the held chain.
    unsafe requests[Int(head)] = request
    start(head, request, file, &q)
  }

  /// Moves as much of a held request as one operation can.
  mutating func start<R: VirtRing & ~Copyable>(
    _ head: UInt16, _ request: BlockRequest, _ file: FileSlot, _ q: inout QueueIO<R>
  ) {
    if engine == .direct && request.kind != .flush && !fitsDirect(request)
      || engine == .huge && request.kind == .write
    {
      bounce(head, request, &q)
      return
    }
    let count = min(request.data.count, Self.vectorLimit)
    // SAFETY: the vectors are the held chain's own.
    switch request.kind {
    case .read: unsafe q.readv(file, request.data.first, count: count, offset: request.offset, head: head)
    case .write:
      unsafe q.writev(
        file, request.data.first, count: count, offset: request.offset, durable: device.mustBeDurable,
        head: head)
    case .flush: q.syncData(file, head: head)
    }
    if engine == .direct { q.submit(atLeast: Self.directBatch) }
  }

  /// Whether a request may be moved together with its neighbours.
  func canMerge(_ request: BlockRequest) -> Bool {
    switch engine {
    case .null, .huge: false
    case .ring: true
    case .direct: fitsDirect(request)
    // Reads come from the mapping.
    case .inline: request.kind == .write
    }
  }

  /// A memory file system answers at once; going through the ring would only add a worker thread.
  mutating func moveInPlace<R: VirtRing & ~Copyable>(
    _ chain: consuming Chain, _ start: BlockRequest, _ file: FileSlot, _ q: inout QueueIO<R>
  ) {
    var request = start
    if request.kind == .read, let map,
      map.read(request.data, offset: request.offset, bytes: request.left)
    {
      q.count(.mapped)
      finish(chain, .read, request.total, at: request.status, &q)
      return
    }
    while true {
      // SAFETY: the vectors are the chain's, which is alive.
      let moved = unsafe call(
        request, request.data.first, min(request.data.count, Self.vectorLimit))
      switch judge(moved, &request, chain, &q) {
      case .finished:
        if request.kind == .write { map?.wrote(start.offset, start.left) }
        finish(chain, request.kind, request.total, at: request.status, &q)
      case .failed: end(chain, .ioError, at: request.status, &q)
      case .waiting: wait(chain, request, &q)
      case .more: continue
      }
      return
    }
  }

  /// Reads or writes at a request's place, in place: bytes, or a negated errno.
  @unsafe func call(_ request: BlockRequest, _ vectors: UnsafePointer<iovec>, _ count: Int) -> Int32 {
    let place = Int64(request.offset)
    // SAFETY: as many vectors, which the caller keeps; the descriptor is the image's.
    let moved =
      request.kind == .read
      ? unsafe clx_preadv2(raw, vectors, Int32(count), place, 0)
      : unsafe clx_pwritev2(
        raw, vectors, Int32(count), place, device.mustBeDurable ? Int32(CLX_RWF_DSYNC) : 0)
    return moved < 0 ? -errno : Int32(clamping: moved)
  }

  /// O_DIRECT takes whole blocks from and to aligned memory.
  private func fitsDirect(_ request: BlockRequest) -> Bool {
    let limits = device.image.limits
    let block = UInt64(limits.logicalBlock)
    return request.offset % block == 0 && UInt64(request.left) % block == 0
      && request.data.isAligned(to: UInt(max(1, limits.memoryAlignment)))
  }

  private mutating func bounce<R: VirtRing & ~Copyable>(
    _ head: UInt16, _ request: BlockRequest, _ q: inout QueueIO<R>
  ) {
    guard let storage = device.image.storage else { return }
    q.count(.bounced)
    let (limits, bounce) = (device.image.limits, device.bounce)
    let move = BounceRequest(
      kind: request.kind, vectors: BorrowedVectors(request.data), offset: request.offset, bytes: request.left,
      durable: device.mustBeDurable)
    q.offload(head: head) { bounce.move(move, storage: storage, limits: limits) }
  }

  /// What the result of one operation means for its request.
  enum Verdict { case finished, more, waiting, failed }

  func judge<R: VirtRing & ~Copyable>(
    _ result: Int32, _ request: inout BlockRequest, _ chain: borrowing Chain, _ q: inout QueueIO<R>
  ) -> Verdict {
    if result == -EINTR || result == -EAGAIN, request.retries < Self.retryLimit {
      request.retries += 1
      q.count(.continued)
      return .more
    }
    if result == -ENOSPC, device.waitsForSpace, !q.isDraining { return .waiting }
    // An error, or nothing moved: the end of a truncated image.
    guard result >= 0, UInt64(result) <= UInt64(request.left), result > 0 || request.left == 0 else {
      return .failed
    }
    let moved = UInt32(result)
    if moved == request.left { return .finished }
    if request.kind == .read { q.noteWritten(chain) }
    request.data.dropFirst(Int(moved))
    request.offset &+= UInt64(moved)
    request.left &-= moved
    q.count(.continued)
    return .more
  }

  /// Full storage: tries again after a while.
  mutating func wait<R: VirtRing & ~Copyable>(
    _ chain: consuming Chain, _ request: BlockRequest, _ q: inout QueueIO<R>
  ) {
    q.count(.waits)
    let head = chain.hold()
    // SAFETY: head < size.
    unsafe requests[Int(head)] = request
    q.pause(head: head, part: Part.wait)
  }

  // MARK: A request goes out

  /// Ends a request that moved all its `bytes`.
  func finish<R: VirtRing & ~Copyable>(
    _ chain: consuming Chain, _ kind: BlockRequest.Kind, _ bytes: UInt32, at status: StatusPlace,
    _ q: inout QueueIO<R>
  ) {
    switch kind {
    case .read: q.count(.bytesRead, UInt64(bytes))
    case .write: q.count(.bytesWritten, UInt64(bytes))
    case .flush: break
    }
    end(chain, .ok, at: status, written: kind == .read ? bytes &+ 1 : 1, &q)
  }

  /// Writes the status and gives the chain back. `written` counts from the first writable byte; a request that failed
  /// wrote none of its data, so that its status counts only where it is that byte.
  func end<R: VirtRing & ~Copyable>(
    _ chain: consuming Chain, _ status: BlockStatus, at place: StatusPlace, written: UInt32? = nil,
    _ q: inout QueueIO<R>
  ) {
    switch status {
    case .ok: break
    case .ioError: q.count(.errors)
    case .unsupported: q.count(.unsupported)
    }
    // SAFETY: a byte of guest memory that the chain lets us write.
    unsafe clx_store_relaxed_u8(place.byte, status.rawValue)
    // Its segments no longer have the status byte, and a read that failed may have written some of them.
    let honest: UInt32 = chain.writable.byteCount == 1 ? 1 : 0
    unsafe q.complete(chain, written: written ?? honest, touching: place.byte)
  }
}
