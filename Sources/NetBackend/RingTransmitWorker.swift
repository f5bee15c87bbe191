// The transmit side of a pair on a tap by operations of the thread's io_uring, a turn's worth at a time, in place of a call
// a frame (`--tap-io ring`). The tap does not wait, so the kernel carries the operations out, in order, when they are
// submitted. Receiving has no such twin: a read of the ring that finds no frame waits for one, before kernel 6.5 whatever
// it is asked, and several of them would take frames out of order. On the queue's thread.

import CLinux
import DeviceKit
import Glibc
import HostIO
import VirtQueue

@safe struct RingTransmitWorker: ~Copyable, QueueWorker {
  /// Vectors of one frame, its head apart: more than Linux's drivers use.
  private static var pieces: Int { 24 }

  /// Beside those of the worker for single frames.
  private enum Part { static var turn: UInt8 { 4 } }

  private let file: FileSlot
  private let frame: OutgoingFrame
  private let capture: PacketCapture?
  private let size: Int
  // SAFETY: by head: room for a frame's head, `pieces` + 1 vectors, and how many of them it has (0: dropped). Heads are below
  // `size`.
  private let heads: UnsafeMutableRawPointer
  private let vectors: UnsafeMutablePointer<iovec>
  private let counts: UnsafeMutablePointer<Int32>
  /// Frames that are out, or were dropped behind such, in their order: chains are completed in it.
  private var order: HeadQueue
  // SAFETY: as above: the frame's operation has ended.
  private let ended: UnsafeMutablePointer<Bool>
  /// A chain in more pieces than there is room for waits until it is alone.
  private var tooLong: UInt16?
  /// A chain that its limit lets go later; it is not out yet.
  private var waiting: UInt16?
  private var gate: RateGate
  private var slow: TransmitWorker<TapPort>

  init(
    _ tap: Tap, queue: Int, file: FileSlot, size: UInt16, frame: OutgoingFrame, limiter: RateLimiter,
    capture: PacketCapture?
  ) {
    self.file = file
    gate = RateGate(limiter)
    self.frame = frame
    self.capture = capture
    self.size = Int(size)
    unsafe heads = .allocate(byteCount: self.size * OutgoingFrame.headRoom, alignment: 64)
    unsafe vectors = .allocate(capacity: self.size * (Self.pieces + 1))
    unsafe counts = .allocate(capacity: self.size)
    unsafe counts.initialize(repeating: 0, count: self.size)
    unsafe ended = .allocate(capacity: self.size)
    unsafe ended.initialize(repeating: false, count: self.size)
    order = HeadQueue(size: size)
    slow = TransmitWorker(
      port: TapPort(tap, queue: queue, file: file), frame: frame, limiter: limiter, capture: capture)
  }

  deinit {
    unsafe heads.deallocate()
    unsafe vectors.deallocate()
    unsafe counts.deallocate()
    unsafe ended.deallocate()
  }

  mutating func service<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    while isFree, let chain = q.next() { begin(chain, &q) }
  }

  /// Nothing stands before the next chain.
  private var isFree: Bool { tooLong == nil && waiting == nil && !slow.isWaiting }

  var wantsChains: Bool { isFree }

  static var servesDisabled: Bool { true }

  mutating func serviceDisabled<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    // What is out before comes first.
    guard order.isEmpty, isFree else { return }
    slow.serviceDisabled(&q)
  }

  /// `hasTurn`: the frame's tokens were taken before.
  private mutating func begin<R: VirtRing & ~Copyable>(
    _ chain: consuming Chain, _ q: inout QueueIO<R>, hasTurn: Bool = false
  ) {
    let place = Int(chain.head)
    // SAFETY (all of the body): the chain's own places, by its head.
    let head = unsafe heads + place * OutgoingFrame.headRoom
    let list = unsafe vectors + place * (Self.pieces + 1)
    var count = 0
    switch unsafe frame.examine(chain, head: head) {
    case .drop(let fault): q.count(fault)
    case .send(let out):
      if gate.isOn, !hasTurn {
        let bytes = UInt64(Int(chain.readable.byteCount) - frame.headerBytes)
        let delay = gate.admit(.write, bytes: bytes, at: Monotonic.now)
        if delay > 0 {
          q.count(.throttles)
          let held = chain.hold()
          waiting = held
          q.throttle(nanoseconds: delay, head: held, part: Part.turn)
          return
        }
      }
      guard let gathered = unsafe frame.gather(chain, out, head: head, into: list, room: Self.pieces) else {
        tooLong = chain.hold()
        sendAlone(&q)
        return
      }
      count = gathered
    }
    unsafe counts[place] = Int32(truncatingIfNeeded: count)
    unsafe ended[place] = count == 0
    let held = chain.hold()
    order.append(held)
    if count > 0 {
      unsafe q.writev(file, list, count: count, offset: .max, durable: false, head: held)
    } else {
      settle(&q)
    }
  }

  mutating func completed<R: VirtRing & ~Copyable>(_ completion: Completion, _ q: inout QueueIO<R>) {
    if completion.part == Part.turn {
      takeTurn(&q)
      return
    }
    let isRetry = completion.part == TransmitWorker<TapPort>.Part.retry
    let place = Int(completion.head)
    guard place < size else { return }
    if slow.isWaiting || isRetry {
      slow.completed(completion, &q)
      return
    }
    // SAFETY: as in `begin`; the chain is still held.
    let list = unsafe vectors + place * (Self.pieces + 1)
    let count = unsafe Int(counts[place])
    if completion.result > 0 {
      let bytes = Int(completion.result) - frame.headerBytes
      q.count(.frames)
      q.count(.bytes, UInt64(max(0, bytes)))
      if let capture, unsafe !capture.note(list, count: count, skipping: frame.headerBytes, bytes: bytes) {
        q.count(.uncaptured)
      }
    } else {
      // A tap that takes nothing now (EAGAIN) has lost the frame: those behind it may be gone already.
      q.count(OutgoingFrame.counter(for: -Int(completion.result)))
      slow.noteFailure(-Int(completion.result), &q)
    }
    unsafe ended[place] = true
    settle(&q)
    sendAlone(&q)
  }

  /// The waiting chain's turn may have come.
  private mutating func takeTurn<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    guard let held = waiting else { return }
    let now = Monotonic.now
    let delay = gate.remaining(at: now)
    if delay > 0 {
      q.throttle(nanoseconds: delay, head: held, part: Part.turn)
      return
    }
    q.count(.throttledNanoseconds, gate.waited(at: now))
    waiting = nil
    if let chain = q.take(held) { begin(chain, &q, hasTurn: true) }
  }

  /// Completes what has ended, in order.
  private mutating func settle<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    // SAFETY: heads are below `size`.
    while let head = order.first, unsafe ended[Int(head)] {
      order.removeFirst()
      if let chain = q.take(head) { q.complete(chain, written: 0) }
    }
  }

  private mutating func sendAlone<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    guard order.isEmpty, let head = tooLong, let chain = q.take(head) else { return }
    tooLong = nil
    slow.transmit(chain, &q, hasTurn: true)
  }

  mutating func drain<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    // What is out ends by itself; what was not begun goes back.
    slow.drain(&q)
    guard let head = tooLong ?? waiting, let chain = q.take(head) else { return }
    tooLong = nil
    waiting = nil
    q.untake(chain)
  }
}
