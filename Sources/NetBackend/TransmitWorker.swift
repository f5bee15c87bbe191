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
  private let terms: NetTerms
  private let headerBytes: Int
  /// Header and addresses: what is copied out.
  private let headBytes: Int
  /// The only address that frames may come from; nil: any.
  private let source: MACAddress?
  private let capture: PacketCapture?
  // SAFETY: `headBytes` and more; `mostVectors` and one for the head. Alive with the worker.
  private let head: UnsafeMutableRawPointer
  private let vectors: UnsafeMutablePointer<iovec>
  /// For a frame in more pieces than the kernel takes; made when there is one.
  // SAFETY: `longestFrame` bytes.
  private var whole: UnsafeMutableRawPointer?
  /// The chain that waits until the port takes frames again.
  private var waiting: UInt16?

  init(port: consuming Port, terms: NetTerms, source: MACAddress?, capture: PacketCapture?) {
    self.port = port
    self.terms = terms
    self.source = source
    self.capture = capture
    headerBytes = terms.layout.byteCount
    headBytes = headerBytes + EthernetFrame.headerBytes
    unsafe head = .allocate(byteCount: 64, alignment: 16)
    unsafe head.initializeMemory(as: UInt8.self, repeating: 0, count: 64)
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

  // MARK: A frame

  private mutating func transmit<R: VirtRing & ~Copyable>(_ chain: consuming Chain, _ q: inout QueueIO<R>) {
    if let fault = check(chain) {
      q.count(fault)
      q.complete(chain, written: 0)
      return
    }
    let length = Int(chain.readable.byteCount)
    let count = gather(chain)
    // SAFETY: the vectors name our copy of the head and memory of the chain, which is alive.
    let sent = unsafe port.send(vectors, count: count)
    if sent > 0 {
      q.count(.frames)
      q.count(.bytes, UInt64(length - headerBytes))
      if let capture,
        unsafe !capture.note(vectors, count: count, skipping: headerBytes, bytes: length - headerBytes)
      {
        q.count(.uncaptured)
      }
    } else if sent == -Int(EAGAIN), let file = port.file {
      q.count(.waits)
      let held = chain.hold()
      waiting = held
      if q.isDraining {
        if let chain = q.take(held) { q.untake(chain) }
        waiting = nil
      } else {
        q.pollWritable(file, head: held, part: Part.writable)
      }
      return
    } else {
      q.count(Self.counter(for: -sent))
    }
    q.complete(chain, written: 0)
  }

  private static func counter(for code: Int) -> NetCounter {
    switch Int32(truncatingIfNeeded: code) {
    case EIO, EBADFD, ENODEV, ENXIO, ENETDOWN: .linkDown
    case EAGAIN, ENOBUFS, ENOMEM: .noRoom
    default: .refused
    }
  }

  /// Copies the head out and holds it against the rules; what is sent is the copy. Nil: nothing is wrong.
  private mutating func check(_ chain: borrowing Chain) -> NetCounter? {
    let bytes = Int(chain.readable.byteCount)
    guard bytes >= headBytes, bytes <= headerBytes + NetTerms.longestFrame, chain.writable.byteCount == 0,
      !chain.hasHole
    else { return .malformed }
    // SAFETY: `head` has more than `headBytes`.
    let target = unsafe UnsafeMutableRawBufferPointer(start: head, count: headBytes)
    guard unsafe chain.readable.copyOut(to: target) == headBytes else { return .malformed }
    let low = unsafe UInt64(littleEndian: head.load(as: UInt64.self))
    let checksumOffset = unsafe UInt16(littleEndian: head.load(fromByteOffset: 8, as: UInt16.self))
    let header = NetHeader(low: low, high: UInt32(checksumOffset))
    if terms.rules.fault(in: header, frameLength: bytes - headerBytes) != nil { return .badHeader }
    if let source, address(at: headerBytes + 6) != source.value { return .spoofed }
    // Flags that mean nothing here, and fields that are not the driver's, stay behind.
    unsafe head.storeBytes(of: (low & ~0xff | low & 1).littleEndian, as: UInt64.self)
    for place in 10..<max(10, headerBytes) { unsafe head.storeBytes(of: 0, toByteOffset: place, as: UInt8.self) }
    return nil
  }

  private func address(at offset: Int) -> UInt64 {
    // SAFETY: six bytes within `head`.
    let low = unsafe UInt32(littleEndian: head.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    let high = unsafe UInt16(littleEndian: head.loadUnaligned(fromByteOffset: offset + 4, as: UInt16.self))
    return UInt64(low) | UInt64(high) << 32
  }

  /// The frame as vectors: the checked head, then the rest where it is. How many they are.
  private mutating func gather(_ chain: borrowing Chain) -> Int {
    let parts = chain.readable
    // SAFETY (all of the body): `vectors` has room for `mostVectors` and one; indices of the parts are below their count.
    unsafe vectors[0] = iovec(iov_base: head, iov_len: headBytes)
    guard parts.count <= Self.mostVectors else { return gatherWhole(chain) }
    var skip = headBytes
    var count = 1
    for i in 0..<parts.count {
      let (start, length) = unsafe (parts.vectors[i].iov_base, parts.vectors[i].iov_len)
      if skip >= length {
        skip -= length
        continue
      }
      guard let base = unsafe start else { continue }
      unsafe vectors[count] = iovec(iov_base: base + skip, iov_len: length - skip)
      count += 1
      skip = 0
    }
    return count
  }

  /// The same for a frame in very many pieces: copied together first.
  private mutating func gatherWhole(_ chain: borrowing Chain) -> Int {
    let rest = Int(chain.readable.byteCount) - headBytes
    let bytes = unsafe whole ?? .allocate(byteCount: NetTerms.longestFrame, alignment: 64)
    unsafe whole = unsafe bytes
    // SAFETY: `rest` is at most the longest frame (see `check`).
    let target = unsafe UnsafeMutableRawBufferPointer(start: bytes, count: rest)
    _ = unsafe chain.readable.copyOut(to: target, from: headBytes)
    unsafe vectors[1] = iovec(iov_base: bytes, iov_len: rest)
    return 2
  }
}
