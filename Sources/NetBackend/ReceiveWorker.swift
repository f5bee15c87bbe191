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

/// What a receive queue is given beside its port and its session's terms.
struct ReceiveSetup: Sendable {
  let linkMTU: Int
  let tag: NetworkTag?
  let filter: FilterBoard
  let limiter: RateLimiter
  let capture: PacketCapture?
}

@safe struct ReceiveWorker<Port: PacketPort & ~Copyable>: ~Copyable, QueueWorker {
  /// Frames a turn, so that neighbours get theirs.
  private static var share: Int { 64 }
  /// Buffers that are taken ahead of frames where those are at hand in memory, so that they are at hand too. A tap would be asked with
  /// a longer list of vectors each time.
  private static var ahead: Int { 16 }

  /// Beside those of `PortWatch`.
  private enum Part { static var turn: UInt8 { 3 } }

  private var port: Port
  private let terms: NetTerms
  private let headerBytes: Int
  private let goal: Int
  private let capture: PacketCapture?
  /// Reads frames that carry a tag; nil: they are the guest's as they are.
  private let tagged: TaggedReader?
  private let filter: FilterBoard
  private var view = ReceiveFilter()
  private var viewNumber: UInt64 = 0
  /// `view.isOpen`, in a place of its own: a copy of the view for each frame waited for what the frame before it had stored.
  private var isOpen = ReceiveFilter().isOpen
  private var gate: RateGate
  /// Bytes of a frame in the window that its limit lets go later; 0: none waits.
  private var heldBytes = 0
  private var window: ReceiveWindow
  /// A chain that can hold no frame, and has its turn when those before it are gone.
  private var unusable: UInt16?
  // SAFETY: `spareBytes`, in `memory`.
  private let memory: WorkerMemory
  private let spare: UnsafeMutableRawPointer
  private let spareBytes: Int
  /// Bytes of a frame that waits in `spare` for buffers; 0: none does.
  private var parkedBytes = 0
  private var watch = PortWatch()

  init(port: consuming Port, terms: NetTerms, size: UInt16, _ setup: ReceiveSetup) {
    self.port = port
    self.terms = terms
    capture = setup.capture
    filter = setup.filter
    gate = RateGate(setup.limiter)
    tagged = setup.tag.map { TaggedReader($0, headerBytes: terms.layout.byteCount) }
    headerBytes = terms.layout.byteCount
    goal = terms.goal(linkMTU: setup.linkMTU)
    window = ReceiveWindow(size: size)
    // More than any frame of a tap.
    spareBytes = headerBytes + NetTerms.longestFrame + 512
    memory = WorkerMemory(byteCount: spareBytes)
    unsafe spare = memory.bytes
  }

