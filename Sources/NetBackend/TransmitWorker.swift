// virtio-net, the transmit side of one pair: frames from the guest to the port. On the queue's thread.
//
// A frame's header and addresses are copied out once, checked, and sent from the copy; the rest goes straight from the
// guest's memory. What must not be sent is dropped and counted, and the queue goes on.

import CLinux
import DeviceKit
import Glibc
import HostIO
import VirtQueue

@safe struct TransmitWorker<Port: PacketPort & ~Copyable>: ~Copyable, QueueWorker {
  enum Part {
    static var writable: UInt8 { 1 }
    static var turn: UInt8 { 2 }
    static var retry: UInt8 { 3 }
  }

  /// The kernel takes 1024 vectors a call.
  private static var mostVectors: Int { 1000 }

  private var port: Port
  private let frame: OutgoingFrame
  private let capture: PacketCapture?
  // SAFETY: a head's room; behind it `mostVectors` and one for the head. In `memory`.
  private let memory: WorkerMemory
  private let head: UnsafeMutableRawPointer
  private let vectors: UnsafeMutablePointer<iovec>
  /// For a frame in more pieces than the kernel takes; made when there is one.
  // SAFETY: `longestFrame` bytes.
  private var whole: WorkerMemory?
  /// The chain that waits until the port takes frames again, or until its limit lets it go.
  private var waiting: UInt16?
  private var waitsForPort = false
  /// Its device was gone, and is looked for again soon.
  private var isBroken = false
  private var gate: RateGate

  init(port: consuming Port, frame: OutgoingFrame, limiter: RateLimiter, capture: PacketCapture?) {
    self.port = port
    gate = RateGate(limiter)
    self.frame = frame
    self.capture = capture
    let count = Self.mostVectors + 1
    let listBytes = unsafe count * MemoryLayout<iovec>.stride
    memory = WorkerMemory(byteCount: OutgoingFrame.headRoom + listBytes)
    unsafe head = memory.bytes
    unsafe head.initializeMemory(as: UInt8.self, repeating: 0, count: OutgoingFrame.headRoom)
    let behind = unsafe head + OutgoingFrame.headRoom
    unsafe vectors = behind.bindMemory(to: iovec.self, capacity: count)
  }

