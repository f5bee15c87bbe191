// Merging: requests of one turn whose data lie side by side on the storage are moved by one operation. What a driver sends that has
// no scheduler, or fills a queue faster than its own merges. On the queue's thread.

import DeviceKit
import Glibc
import HostIO
import VirtQueue

/// Requests that were taken in this turn and are not under way yet. They are held chains, linked by `BlockRequest.follower`.
struct RequestRun {
  /// What one operation takes: more would only make the first of them wait for the last.
  static let mostVectors = 256
  static let mostBytes: UInt32 = 256 << 10

  private(set) var count = 0
  private(set) var first: UInt16 = 0
  private(set) var last: UInt16 = 0
  private(set) var vectors = 0
  private var kind = BlockRequest.Kind.read
  private var bytes: UInt32 = 0
  /// Where the next request's data would have to begin.
  private var end: UInt64 = 0

  /// Whether a request goes on where this run ends.
  func takes(_ request: BlockRequest) -> Bool {
    count > 0 && request.offset == end && request.kind == kind
      && vectors &+ request.data.count <= Self.mostVectors
      && UInt64(bytes) &+ UInt64(request.left) <= UInt64(Self.mostBytes)
  }

  mutating func begin(_ request: BlockRequest, head: UInt16) {
    self = RequestRun()
    first = head
    kind = request.kind
    add(request, head: head)
  }

  mutating func add(_ request: BlockRequest, head: UInt16) {
    last = head
    count &+= 1
    vectors &+= request.data.count
    bytes &+= request.left
    end = request.offset &+ UInt64(request.left)
  }
}

/// Arrays for the vectors of runs that are under way, made when the first run is. Where all are in use requests go one by one.
@safe struct RunVectors: ~Copyable {
  private static var arrays: Int { 32 }
  // SAFETY: `arrays` arrays of `RequestRun.mostVectors` vectors; one whose bit is not in `free` is a run's, until its completion.
  private var storage: UnsafeMutablePointer<iovec>?
  private var free = UInt32.max

  init() {}

  deinit { unsafe storage?.deallocate() }

  /// The number of an array; nil where all are in use.
  mutating func take() -> UInt8? {
    guard free != 0 else { return nil }
    if unsafe storage == nil { make() }
    let number = UInt8(truncatingIfNeeded: free.trailingZeroBitCount)
    free &= free &- 1
    return number
  }

  mutating func give(_ number: UInt8) { free |= 1 << UInt32(number) }

  /// `number`: one that was taken.
  @unsafe func array(_ number: UInt8) -> UnsafeMutablePointer<iovec>? {
    unsafe storage.map { unsafe $0 + Int(number) * RequestRun.mostVectors }
  }

  @inline(never)
  private mutating func make() {
    unsafe storage = .allocate(capacity: Self.arrays * RequestRun.mostVectors)
  }
}

extension BlockWorker {
  /// Takes a request that may be moved together with the next ones: the run is started when another does not go on where it ends,
  /// or the turn is over.
  mutating func gather<R: VirtRing & ~Copyable>(
    _ chain: consuming Chain, _ request: BlockRequest, _ file: FileSlot, _ q: inout QueueIO<R>
  ) {
    let head = chain.hold()
    // SAFETY: head < size. The vectors stay with the held chain.
    unsafe requests[Int(head)] = request
    if run.takes(request) {
      // SAFETY: as above.
      unsafe requests[Int(run.last)].follower = head
      run.add(request, head: head)
    } else {
      startRun(file, &q)
      run.begin(request, head: head)
    }
  }

  /// Starts what was gathered.
  mutating func startRun<R: VirtRing & ~Copyable>(_ file: FileSlot, _ q: inout QueueIO<R>) {
    let run = run
    self.run = RequestRun()
    guard run.count > 1, let number = runVectors.take(), let vectors = unsafe runVectors.array(number) else {
      startEach(from: run.first, count: run.count, file, &q)
      return
    }
    q.count(.merged, UInt64(run.count &- 1))
    var filled = 0
    var head = run.first
    for _ in 0..<run.count {
      // SAFETY: the heads of the run, held under their requests; `vectors` has room for all of theirs (`takes`).
      let request = unsafe requests[Int(head)]
      for i in 0..<request.data.count { unsafe vectors[filled &+ i] = request.data.first[i] }
      filled &+= request.data.count
      head = request.follower
    }
    // SAFETY: as above.
    unsafe requests[Int(run.first)].runArray = number
    let request = unsafe requests[Int(run.first)]
    if engine == .inline {
      let moved = unsafe call(request, vectors, filled)
      endRun(run.first, result: moved, file, &q)
    } else if request.kind == .read {
      unsafe q.readv(file, vectors, count: filled, offset: request.offset, head: run.first)
    } else {
      unsafe q.writev(
        file, vectors, count: filled, offset: request.offset, durable: device.mustBeDurable, head: run.first)
    }
    if engine == .direct { q.submit(atLeast: Self.directBatch) }
  }

  /// The end of a run's one operation. Requests that it did not move whole are started again, each by itself, so that what went
  /// wrong is told of the one it belongs to.
  @inline(never)
  mutating func endRun<R: VirtRing & ~Copyable>(
    _ first: UInt16, result: Int32, _ file: FileSlot, _ q: inout QueueIO<R>
  ) {
    // SAFETY: a run's first request.
    unsafe runVectors.give(requests[Int(first)].runArray)
    var left = UInt32(max(0, result))
    var next = first
    while next != BlockRequest.none {
      let head = next
      // SAFETY: heads of the run, held under their requests.
      let request = unsafe requests[Int(head)]
      next = request.follower
      guard left >= request.left else {
        left = 0
        q.count(.continued)
        startEach(from: head, count: 1, file, &q)
        continue
      }
      left -= request.left
      guard let chain = q.take(head) else { continue }
      if request.kind == .write { map?.wrote(request.offset, request.left) }
      finish(chain, request.kind, request.total, at: request.status, &q)
    }
  }

  /// Starts requests of a run one by one.
  private mutating func startEach<R: VirtRing & ~Copyable>(
    from first: UInt16, count: Int, _ file: FileSlot, _ q: inout QueueIO<R>
  ) {
    var next = first
    for _ in 0..<count {
      let head = next
      // SAFETY: heads of the run, held under their requests.
      next = unsafe requests[Int(head)].follower
      unsafe requests[Int(head)].follower = BlockRequest.none
      let request = unsafe requests[Int(head)]
      if engine == .inline {
        guard let chain = q.take(head) else { continue }
        moveInPlace(chain, request, file, &q)
      } else {
        start(head, request, file, &q)
      }
    }
  }
}
