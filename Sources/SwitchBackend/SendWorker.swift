// A port's sender: frames from its guest into the switch. On the queue thread of all ports.
//
// Header and addresses are copied out once; what is decided, and what receivers get of them, is the copy. The rest is copied
// straight from this guest's memory into the receivers'.

import CLinux
import DeviceKit
import HostIO
import NetBackend
import VirtQueue

@safe struct SendWorker: ~Copyable, QueueWorker {
  private let hub: Switch
  private let port: Int
  private let intake: FrameIntake
  /// Where a frame's head is copied to.
  private var head = FrameHead()

  init(hub: Switch, port: Int, terms: NetTerms) {
    self.hub = hub
    self.port = port
    intake = FrameIntake(
      hub: hub, port: port, rules: terms.rules, headerBytes: terms.layout.byteCount)
  }

  mutating func service<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    guard let first = q.next() else { return }
    hub.beginBatch(at: Monotonic.now)
    send(first, &q)
    while let chain = q.next() { send(chain, &q) }
  }

  static var servesDisabled: Bool { true }

  /// What a driver sends while its queue is disabled goes nowhere (vhost-user, "Ring states").
  mutating func serviceDisabled<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    while let chain = q.next() {
      q.count(PortCounter.discarded)
      q.complete(chain, written: 0)
    }
  }

  mutating func drain<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) { hub.silence(port: port) }

  @inline(__always)
  private mutating func send<R: VirtRing & ~Copyable>(_ chain: consuming Chain, _ q: inout QueueIO<R>) {
    q.count(examine(chain), frameBytes: chain.byteCount &- intake.headerBytes)
    q.complete(chain, written: 0)
  }

  /// Makes a frame of a chain, and gives it to the switch.
  private mutating func examine(_ chain: borrowing Chain) -> Verdict {
    let bytes = chain.byteCount
    guard intake.isFrame(bytes), chain.writable.byteCount == 0, !chain.hasHole else {
      return Verdict(counter: .malformed)
    }
    let wanted = intake.headBytes(of: bytes)
    // SAFETY: `head` has room for that much and more; the chain's segments stay for this call.
    let target = unsafe UnsafeMutableRawBufferPointer(start: head.bytes, count: wanted)
    guard unsafe chain.readable.copyOut(to: target) == wanted else { return Verdict(counter: .malformed) }
    let parts = chain.readable
    return unsafe intake.admit(head: head.bytes, segments: parts.vectors, count: parts.count, bytes: bytes)
  }
}

extension QueueIO where R: ~Copyable {
  /// Counts what became of a frame of so many bytes, its virtio header apart.
  @inline(__always)
  func count(_ verdict: Verdict, frameBytes: Int) {
    count(verdict.counter)
    switch verdict.counter {
    case .frames, .floods: count(PortCounter.bytes, UInt64(frameBytes))
    default: break
    }
    if verdict.learned { count(PortCounter.learned) }
    if verdict.moved { count(PortCounter.moved) }
    if verdict.refusedToLearn { count(PortCounter.notLearned) }
  }
}