  mutating func service<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    if port.file == nil, !gate.isOn {
      if waiting == nil { serviceAhead(&q) }
      return
    }
    while waiting == nil, let chain = q.next() { transmit(chain, &q) }
  }

  /// Takes a few chains ahead of the one that is sent, so that their frames' beginnings are at hand when they are looked at. Only for a
  /// port that lets none wait, and without a limit: nothing is ever put back. A tap's call takes longer than what this saves.
  private mutating func serviceAhead<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    var heads = InlineArray<16, UInt16>(repeating: 0)
    var count: Int
    repeat {
      count = 0
      while count < heads.count, let chain = q.next() {
        chain.prefetchReadable()
        heads[count] = chain.hold()
        count += 1
      }
      for i in 0..<count { if let chain = q.take(heads[i]) { transmit(chain, &q, hasTurn: true) } }
    } while count == heads.count
  }

  var wantsChains: Bool { waiting == nil }

  static var servesDisabled: Bool { true }

  /// What a driver sends while its queue is disabled goes nowhere (vhost-user, "Ring states").
  mutating func serviceDisabled<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    while waiting == nil, let chain = q.next() {
      q.count(.discarded)
      q.complete(chain, written: 0)
    }
  }

  mutating func completed<R: VirtRing & ~Copyable>(_ completion: Completion, _ q: inout QueueIO<R>) {
    if completion.part == Part.retry {
      isBroken = false
      if !q.isDraining { _ = port.repair() }
      return
    }
    guard let held = waiting else { return }
    if completion.part == Part.turn {
      let now = Monotonic.now
      let delay = gate.remaining(at: now)
      if delay > 0 {
        q.throttle(nanoseconds: delay, head: held, part: Part.turn)
        return
      }
      q.count(.throttledNanoseconds, gate.waited(at: now))
    }
    guard let chain = q.take(held) else { return }
    waiting = nil
    transmit(chain, &q, hasTurn: true)
  }

  mutating func drain<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    guard let held = waiting, let chain = q.take(held) else { return }
    waiting = nil
    if waitsForPort { q.cancelPoll(head: held, part: Part.writable) }
    q.untake(chain)
  }

  /// A chain is held until the port takes frames again, or its turn comes.
  var isWaiting: Bool { waiting != nil }

  /// `hasTurn`: the frame's tokens were taken before, or no limit holds it.
  mutating func transmit<R: VirtRing & ~Copyable>(
    _ chain: consuming Chain, _ q: inout QueueIO<R>, hasTurn: Bool = false
  ) {
    // SAFETY (all of the body): the vectors name our copy of the head and memory of the chain, which is alive.
    let out: OutgoingFrame.Head
    switch unsafe frame.examine(chain, head: head) {
    case .drop(let fault):
      q.count(fault)
      q.complete(chain, written: 0)
      return
    case .send(let checked): out = checked
    }
    let bytes = Int(chain.readable.byteCount) - frame.headerBytes
    if gate.isOn, !hasTurn {
      let delay = gate.admit(.write, bytes: UInt64(bytes), at: Monotonic.now)
      if delay > 0 {
        q.count(.throttles)
        hold(chain, forPort: false)
        q.throttle(nanoseconds: delay, head: waiting ?? 0, part: Part.turn)
        return
      }
    }
    let onWire = bytes + out.count - out.replaced
    let count =
      unsafe frame.gather(chain, out, head: head, into: vectors, room: Self.mostVectors)
      ?? gatherWhole(chain, out)
    let sent = unsafe port.send(vectors, count: count)
    if sent > 0 {
      q.count(.frames)
      q.count(.bytes, UInt64(onWire))
      if let capture, unsafe !capture.note(vectors, count: count, skipping: frame.headerBytes, bytes: onWire)
      {
        q.count(.uncaptured)
      }
    } else if sent == -Int(EAGAIN), let file = port.file, !q.isDraining {
      q.count(.waits)
      hold(chain, forPort: true)
      q.pollWritable(file, head: waiting ?? 0, part: Part.writable)
      return
    } else {
      q.count(OutgoingFrame.counter(for: -sent))
      noteFailure(-sent, &q)
    }
    q.complete(chain, written: 0)
  }

  /// A device that was deleted is looked for again: its receive queue may have no buffer to find that out with.
  mutating func noteFailure<R: VirtRing & ~Copyable>(_ code: Int, _ q: inout QueueIO<R>) {
    guard code == Int(EBADFD), !isBroken, !q.isDraining else { return }
    isBroken = true
    q.pause(head: 0, part: Part.retry)
  }

  private mutating func hold(_ chain: consuming Chain, forPort: Bool) {
    waitsForPort = forPort
    waiting = chain.hold()
  }

  /// The vectors of a frame in very many pieces: its head, and the rest copied together.
  private mutating func gatherWhole(_ chain: borrowing Chain, _ out: OutgoingFrame.Head) -> Int {
    let rest = Int(chain.readable.byteCount) - out.replaced
    let memory = whole ?? WorkerMemory(byteCount: NetTerms.longestFrame)
    whole = memory
    let bytes = unsafe memory.bytes
    // SAFETY: `rest` is at most the longest frame (see `OutgoingFrame.examine`); two vectors are within their array.
    let target = unsafe UnsafeMutableRawBufferPointer(start: bytes, count: rest)
    _ = unsafe chain.readable.copyOut(to: target, from: out.replaced)
    unsafe vectors[0] = iovec(iov_base: head, iov_len: out.count)
    unsafe vectors[1] = iovec(iov_base: bytes, iov_len: rest)
    return 2
  }
}
