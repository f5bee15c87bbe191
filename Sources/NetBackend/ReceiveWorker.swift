// virtio-net, the receive side of one pair: frames from the port into the guest's buffers. On the queue's thread.
//
// A window of buffers is held ready, as much as the largest usual frame takes; a frame is read straight into it, and the
// buffers that it filled go back. Where there is no buffer nothing is read: frames wait, and are lost, in the tap, not
// here. One that is longer than the window runs over into memory of our own and waits there for more buffers.

import CLinux
import DeviceKit
import Glibc
import HostIO
import VirtQueue

@safe struct ReceiveWorker<Port: PacketPort & ~Copyable>: ~Copyable, QueueWorker {
  /// Frames a turn, so that neighbours get theirs.
  private static var share: Int { 64 }

  private var port: Port
  private let terms: NetTerms
  private let headerBytes: Int
  private let goal: Int
  private let capture: PacketCapture?
  private var window: ReceiveWindow
  /// A chain that can hold no frame, and has its turn when those before it are gone.
  private var unusable: UInt16?
  // SAFETY: `spareBytes`, alive with the worker.
  private let spare: UnsafeMutableRawPointer
  private let spareBytes: Int
  /// Bytes of a frame that waits in `spare` for buffers; 0: none does.
  private var parkedBytes = 0
  private var watch = PortWatch()

  init(port: consuming Port, terms: NetTerms, linkMTU: Int, size: UInt16, capture: PacketCapture?) {
    self.port = port
    self.terms = terms
    self.capture = capture
    headerBytes = terms.layout.byteCount
    goal = terms.goal(linkMTU: linkMTU)
    window = ReceiveWindow(size: size)
    // More than any frame of a tap.
    spareBytes = headerBytes + NetTerms.longestFrame + 512
    unsafe spare = .allocate(byteCount: spareBytes, alignment: 64)
  }

  deinit { unsafe spare.deallocate() }

