// Cuts a TCP packet that its sender left whole (TSO) into the packets that go on a wire, for a guest that takes no other: what
// a network card does. On the queue thread of all ports.
//
// The headers are copied out once and checked; packets are made from the copy.

import CLinux
import Glibc
import NetBackend

@safe struct SegmentCutter: ~Copyable {
  /// Where TCP's checksum is in its header.
  static let checksumOffset: UInt16 = 16
  /// More packets than this are made of no frame: the smallest segments of TCP, and then some.
  private static let packetLimit = 1024
  /// IP with options or extensions, and TCP with options.
  private static let headerLimit = 320

  // SAFETY: `headerLimit` bytes each, alive with the cutter: what the frame began with, and what a packet begins with.
  private let original: UnsafeMutableRawPointer
  let headers: UnsafeMutableRawPointer

  init() {
    unsafe original = .allocate(byteCount: Self.headerLimit, alignment: 16)
    unsafe headers = .allocate(byteCount: Self.headerLimit, alignment: 16)
  }

  deinit {
    unsafe original.deallocate()
    unsafe headers.deallocate()
  }

  /// How a frame is cut. Offsets count from the end of the link header.
  struct Plan {
    let isIPv6: Bool
    /// The IP header, which may have a tag before it, and TCP's.
    let networkOffset: Int
    let transportOffset: Int
    /// All headers, and with them where the data begins.
    let headerBytes: Int
    let payload: Int
    let segment: Int
    let count: Int

    /// The data of a packet.
    func part(_ index: Int) -> Range<Int> {
      let start = headerBytes &+ index &* segment
      return start..<min(payload, start &+ segment)
    }
  }

  /// Looks at a frame's headers; nil where they are not what its virtio header says.
  mutating func plan(_ frame: borrowing Frame) -> Plan? {
    let copied = copyHeaders(frame)
    var type = frame.link.type
    var network = 0
    if type == NetworkTag.type {
      guard copied >= 4 else { return nil }
      type = word(2).bigEndian
      network = 4
    }
    let transport = Int(frame.header.checksumStart) - LinkHeader.byteCount
    guard frame.header.checksumOffset == Self.checksumOffset, transport >= network, transport + 20 <= copied,
      frame.header.segmentSize > 0
    else { return nil }
    let kind = frame.header.segmentation
    let isIPv6: Bool
    switch (type, kind) {
    case (0x0008, .tcp4):
      guard checksIPv4(at: network, transport: transport) else { return nil }
      isIPv6 = false
    case (0xdd86, .tcp6):
      guard network + 40 <= transport, byte(network) >> 4 == 6 else { return nil }
      isIPv6 = true
    default: return nil
    }
    let headerBytes = transport + Int(byte(transport + 12) >> 4) * 4
    guard headerBytes >= transport + 20, headerBytes <= copied else { return nil }
    let data = frame.payload - headerBytes
    let segment = Int(frame.header.segmentSize)
    let count = max(1, (data + segment - 1) / segment)
    guard count <= Self.packetLimit else { return nil }
    return Plan(
      isIPv6: isIPv6, networkOffset: network, transportOffset: transport, headerBytes: headerBytes,
      payload: frame.payload, segment: segment, count: count)
  }

  private func checksIPv4(at network: Int, transport: Int) -> Bool {
    let first = byte(network)
    return first >> 4 == 4 && first & 0xf >= 5 && network + Int(first & 0xf) * 4 == transport
      && byte(network + 9) == 6
  }

  private func copyHeaders(_ frame: borrowing Frame) -> Int {
    // SAFETY: `original` has room for that much.
    unsafe frame.copyPayload(to: original, min(Self.headerLimit, frame.payload))
  }

  /// Makes the headers of a packet. TCP's checksum is left as the sum of the pseudo header: what is still to be added to.
  mutating func write(_ plan: Plan, _ index: Int) {
    let isLast = index == plan.count - 1
    let transportBytes = plan.headerBytes - plan.transportOffset + plan.part(index).count
    // SAFETY (all of the body): offsets are below `plan.headerBytes`, which is within `headerLimit`.
    unsafe memcpy(headers, original, plan.headerBytes)
    let ip = plan.networkOffset
    let tcp = plan.transportOffset
    if plan.isIPv6 {
      set(ip + 4, UInt16(truncatingIfNeeded: plan.headerBytes - ip - 40 + plan.part(index).count))
    } else {
      set(ip + 2, UInt16(truncatingIfNeeded: plan.headerBytes - ip + plan.part(index).count))
      set(ip + 4, word(ip + 4) &+ UInt16(truncatingIfNeeded: index))
      set(ip + 10, 0)
      let sum = unsafe clx_checksum(headers + ip, UInt(tcp - ip))
      unsafe headers.storeBytes(of: Checksum.field(sum), toByteOffset: ip + 10, as: UInt16.self)
    }
    let sequence = unsafe UInt32(bigEndian: original.loadUnaligned(fromByteOffset: tcp + 4, as: UInt32.self))
    let moved = sequence &+ UInt32(truncatingIfNeeded: index &* plan.segment)
    unsafe headers.storeBytes(of: moved.bigEndian, toByteOffset: tcp + 4, as: UInt32.self)
    var flags = byte(tcp + 13)
    // FIN and PSH belong to the last packet, CWR to the first.
    if !isLast { flags &= ~0x09 }
    if index > 0 { flags &= ~0x80 }
    unsafe headers.storeBytes(of: flags, toByteOffset: tcp + 13, as: UInt8.self)
    unsafe headers.storeBytes(of: pseudoSum(plan, transportBytes), toByteOffset: tcp + 16, as: UInt16.self)
  }

  /// The sum of TCP's pseudo header (RFC 9293 §3.1, RFC 8200 §8.1), as it lies in memory.
  private func pseudoSum(_ plan: Plan, _ transportBytes: Int) -> UInt16 {
    let (offset, bytes) = plan.isIPv6 ? (plan.networkOffset + 8, 32) : (plan.networkOffset + 12, 8)
    // SAFETY: the addresses are within the IP header, which was checked.
    let addresses = unsafe clx_checksum(headers + offset, UInt(bytes))
    let length = UInt32(truncatingIfNeeded: transportBytes)
    let tcp: UInt16 = 6
    return Checksum.folded(
      UInt32(addresses) &+ UInt32(UInt16(truncatingIfNeeded: length >> 16).bigEndian)
        &+ UInt32(UInt16(truncatingIfNeeded: length).bigEndian) &+ UInt32(tcp.bigEndian))
  }

  /// A byte of the frame's headers.
  private func byte(_ offset: Int) -> UInt8 {
    // SAFETY (here and below): callers stay below `headerLimit`: by what was copied, or by a plan made of that.
    unsafe original.load(fromByteOffset: offset, as: UInt8.self)
  }

  /// A big-endian word's value in the frame's headers.
  private func word(_ offset: Int) -> UInt16 {
    // SAFETY: as above.
    unsafe UInt16(bigEndian: original.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
  }

  /// Writes one into a packet's headers.
  private func set(_ offset: Int, _ value: UInt16) {
    // SAFETY: as above.
    unsafe headers.storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt16.self)
  }
}
