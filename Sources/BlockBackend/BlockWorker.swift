// virtio-blk, data side: one queue's requests, from the chain to the ring and back. On the queue's thread.

import CLinux
import DeviceKit
import Glibc
import HostIO
import VirtQueue

/// Serves one queue of a disk.
@safe struct BlockWorker: ~Copyable, QueueWorker {
  /// What a completion tells of; a plain operation has part 0.
  enum Part {
    static let wait: UInt8 = 1
    static let ranges: UInt8 = 2
    /// A request's turn under the device's rate limits.
    static let turn: UInt8 = 3
  }

  let device: BlockDevice
  let file: FileSlot?
  let engine: BlockEngine
  let raw: Int32
  let map: ImageMap?
  private var cached: CachedReads?
  /// The image, where reads may come from a mapping of it.
  private let mapped: MappedImage?
  // SAFETY: `size` requests; indexed by heads, which are below the queue's size. A request is read only between the
  // `hold` that wrote it and the `take` that ends it.
  let requests: UnsafeMutablePointer<BlockRequest>
  /// Requests of this turn that lie side by side, and are not under way yet.
  var run = RequestRun()
  var runVectors = RunVectors()
  private var gate: RateGate
  /// Of the request that waits for its turn: what was decided on, and is not read again.
  private var waitingHeader = BlockHeader(words: (0, 0))

  init(device: BlockDevice, file: FileSlot?, size: UInt16) {
    self.device = device
    self.file = file
    engine = device.image.engine
    raw = device.image.raw ?? -1
    map = device.image.map
    // By `map` of Optional, debug builds (6.3.1) take nil for a value.
    if let cache = device.image.cacheMap {
      (cached, mapped) = (CachedReads(cache), cache.image)
    } else {
      cached = nil
      if let map { mapped = map.image } else { mapped = nil }
    }
    unsafe requests = .allocate(capacity: Int(size))
    gate = RateGate(device.limiter)
  }

  deinit { unsafe requests.deallocate() }

