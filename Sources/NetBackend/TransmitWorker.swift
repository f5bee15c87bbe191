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
  private enum Part { static var writable: UInt8 { 1 } }

  /// The kernel takes 1024 vectors a call.
  private static var mostVectors: Int { 1000 }

  private var port: Port
  private let frame: OutgoingFrame
  private let capture: PacketCapture?
  // SAFETY: a head's room; `mostVectors` and one for the head. Alive with the worker.
  private let head: UnsafeMutableRawPointer
  private let vectors: UnsafeMutablePointer<iovec>
  /// For a frame in more pieces than the kernel takes; made when there is one.
  // SAFETY: `longestFrame` bytes.
  private var whole: UnsafeMutableRawPointer?
  /// The chain that waits until the port takes frames again.
  private var waiting: UInt16?

  init(port: consuming Port, frame: OutgoingFrame, capture: PacketCapture?) {
    self.port = port
    self.frame = frame
    self.capture = capture
    unsafe head = .allocate(byteCount: OutgoingFrame.headRoom, alignment: 16)
    unsafe head.initializeMemory(as: UInt8.self, repeating: 0, count: OutgoingFrame.headRoom)
    unsafe vectors = .allocate(capacity: Self.mostVectors + 1)
  }

  deinit {
    unsafe head.deallocate()
    unsafe vectors.deallocate()
    unsafe whole?.deallocate()
  }

  mutating func service<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    while waiting == nil, let chain = q.next() { transmit(chain, &q) }
  }

  static var servesDisabled: Bool { true }

  /// What a driver sends while its queue is disabled goes nowhere (vhost-user, "Ring states").
  mutating func serviceDisabled<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    while waiting == nil, let chain = q.next() {
      q.count(.discarded)
      q.complete(chain, written: 0)
    }
  }

  mutating func completed<R: VirtRing & ~Copyable>(_ completion: Completion, _ q: inout QueueIO<R>) {
    guard let held = waiting, let chain = q.take(held) else { return }
    waiting = nil
    transmit(chain, &q)
  }

  mutating func drain<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    guard let held = waiting, let chain = q.take(held) else { return }
    waiting = nil
    q.cancelPoll(head: held, part: Part.writable)
    q.untake(chain)
  }

  /// A chain is held until the port takes frames again.
  var isWaiting: Bool { waiting != nil }

  mutating func transmit<R: VirtRing & ~Copyable>(_ chain: consuming Chain, _ q: inout QueueIO<R>) {
    // SAFETY (all of the body): the vectors name our copy of the head and memory of the chain, which is alive.
    if let fault = unsafe frame.fault(in: chain, head: head) {
      q.count(fault)
      q.complete(chain, written: 0)
      return
    }
    let bytes = Int(chain.readable.byteCount) - frame.headerBytes
    let count =
      unsafe frame.gather(chain, head: head, into: vectors, room: Self.mostVectors) ?? gatherWhole(chain)
    let sent = unsafe port.send(vectors, count: count)
    if sent > 0 {
      q.count(.frames)
      q.count(.bytes, UInt64(bytes))
      if let capture, unsafe !capture.note(vectors, count: count, skipping: frame.headerBytes, bytes: bytes) {
        q.count(.uncaptured)
      }
    } else if sent == -Int(EAGAIN), let file = port.file, !q.isDraining {
      q.count(.waits)
      let held = chain.hold()
      waiting = held
      q.pollWritable(file, head: held, part: Part.writable)
      return
    } else {
      q.count(OutgoingFrame.counter(for: -sent))
    }
    q.complete(chain, written: 0)
  }

  /// The vectors of a frame in very many pieces: its head, and the rest copied together.
  private mutating func gatherWhole(_ chain: borrowing Chain) -> Int {
    let rest = Int(chain.readable.byteCount) - frame.headBytes
    let bytes = unsafe whole ?? .allocate(byteCount: NetTerms.longestFrame, alignment: 64)
    unsafe whole = unsafe bytes
    // SAFETY: `rest` is at most the longest frame (see `OutgoingFrame.fault`); two vectors are within their array.
    let target = unsafe UnsafeMutableRawBufferPointer(start: bytes, count: rest)
    _ = unsafe chain.readable.copyOut(to: target, from: frame.headBytes)
    unsafe vectors[0] = iovec(iov_base: head, iov_len: frame.headBytes)
    unsafe vectors[1] = iovec(iov_base: bytes, iov_len: rest)
    return 2
  }
}