  mutating func service<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    watch.begin(port.file, &q)
    // A frame that its limit holds back is in the window: nothing overtakes it.
    guard heldBytes == 0 else { return }
    for _ in 0..<Self.share {
      fill(&q)
      if parkedBytes > 0 {
        guard deliverParked(&q), heldBytes == 0 else { return }
        continue
      }
      guard port.file == nil ? port.hasFrames : watch.isReadable, canRead else { return }
      let bytes = read()
      if bytes > 0 {
        accept(bytes, &q)
        guard heldBytes == 0 else { return }
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

  /// Whether there is room for a frame's beginning at least.
  private var canRead: Bool { window.bytes >= max(1, tagged?.copiedBytes ?? 0) }

  /// Reads the next frame into the window, and what runs over to `spare`.
  private mutating func read() -> Int {
    let room = max(0, spareBytes - window.bytes)
    // SAFETY: the vectors are of held chains; what runs over ends within `spare`.
    let target = unsafe vectors(room)
    return unsafe port.receive(target.first, count: target.count)
  }

  /// The vectors that a frame is read by, with so much of `spare` behind them.
  @unsafe private mutating func vectors(_ room: Int) -> (first: UnsafePointer<iovec>, count: Int) {
    if let tagged { return unsafe tagged.target(window, spare: spare, room) }
    return unsafe window.target(spare: spare, room)
  }

  mutating func completed<R: VirtRing & ~Copyable>(_ completion: Completion, _ q: inout QueueIO<R>) {
    if completion.part == Part.turn {
      takeTurn(&q)
      return
    }
    if watch.completed(completion, &q) { watch.repaired(port.repair(), &q) }
  }

  /// Buffers past the window stay in the ring until there is a frame for those before.
  var wantsChains: Bool { heldBytes == 0 && needsMore && (unusable == nil || window.isEmpty) }

  mutating func drain<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    watch.drain(&q)
    // It is read already, and would be lost.
    if heldBytes > 0 { release(&q) }
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
        chain.prefetchWritable()
        let noted = window.note(chain)
        window.add(noted, head: chain.hold())
      } else {
        unusable = chain.hold()
      }
    }
  }

  private func isUsable(_ chain: borrowing Chain) -> Bool {
    chain.readable.byteCount == 0 && !chain.hasHole && Int(chain.writable.byteCount) >= leastBytes
  }

  /// The least that a buffer has: a header, and where it is to hold a frame by itself that is read past its tag, that much.
  private var leastBytes: Int { terms.mergeable ? headerBytes : max(headerBytes, tagged?.copiedBytes ?? 0) }

  private var needsMore: Bool {
    if !terms.mergeable { return window.isEmpty }
    guard window.hasRoom else { return false }
    return window.bytes < max(goal, parkedBytes) || port.file == nil && window.count < Self.ahead
  }

  // MARK: Frames

  /// A frame of so many bytes is in the window, and perhaps in `spare` behind it.
  private mutating func accept<R: VirtRing & ~Copyable>(_ onWire: Int, _ q: inout QueueIO<R>) {
    var bytes = onWire
    if let fault = fault(onWire, &bytes) {
      q.count(fault)
      // What is not this guest's is not left where it may look.
      if tagged != nil { window.wipe(onWire) }
    } else if bytes <= window.bytes {
      admit(bytes, &q)
    } else if terms.mergeable, bytes <= spareBytes {
      park(bytes, &q)
    } else {
      // Part of a frame is none (virtio 1.3 §5.1.6.4).
      q.count(.oversize)
    }
  }

  /// What keeps a frame from the guest; nil: nothing. `bytes` becomes its length without its tag.
  private mutating func fault(_ onWire: Int, _ bytes: inout Int) -> NetCounter? {
    if onWire < headerBytes + EthernetFrame.headerBytes { return .runts }
    if onWire - headerBytes > terms.frameLimit, isWhole { return .oversize }
    if let fault = tagged?.strip(onWire, in: &window) { return fault }
    if tagged != nil { bytes = onWire - NetworkTag.byteCount }
    if filter.number != viewNumber {
      viewNumber = filter.read(&view)
      isOpen = view.isOpen
    }
    return isOpen || view.admits(beginning(bytes)) ? nil : .filtered
  }

  /// Addresses, type and what is behind it, of the frame that was read.
  private func beginning(_ bytes: Int) -> FrameBeginning {
    var words: (UInt64, UInt64) = (0, 0)
    // SAFETY: 16 bytes of the local value; what is not in the window is in `spare`, which is longer.
    unsafe withUnsafeMutableBytes(of: &words) { target in
      guard let base = target.baseAddress else { return }
      let here = max(0, min(16, window.bytes - headerBytes))
      unsafe window.read(base, here, at: headerBytes)
      if here < 16 { unsafe memcpy(base + here, spare + max(0, headerBytes - window.bytes), 16 - here) }
    }
    return FrameBeginning(low: words.0, high: words.1, byteCount: bytes - headerBytes)
  }

  /// Whether the frame in the window is not to be cut. The guest may lie to itself here.
  private var isWhole: Bool {
    if let tagged { return tagged.segmentation == 0 }
    var type: UInt8 = 0
    // SAFETY: one byte, into the local value.
    unsafe withUnsafeMutableBytes(of: &type) { bytes in
      if let base = bytes.baseAddress { unsafe window.read(base, 1, at: 1) }
    }
    return type == 0
  }

  // MARK: Limits

  /// Delivers a whole frame in the window, now or when its limit lets it go.
  private mutating func admit<R: VirtRing & ~Copyable>(_ bytes: Int, _ q: inout QueueIO<R>) {
    if gate.isOn {
      let delay = gate.admit(.read, bytes: UInt64(bytes - headerBytes), at: Monotonic.now)
      if delay > 0, !q.isDraining {
        q.count(.throttles)
        heldBytes = bytes
        q.throttle(nanoseconds: delay, head: 0, part: Part.turn)
        return
      }
    }
    deliver(bytes, &q)
  }

  /// The held frame's turn may have come.
  private mutating func takeTurn<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    guard heldBytes > 0 else { return }
    let delay = gate.remaining(at: Monotonic.now)
    if delay > 0 { q.throttle(nanoseconds: delay, head: 0, part: Part.turn) } else { release(&q) }
  }

  private mutating func release<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    q.count(.throttledNanoseconds, gate.waited(at: Monotonic.now))
    let bytes = heldBytes
    heldBytes = 0
    deliver(bytes, &q)
  }

  // MARK: Delivery

  /// Gives the buffers that a frame filled to the driver.
  private mutating func deliver<R: VirtRing & ~Copyable>(_ bytes: Int, _ q: inout QueueIO<R>) {
    let number = window.buffersNeeded(for: bytes)
    let onWire = tagged == nil ? bytes : bytes + NetworkTag.byteCount
    finishHeader(buffers: number)
    if let capture {
      // SAFETY: the vectors of the window, which hold the frame; a tag is still where it was read to.
      let frame = unsafe vectors(0)
      if unsafe !capture.note(
        frame.first, count: frame.count, skipping: headerBytes, bytes: onWire - headerBytes)
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
    q.count(.bytes, UInt64(onWire - headerBytes))
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
    admit(bytes, &q)
    return true
  }
}