  mutating func service<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    cached?.beginTurn()
    // One that waits for its turn under a limit has none behind it taken.
    if mapped == nil || gate.isOn {
      while let chain = q.next() {
        let header = Self.header(of: chain)
        begin(chain, header, mayWait: true, &q)
      }
    } else {
      serviceAhead(&q)
    }
    if run.count > 0, let file { startRun(file, &q) }
  }

  /// Looks at each request while the one before it is still to be done: memory that the image is mapped to answers late, and
  /// meanwhile another's bytes are copied.
  private mutating func serviceAhead<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    var now: (head: UInt16, header: BlockHeader?)?
    repeat {
      var coming: (head: UInt16, header: BlockHeader?)?
      if let chain = q.next() {
        let header = Self.header(of: chain)
        if let header, header.type == BlockRequestType.read { mapped?.expect(sector: header.sector) }
        coming = (chain.hold(), header)
      }
      if let now, let chain = q.take(now.head) { begin(chain, now.header, mayWait: false, &q) }
      now = coming
    } while now != nil
  }

  // MARK: A request comes in

  /// A request's header, copied out once; nil where the chain has none.
  @inline(__always)
  private static func header(of chain: borrowing Chain) -> BlockHeader? {
    var words: (UInt64, UInt64) = (0, 0)
    // SAFETY: the buffer is the local pair.
    let copied = unsafe withUnsafeMutableBytes(of: &words) { unsafe chain.readable.copyOut(to: $0) }
    return copied == BlockHeader.byteCount ? BlockHeader(words: words) : nil
  }

  /// `mayWait`: a limit may hold the request back; false where one behind it is taken already.
  private mutating func begin<R: VirtRing & ~Copyable>(
    _ chain: consuming Chain, _ found: BlockHeader?, mayWait: Bool, _ q: inout QueueIO<R>
  ) {
    guard let status = StatusPlace(in: chain.writable) else {
      // Nowhere to say anything: the length tells (virtio 1.3 §2.7.8.2).
      q.count(.malformed)
      q.complete(chain, written: 0)
      return
    }
    guard let header = found, !chain.hasHole else {
      end(chain, .ioError, at: status, &q)
      return
    }
    if mayWait, gate.isOn {
      let delay = admit(header, bytes: chain.byteCount, q)
      if delay > 0 {
        waitForTurn(chain, header, delay, &q)
        return
      }
    }
    dispatch(chain, header, status: status, &q)
  }

  private mutating func dispatch<R: VirtRing & ~Copyable>(
    _ chain: consuming Chain, _ header: BlockHeader, status: StatusPlace, _ q: inout QueueIO<R>
  ) {
    switch header.type {
    case BlockRequestType.read:
      q.count(.reads)
      move(chain, sector: header.sector, .read, status: status, &q)
    case BlockRequestType.write:
      q.count(.writes)
      move(chain, sector: header.sector, .write, status: status, &q)
    case BlockRequestType.flush, BlockRequestType.flushOut:
      q.count(.flushes)
      flush(chain, status: status, &q)
    case BlockRequestType.discard:
      q.count(.discards)
      change(.discard, chain, needs: .discard, status: status, &q)
    case BlockRequestType.writeZeroes:
      q.count(.zeroes)
      change(.zero, chain, needs: .writeZeroes, status: status, &q)
    case BlockRequestType.getID:
      q.count(.identifications)
      identify(chain, status: status, &q)
    default:
      end(chain, .unsupported, at: status, &q)
    }
  }

  // MARK: Rate limits

  /// Takes a request's tokens; returns for how long it has to wait, in nanoseconds. Limits are on what moves data or
  /// changes it: header and status do not count, and a discard counts as a write of no bytes.
  private mutating func admit<R: VirtRing & ~Copyable>(
    _ header: BlockHeader, bytes: Int, _ q: borrowing QueueIO<R>
  ) -> UInt64 {
    let direction: RateLimiter.Direction
    switch header.type {
    case BlockRequestType.read: direction = .read
    case BlockRequestType.write, BlockRequestType.discard, BlockRequestType.writeZeroes: direction = .write
    default: return 0
    }
    let moves = header.type == BlockRequestType.read || header.type == BlockRequestType.write
    let data = UInt64(truncatingIfNeeded: bytes &- BlockHeader.byteCount &- 1)
    return gate.admit(direction, bytes: moves ? data : 0, at: Monotonic.now)
  }

  @inline(never)
  private mutating func waitForTurn<R: VirtRing & ~Copyable>(
    _ chain: consuming Chain, _ header: BlockHeader, _ delay: UInt64, _ q: inout QueueIO<R>
  ) {
    q.count(.throttles)
    waitingHeader = header
    q.throttle(nanoseconds: delay, head: chain.hold(), part: Part.turn)
  }

  /// The waiting request's turn may have come. A queue that is being stopped waits for none.
  @inline(never)
  private mutating func takeTurn<R: VirtRing & ~Copyable>(_ chain: consuming Chain, _ q: inout QueueIO<R>) {
    let now = Monotonic.now
    let delay = q.isDraining ? 0 : gate.remaining(at: now)
    if delay > 0 {
      q.throttle(nanoseconds: delay, head: chain.hold(), part: Part.turn)
      return
    }
    q.count(.throttledNanoseconds, gate.waited(at: now))
    guard let status = StatusPlace(in: chain.writable) else {
      q.complete(chain, written: 0)
      return
    }
    dispatch(chain, waitingHeader, status: status, &q)
  }

  // MARK: Kinds of requests

  /// Reads or writes: checks the request against the disk, and starts the transfer.
  private mutating func move<R: VirtRing & ~Copyable>(
    _ chain: consuming Chain, sector: UInt64, _ kind: BlockRequest.Kind, status: StatusPlace,
    _ q: inout QueueIO<R>
  ) {
    // Both parts are there (see `begin`), so neither difference can be negative.
    let readable = chain.readable.byteCount &- UInt32(BlockHeader.byteCount)
    let writable = chain.writable.byteCount &- 1
    let (bytes, strays) = kind == .write ? (readable, writable) : (writable, readable)
    let (offset, overflow) = sector.multipliedReportingOverflow(by: sectorBytes)
    let (end, pastEnd) = offset.addingReportingOverflow(UInt64(bytes))
    guard strays == 0, UInt64(bytes) % sectorBytes == 0, !overflow, !pastEnd, end <= device.byteCount,
      kind == .read || !device.isReadOnly
    else {
      self.end(chain, .ioError, at: status, &q)
      return
    }
    guard bytes > 0, let file else {
      finish(chain, kind, bytes, at: status, &q)
      return
    }
    var data = kind == .write ? VectorRun(chain.readable) : VectorRun(chain.writable)
    if kind == .write { data.dropFirst(BlockHeader.byteCount) } else { data.dropLastByte() }
    if kind == .read, cached?.read(data, offset: offset, bytes: bytes) == true {
      q.count(.mapped)
      finish(chain, kind, bytes, at: status, &q)
      return
    }
    let request = BlockRequest(
      kind: kind, status: status, data: data, offset: offset, left: bytes, total: bytes)
    if canMerge(request) { gather(chain, request, file, &q) } else { submit(chain, request, file, &q) }
  }

  private mutating func flush<R: VirtRing & ~Copyable>(
    _ chain: consuming Chain, status: StatusPlace, _ q: inout QueueIO<R>
  ) {
    guard let file else {
      finish(chain, .flush, 0, at: status, &q)
      return
    }
    q.count(.syncs)
    let request = BlockRequest(kind: .flush, status: status, data: VectorRun(chain.writable))
    submit(chain, request, file, &q)
  }

  /// Discards or zeroes ranges, on the helper: the calls for that may take long, and no ring has them.
  private mutating func change<R: VirtRing & ~Copyable>(
    _ action: RangeAction, _ chain: consuming Chain, needs feature: FeatureSet, status: StatusPlace,
    _ q: inout QueueIO<R>
  ) {
    guard device.has(feature), let storage = device.image.storage else {
      end(chain, device.isReadOnly ? .ioError : .unsupported, at: status, &q)
      return
    }
    switch BlockRanges(action, in: chain.readable, byteCount: device.byteCount) {
    case .refused(let refusal): end(chain, refusal, at: status, &q)
    case .ranges where chain.writable.byteCount != 1: end(chain, .ioError, at: status, &q)
    case .ranges(let ranges):
      let request = BlockRequest(kind: .flush, status: status, data: VectorRun(chain.writable))
      let head = chain.hold()
      // SAFETY: head < size.
      unsafe requests[Int(head)] = request
      let (durable, bounce, limits) = (device.mustBeDurable, device.bounce, device.image.limits)
      if let map { for range in ranges { map.forget(range.offset, range.count) } }
      q.offload(head: head, part: Part.ranges) {
        storage.apply(action, ranges, durable: durable, limits: limits, bounce: bounce)
      }
    }
  }

  /// The serial, NUL padded, as much of it as there is room for; room past it is zeroed.
  private func identify<R: VirtRing & ~Copyable>(
    _ chain: consuming Chain, status: StatusPlace, _ q: inout QueueIO<R>
  ) {
    let room = chain.writable.byteCount &- 1
    var at = 0
    _ = chain.writable.fill { span in
      for i in 0..<span.byteCount {
        span.storeBytes(of: at < device.serial.count ? device.serial[at] : 0, toByteOffset: i, as: UInt8.self)
        at += 1
      }
      return true
    }
    end(chain, .ok, at: status, written: room &+ 1, &q)
  }

  mutating func completed<R: VirtRing & ~Copyable>(_ completion: Completion, _ q: inout QueueIO<R>) {
    // SAFETY: an operation without a part is a request's, head < size.
    if completion.part == 0, let file,
      unsafe requests[Int(completion.head)].follower != BlockRequest.none
    {
      endRun(completion.head, result: completion.result, file, &q)
      return
    }
    guard let chain = q.take(completion.head) else { return }
    if completion.part == Part.turn {
      takeTurn(chain, &q)
      if run.count > 0, let file { startRun(file, &q) }
      return
    }
    guard let file else { return }
    // SAFETY: a held chain's request, head < size.
    var request = unsafe requests[Int(completion.head)]
    switch completion.part {
    case Part.wait:
      submit(chain, request, file, &q)
      return
    case Part.ranges:
      end(chain, completion.result == 0 ? .ok : .ioError, at: request.status, &q)
      return
    default: break
    }
    switch judge(completion.result, &request, chain, &q) {
    case .finished: finish(chain, request.kind, request.total, at: request.status, &q)
    case .failed: end(chain, .ioError, at: request.status, &q)
    case .waiting: wait(chain, request, &q)
    case .more: submit(chain, request, file, &q)
    }
  }
}

extension QueueIO where R: ~Copyable {
  func count(_ counter: BlockCounter, _ amount: UInt64 = 1) { count(counter.rawValue, amount) }
}
