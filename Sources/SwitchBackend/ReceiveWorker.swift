// A port's receiver: frames from the other ports into its guest's buffers. Called by their senders, on the queue thread of
// all ports. It waits for nothing: where there is no buffer the frame is dropped and counted, so no port holds another up.

import CLinux
import DeviceKit
import NetBackend
import VirtQueue

/// What a guest takes undone.
struct ReceiveTerms {
  let layout: NetHeaderLayout
  let mergeable: Bool
  let partialChecksums: Bool
  /// A bit for each segmentation type that may come whole.
  private let types: UInt64
  private let congestion: Bool

  init(_ terms: NetTerms, features: FeatureSet) {
    layout = terms.layout
    mergeable = terms.mergeable
    partialChecksums = terms.receivesPartialChecksums
    let offload = NetTerms.tapOffload(features)
    var types: UInt64 = 1
    if offload & 0x02 != 0 { types |= 1 << UInt64(NetHeader.Segmentation.tcp4.rawValue) }
    if offload & 0x04 != 0 { types |= 1 << UInt64(NetHeader.Segmentation.tcp6.rawValue) }
    self.types = types
    congestion = offload & 0x08 != 0
  }

  /// Whether a frame may come whole. Of a type that `HeaderRules` let pass.
  @inline(__always)
  func takes(_ header: NetHeader) -> Bool {
    let type = header.segmentationType
    if type == 0 { return true }
    if type & NetHeader.congestionBit != 0, !congestion { return false }
    return types >> UInt64(type & 0x3f) & 1 == 1
  }
}

@safe struct ReceiveWorker: ~Copyable, NeighbourWorker {
  typealias Parcel = Frame

  /// Buffers that can hold no frame, passed over for one frame at most.
  private static let strayLimit = 8

  private let hub: Switch
  private let port: Int
  private let terms: ReceiveTerms
  private let headerBytes: Int
  private var sink = FrameSink()
  private var head = FrameHead()
  private var cutter = SegmentCutter()

  init(hub: Switch, port: Int, terms: ReceiveTerms) {
    self.hub = hub
    self.port = port
    self.terms = terms
    headerBytes = terms.layout.byteCount
  }

  /// Buffers are taken when a frame comes, not when they do.
  static var wantsKicks: Bool { false }
  mutating func service<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {}
  mutating func drain<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) { hub.detach(port: port) }

  @inline(__always)
  mutating func handed<R: VirtRing & ~Copyable>(_ frame: borrowing Frame, _ q: inout QueueIO<R>) {
    guard terms.takes(frame.header) else {
      cut(frame, &q)
      return
    }
    var header = frame.header
    let linkBytes = LinkHeader.byteCount &+ (frame.isTagged ? NetworkTag.byteCount : 0)
    guard !frame.isTagged || header.grow(by: NetworkTag.byteCount) else {
      return q.count(PortCounter.unresolvable)
    }
    let total = headerBytes &+ linkBytes &+ frame.payload
    guard collect(total, &q) else { return }
    let makes = header.flags.contains(.needsChecksum) && !terms.partialChecksums
    let (start, offset) = (Int(header.checksumStart), Int(header.checksumOffset))
    if makes {
      header.flags = []
      header.headerLength = 0
      (header.checksumStart, header.checksumOffset) = (0, 0)
    }
    putHead(header, frame)
    sink.put(frame, from: frame.payloadStart, frame.payload)
    if makes {
      q.count(PortCounter.checksumsMade)
      let sum = sink.sum(from: headerBytes &+ start, to: total)
      sink.store(Checksum.field(sum), at: headerBytes &+ start &+ offset)
    }
    sink.complete(total, &q)
    q.count(PortCounter.delivered)
    q.count(PortCounter.bytes, UInt64(total &- headerBytes))
  }

  /// Takes buffers for so many bytes; false, with everything put back and the loss counted, where there are not enough.
  @inline(__always)
  private mutating func collect<R: VirtRing & ~Copyable>(_ total: Int, _ q: inout QueueIO<R>) -> Bool {
    sink.clear()
    var strays = 0
    while sink.bytes < total {
      guard let chain = q.pull() else { return giveUp(.full, &q) }
      guard Self.isBuffer(chain) else {
        q.count(PortCounter.malformed)
        strays += 1
        if sink.chainCount == 0, strays <= Self.strayLimit {
          q.complete(chain, written: 0)
          continue
        }
        q.untake(chain)
        return giveUp(.tooSmall, &q)
      }
      guard sink.hasRoom(for: chain), terms.mergeable || chain.byteCount >= total else {
        q.untake(chain)
        return giveUp(.tooSmall, &q)
      }
      sink.add(chain)
    }
    return true
  }

  @inline(__always)
  private static func isBuffer(_ chain: borrowing Chain) -> Bool {
    chain.readable.byteCount == 0 && chain.byteCount > 0 && !chain.hasHole
  }

  @inline(never)
  private mutating func giveUp<R: VirtRing & ~Copyable>(_ counter: PortCounter, _ q: inout QueueIO<R>) -> Bool
  {
    q.count(counter)
    sink.giveBack(&q)
    return false
  }

  /// Writes the virtio header and the link header.
  @inline(__always)
  private mutating func putHead(_ header: NetHeader, _ frame: borrowing Frame) {
    let count = head.write(header, frame, layout: terms.layout, buffers: sink.chainCount)
    // SAFETY: so many of the head's bytes were written.
    unsafe sink.put(head.bytes, count)
  }

  // MARK: Frames that the guest does not take whole

  /// Gives a segmented frame as the packets it stands for.
  @inline(never)
  private mutating func cut<R: VirtRing & ~Copyable>(_ frame: borrowing Frame, _ q: inout QueueIO<R>) {
    guard let plan = cutter.plan(frame) else {
      q.count(PortCounter.unresolvable)
      return
    }
    q.count(PortCounter.framesCut)
    let tagBytes = frame.isTagged ? NetworkTag.byteCount : 0
    for index in 0..<plan.count {
      let part = plan.part(index)
      let packetBytes = LinkHeader.byteCount &+ tagBytes &+ plan.headerBytes &+ part.count
      let total = headerBytes &+ packetBytes
      guard collect(total, &q) else { return }
      var header = NetHeader()
      if terms.partialChecksums {
        header.flags = .needsChecksum
        header.checksumStart = UInt16(LinkHeader.byteCount &+ tagBytes &+ plan.transportOffset)
        header.checksumOffset = SegmentCutter.checksumOffset
      }
      cutter.write(plan, index)
      putHead(header, frame)
      // SAFETY: the cutter's own bytes.
      unsafe sink.put(cutter.headers, plan.headerBytes)
      sink.put(frame, from: frame.payloadStart &+ part.lowerBound, part.count)
      if !terms.partialChecksums {
        let start = headerBytes &+ LinkHeader.byteCount &+ tagBytes &+ plan.transportOffset
        let sum = sink.sum(from: start, to: total)
        sink.store(Checksum.field(sum), at: start &+ Int(SegmentCutter.checksumOffset))
      }
      sink.complete(total, &q)
      q.count(PortCounter.delivered)
      q.count(PortCounter.bytes, UInt64(packetBytes))
    }
  }
}
