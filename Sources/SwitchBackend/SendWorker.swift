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
  private let terms: NetTerms
  private let headerBytes: Int
  // SAFETY: `headBytes`, alive with the worker.
  private let head: UnsafeMutableRawPointer
  /// The longest header, addresses, a tag, and the type behind it.
  private static let headBytes = 64

  init(hub: Switch, port: Int, terms: NetTerms) {
    self.hub = hub
    self.port = port
    self.terms = terms
    headerBytes = terms.layout.byteCount
    unsafe head = .allocate(byteCount: Self.headBytes, alignment: 16)
    unsafe head.initializeMemory(as: UInt8.self, repeating: 0, count: Self.headBytes)
  }

  deinit { unsafe head.deallocate() }

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
    let verdict = examine(chain)
    q.count(verdict.counter)
    switch verdict.counter {
    case .frames, .floods: q.count(PortCounter.bytes, UInt64(chain.byteCount &- headerBytes))
    default: break
    }
    if verdict.learned { q.count(PortCounter.learned) }
    if verdict.moved { q.count(PortCounter.moved) }
    if verdict.refusedToLearn { q.count(PortCounter.notLearned) }
    q.complete(chain, written: 0)
  }

  /// Makes a frame of a chain, and gives it to the switch.
  private mutating func examine(_ chain: borrowing Chain) -> Verdict {
    let bytes = chain.byteCount
    let frameBytes = bytes &- headerBytes
    guard frameBytes >= LinkHeader.byteCount, frameBytes <= NetTerms.longestFrame,
      chain.writable.byteCount == 0, !chain.hasHole
    else { return Verdict(counter: .malformed) }
    // Up to the type behind a tag.
    let wanted = min(bytes, headerBytes &+ LinkHeader.byteCount &+ VLANTag.byteCount)
    // SAFETY: `head` has room for that much and more.
    let target = unsafe UnsafeMutableRawBufferPointer(start: head, count: wanted)
    guard unsafe chain.readable.copyOut(to: target) == wanted else { return Verdict(counter: .malformed) }
    var header = decodeHeader()
    if terms.rules.fault(in: header, frameLength: frameBytes) != nil { return Verdict(counter: .badHeader) }
    header.flags.formIntersection(.needsChecksum)
    // A checksum over the addresses or a tag is none, and making it would change where the frame belongs.
    if header.flags.contains(.needsChecksum), header.checksumStart < UInt16(LinkHeader.byteCount) {
      return Verdict(counter: .badHeader)
    }
    header.bufferCount = 0

    var link = LinkHeader()
    link.low = load(headerBytes, UInt64.self)
    link.high = load(headerBytes &+ 8, UInt32.self)
    link.type = load(headerBytes &+ 12, UInt16.self)
    var control: UInt16 = 0
    var tag: UInt16?
    if link.type == VLANTag.type, frameBytes >= LinkHeader.byteCount + VLANTag.byteCount {
      control = load(headerBytes &+ 14, UInt16.self).byteSwapped
      tag = VLANTag.network(control)
    }
    guard let (network, strips) = hub.network(of: port, tag: tag) else {
      return Verdict(counter: .wrongNetwork)
    }
    var start = LinkHeader.byteCount
    if strips, tag != nil {
      guard header.retreat(by: VLANTag.byteCount) else { return Verdict(counter: .badHeader) }
      link.type = load(headerBytes &+ 16, UInt16.self)
      start &+= VLANTag.byteCount
    }
    let parts = chain.readable
    let frame = unsafe Frame(
      segments: parts.vectors, count: parts.count, payloadStart: headerBytes &+ start,
      payload: frameBytes &- start,
      link: link, header: header, network: network, priority: strips ? control & 0xf000 : 0)
    return hub.forward(frame, from: port)
  }

  /// The fields before the frame, from the copy.
  @inline(__always)
  private func decodeHeader() -> NetHeader {
    NetHeader(low: load(0, UInt64.self), high: UInt32(load(8, UInt16.self)))
  }

  @inline(__always)
  private func load<T: FixedWidthInteger & BitwiseCopyable>(_ offset: Int, _ type: T.Type) -> T {
    // SAFETY: at most 8 bytes at offsets below 40, of the 64 that `head` has.
    unsafe T(littleEndian: head.loadUnaligned(fromByteOffset: offset, as: T.self))
  }
}

extension NetHeader {
  /// The frame has become shorter by a tag before what the fields point at. False where they point into the tag.
  mutating func retreat(by bytes: Int) -> Bool {
    let count = UInt16(bytes)
    if flags.contains(.needsChecksum) {
      guard checksumStart >= UInt16(LinkHeader.byteCount) + count else { return false }
      checksumStart -= count
    }
    headerLength = headerLength > count ? headerLength - count : 0
    return true
  }

  /// The frame has become longer by a tag.
  mutating func advance(by bytes: Int) {
    let count = UInt16(bytes)
    if flags.contains(.needsChecksum) { checksumStart = checksumStart &+ count }
    if headerLength > 0 { headerLength = headerLength &+ count }
  }
}