  mutating func service<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    watch.begin(port.file, &q)
    for _ in 0..<Self.share {
      fill(&q)
      if parkedBytes > 0 {
        guard deliverParked(&q) else { return }
        continue
      }
      guard port.file == nil ? port.hasFrames : watch.isReadable, !window.isEmpty else { return }
      let room = max(0, spareBytes - window.bytes)
      // SAFETY: the vectors are of held chains; what runs over ends within `spare`.
      let target = unsafe window.target(spare: spare, room)
      let bytes = unsafe port.receive(target.first, count: target.count)
      if bytes > 0 {
        accept(bytes, &q)
      } else if bytes == 0 {
        watch.isReadable = false
        return
      } else {
        guard watch.failed(-bytes, &q) else { return q.count(.linkDown) }
        q.count(.refused)
      }
    }
    q.again()
  }

  mutating func completed<R: VirtRing & ~Copyable>(_ completion: Completion, _ q: inout QueueIO<R>) {
    if watch.completed(completion, &q) { watch.repaired(port.repair(), &q) }
  }

  mutating func drain<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    watch.drain(&q)
    if let head = unusable, let chain = q.take(head) { q.untake(chain) }
    while let buffer = window.popLast() {
      if let chain = q.take(buffer.head) { q.untake(chain) }
    }
  }

  // MARK: Buffers

  /// Takes chains until the window holds what the next frame may take.
  private mutating func fill<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    while true {
      if let head = unusable {
        // Buffers go back in the order they came.
        guard window.isEmpty else { return }
        unusable = nil
        q.count(.malformed)
        if let chain = q.take(head) { q.complete(chain, written: 0) }
      }
      guard needsMore, let chain = q.next() else { return }
      if isUsable(chain) {
        let noted = window.note(chain)
        window.add(noted, head: chain.hold())
      } else {
        unusable = chain.hold()
      }
    }
  }

  private func isUsable(_ chain: borrowing Chain) -> Bool {
    chain.readable.byteCount == 0 && !chain.hasHole && Int(chain.writable.byteCount) >= headerBytes
  }

  private var needsMore: Bool {
    if !terms.mergeable { return window.isEmpty }
    return window.hasRoom && window.bytes < max(goal, parkedBytes)
  }

  // MARK: Frames

  /// A frame of so many bytes is in the window, and perhaps in `spare` behind it.
  private mutating func accept<R: VirtRing & ~Copyable>(_ bytes: Int, _ q: inout QueueIO<R>) {
    if bytes < headerBytes + EthernetFrame.headerBytes {
      q.count(.runts)
    } else if bytes - headerBytes > terms.frameLimit, isWhole {
      q.count(.oversize)
    } else if bytes <= window.bytes {
      deliver(bytes, &q)
    } else if terms.mergeable, bytes <= spareBytes {
      park(bytes, &q)
    } else {
      // Part of a frame is none (virtio 1.3 §5.1.6.4).
      q.count(.oversize)
    }
  }

  /// Whether the frame in the window is not to be cut. The guest may lie to itself here.
  private var isWhole: Bool {
    var type: UInt8 = 0
    // SAFETY: one byte, into the local value.
    unsafe withUnsafeMutableBytes(of: &type) { bytes in
      if let base = bytes.baseAddress { unsafe window.read(base, 1, at: 1) }
    }
    return type == 0
  }

  /// Gives the buffers that a frame filled to the driver.
  private mutating func deliver<R: VirtRing & ~Copyable>(_ bytes: Int, _ q: inout QueueIO<R>) {
    let number = window.buffersNeeded(for: bytes)
    finishHeader(buffers: number)
    if let capture {
      // SAFETY: the vectors of the window, which hold the frame.
      let frame = unsafe window.target(spare: spare, 0)
      if unsafe !capture.note(
        frame.first, count: frame.count, skipping: headerBytes, bytes: bytes - headerBytes)
      {
        q.count(.uncaptured)
      }
    }
    var left = bytes
    for _ in 0..<number {
      guard let buffer = window.popFirst(), let chain = q.take(buffer.head) else { return }
      let part = min(left, buffer.bytes)
      left -= part
      q.complete(chain, written: UInt32(truncatingIfNeeded: part))
    }
    q.count(.frames)
    q.count(.bytes, UInt64(bytes - headerBytes))
  }

  /// What a tap leaves to us: the number of buffers, and no mark that was not negotiated.
  private mutating func finishHeader(buffers: Int) {
    if terms.layout.countsBuffers {
      let number = UInt16(truncatingIfNeeded: buffers).littleEndian
      // SAFETY: two bytes of the local value.
      unsafe withUnsafeBytes(of: number) { bytes in
        if let base = bytes.baseAddress { unsafe window.write(base, 2, at: 10) }
      }
    }
    guard !terms.receivesPartialChecksums else { return }
    let none: UInt8 = 0
    // SAFETY: one byte of the local value.
    unsafe withUnsafeBytes(of: none) { bytes in
      if let base = bytes.baseAddress { unsafe window.write(base, 1, at: 0) }
    }
  }

  /// Keeps a frame that is longer than the window until there are buffers for all of it.
  private mutating func park<R: VirtRing & ~Copyable>(_ bytes: Int, _ q: inout QueueIO<R>) {
    let inWindow = window.bytes
    // SAFETY: bytes <= spareBytes; what ran over is at the start of `spare`, and makes room for what came before it.
    unsafe memmove(spare + inWindow, spare, bytes - inWindow)
    unsafe window.read(spare, inWindow, at: 0)
    parkedBytes = bytes
    q.count(.parked)
  }

  /// Delivers the frame that waits, if there is room now. False: wait for buffers.
  private mutating func deliverParked<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) -> Bool {
    let bytes = parkedBytes
    guard window.bytes >= bytes else {
      // With all the buffers that there are, it will never fit.
      guard window.isExhausted else { return false }
      parkedBytes = 0
      q.count(.oversize)
      return true
    }
    parkedBytes = 0
    // SAFETY: `bytes` of `spare` hold the frame.
    unsafe window.write(spare, bytes, at: 0)
    deliver(bytes, &q)
    return true
  }
}
