// A switch's way out: frames from a tap into the switch, and from the ports into the tap. On the queue thread of all ports.
//
// It waits for nothing: a frame that the tap does not take now, or not while it is down or gone, is lost and counted. What the
// tap leaves undone (checksums, segmentation) is the receivers' matter, and what guests leave undone is the kernel's.

import CLinux
import DeviceKit
import Glibc
import HostIO
import NetBackend
import VirtQueue

@safe struct UplinkWorker: ~Copyable, NeighbourWorker {
  typealias Parcel = Frame

  /// The kernel takes 1024 vectors a call.
  private static let vectorLimit = 1000

  private let hub: Switch
  private let port: Int
  private let layout: NetHeaderLayout
  private let intake: FrameIntake
  private var tap: TapPort
  private var watch = PortWatch()
  private var head = FrameHead()
  private let bufferBytes: Int
  // SAFETY: `bufferBytes`: where a frame from the tap is read to. More than any frame: a tap cuts without a word what does not
  // fit.
  private let buffer: UnsafeMutableRawPointer
  // SAFETY: two vectors over `buffer`: all of it, and the frame that is in it.
  private let incoming: UnsafeMutablePointer<iovec>
  // SAFETY: `vectorLimit` and one for the head, from which a frame is sent.
  private let vectors: UnsafeMutablePointer<iovec>
  /// For a frame in more pieces than the kernel takes; made when there is one.
  // SAFETY: `longestFrame` bytes.
  private var whole: UnsafeMutableRawPointer?

  init(hub: Switch, port: Int, tap: consuming TapPort, terms: NetTerms) {
    self.hub = hub
    self.port = port
    self.tap = tap
    layout = terms.layout
    intake = FrameIntake(hub: hub, port: port, rules: terms.rules, headerBytes: terms.layout.byteCount)
    bufferBytes = terms.layout.byteCount + NetTerms.longestFrame + 512
    unsafe buffer = .allocate(byteCount: bufferBytes, alignment: 64)
    unsafe buffer.initializeMemory(as: UInt8.self, repeating: 0, count: bufferBytes)
    unsafe incoming = .allocate(capacity: 2)
    unsafe incoming.initialize(repeating: iovec(iov_base: buffer, iov_len: bufferBytes), count: 2)
    unsafe vectors = .allocate(capacity: Self.vectorLimit + 1)
  }

  deinit {
    unsafe buffer.deallocate()
    unsafe incoming.deallocate()
    unsafe vectors.deallocate()
    unsafe whole?.deallocate()
  }

  static var wantsKicks: Bool { false }

  // MARK: From the tap

  mutating func service<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    watch.begin(tap.file, &q)
    guard watch.isReadable else { return }
    hub.beginBatch(at: Monotonic.now)
    var bytesLeft = QueueBudget.bytes
    for _ in 0..<QueueBudget.chains where bytesLeft > 0 {
      // SAFETY: the vector is over all of `buffer`.
      let bytes = unsafe tap.receive(incoming, count: 1)
      if bytes > 0 {
        bytesLeft &-= bytes
        admit(bytes, &q)
      } else if bytes == 0 {
        watch.isReadable = false
        return
      } else {
        guard watch.failed(-bytes, &q) else { return }
        q.count(PortCounter.malformed)
      }
    }
    q.again()
  }

  @inline(__always)
  private mutating func admit<R: VirtRing & ~Copyable>(_ bytes: Int, _ q: inout QueueIO<R>) {
    guard intake.isFrame(bytes) else { return q.count(PortCounter.malformed) }
    // SAFETY: `bytes` of `buffer` hold the frame, and nobody else writes there.
    unsafe incoming[1].iov_len = bytes
    q.count(
      unsafe intake.admit(head: buffer, segments: incoming + 1, count: 1, bytes: bytes),
      frameBytes: bytes &- layout.byteCount)
  }

  mutating func completed<R: VirtRing & ~Copyable>(_ completion: Completion, _ q: inout QueueIO<R>) {
    if watch.completed(completion, &q) { watch.repaired(tap.repair(), &q) }
  }

  mutating func drain<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    watch.drain(&q)
    hub.detach(port: port)
    hub.silence(port: port)
  }

  // MARK: Into the tap

  mutating func handed<R: VirtRing & ~Copyable>(_ frame: borrowing Frame, _ q: inout QueueIO<R>) {
    var header = frame.header
    guard !frame.isTagged || header.grow(by: NetworkTag.byteCount) else {
      return q.count(PortCounter.unresolvable)
    }
    let headBytes = head.write(header, frame, layout: layout, buffers: 0)
    unsafe vectors[0] = iovec(iov_base: head.bytes, iov_len: headBytes)
    var count = gather(frame)
    if count == 0 { count = gatherWhole(frame) }
    // SAFETY: the vectors name our copy of the head and the frame's memory, which stays for this call.
    let sent = unsafe tap.send(vectors, count: count)
    if sent > 0 {
      q.count(PortCounter.delivered)
      q.count(PortCounter.bytes, UInt64(headBytes &- layout.byteCount &+ frame.payload))
    } else {
      q.count(Self.counter(for: Int32(truncatingIfNeeded: -sent)))
    }
  }

  /// Appends vectors over a frame's payload; how many there are with the head's; 0: more pieces than the kernel takes.
  private mutating func gather(_ frame: borrowing Frame) -> Int {
    var skip = frame.payloadStart
    var left = frame.payload
    var count = 1
    for i in 0..<frame.count where left > 0 {
      // SAFETY: i < frame.count; the part is within the segment; count <= vectorLimit.
      let length = unsafe frame.segments[i].iov_len
      if skip >= length {
        skip &-= length
        continue
      }
      guard count <= Self.vectorLimit else { return 0 }
      let part = min(length &- skip, left)
      // A segment without memory (`hasHole`) is in no frame.
      if let base = unsafe frame.segments[i].iov_base {
        unsafe vectors[count] = iovec(iov_base: base + skip, iov_len: part)
        count &+= 1
      }
      left &-= part
      skip = 0
    }
    return count
  }

  /// The same for a frame in very many pieces: copied together.
  @inline(never)
  private mutating func gatherWhole(_ frame: borrowing Frame) -> Int {
    let target = unsafe whole ?? .allocate(byteCount: NetTerms.longestFrame, alignment: 64)
    unsafe whole = unsafe target
    // SAFETY: a payload is shorter than the longest frame (`FrameIntake.isFrame`); two vectors are within their array.
    let bytes = unsafe frame.copyPayload(to: target, frame.payload)
    unsafe vectors[1] = iovec(iov_base: target, iov_len: bytes)
    return 2
  }

  /// What the tap said of a frame it did not take, as it is counted.
  private static func counter(for code: Int32) -> PortCounter {
    switch code {
    case EIO, EBADFD, ENODEV, ENXIO, ENETDOWN: .linkDown
    case EAGAIN, ENOBUFS, ENOMEM: .full
    default: .unresolvable
    }
  }
}
