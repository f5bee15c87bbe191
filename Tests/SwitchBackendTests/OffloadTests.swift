// What a sender leaves undone: passed on to guests that take it so, done for the others, and held against checksums that this
// file computes by itself.

import Foundation
import SwitchBackend
import Testing
import VhostFrontend

/// A TCP packet, its checksum left as the pseudo header's sum.
struct TCPPacket {
  var isIPv6 = false
  var data: Int
  var flags: UInt8 = 0x18
  var to: [UInt8]
  var from: [UInt8]
  static let sequence: UInt32 = 0xffff_ff00

  var networkBytes: Int { isIPv6 ? 40 : 24 }
  /// Without the link header.
  var headerBytes: Int { networkBytes + 32 }

  func bytes() -> [UInt8] {
    var ip: [UInt8]
    let transportBytes = 32 + data
    let addresses: [UInt8]
    if isIPv6 {
      addresses = (0..<32).map { UInt8($0 * 3) }
      ip = [0x60, 0, 0, 0] + Self.big(UInt16(truncatingIfNeeded: transportBytes)) + [6, 64] + addresses
    } else {
      addresses = [10, 1, 2, 3, 10, 4, 5, 6]
      ip =
        [0x46, 0] + Self.big(UInt16(24 + transportBytes)) + [0x12, 0xfe, 0x40, 0, 64, 6, 0, 0] + addresses
      ip += [1, 1, 1, 0]
      let sum = ~internetSum(ip)
      ip[10] = UInt8(sum >> 8)
      ip[11] = UInt8(truncatingIfNeeded: sum)
    }
    var tcp = Self.big(1234) + Self.big(80) + Self.big(UInt16(Self.sequence >> 16))
    tcp += Self.big(UInt16(truncatingIfNeeded: Self.sequence)) + [0, 0, 0, 9, 0x80, flags, 1, 0]
    let pseudo =
      addresses + [0, UInt8(transportBytes >> 16)] + Self.big(UInt16(truncatingIfNeeded: transportBytes)) + [
        0, 6,
      ]
    tcp += Self.big(internetSum(pseudo)) + [0, 0] + [UInt8](repeating: 1, count: 12)
    let payload = (0..<data).map { UInt8(truncatingIfNeeded: $0 * 31 + $0 >> 8) }
    return to + from + (isIPv6 ? [0x86, 0xdd] : [8, 0]) + ip + tcp + payload
  }

  func header(segment: UInt16, type: UInt8) -> [UInt8] {
    let start = UInt16(14 + networkBytes)
    return [1, type] + Self.little(start + 32) + Self.little(segment) + Self.little(start) + Self.little(16)
      + [0, 0]
  }

  static func big(_ word: UInt16) -> [UInt8] { [UInt8(word >> 8), UInt8(truncatingIfNeeded: word)] }
  static func little(_ word: UInt16) -> [UInt8] { [UInt8(truncatingIfNeeded: word), UInt8(word >> 8)] }
}

/// The sum of big-endian words, folded.
func internetSum(_ bytes: [UInt8]) -> UInt16 {
  var sum: UInt64 = 0
  for (index, byte) in bytes.enumerated() { sum += UInt64(byte) << (index % 2 == 0 ? 8 : 0) }
  while sum >> 16 > 0 { sum = sum & 0xffff + sum >> 16 }
  return UInt16(sum)
}

/// Whether an IP packet's TCP checksum, and IPv4's own, are right.
func isSound(_ frame: [UInt8], isIPv6: Bool) -> Bool {
  let ip = Array(frame[14...])
  let headerBytes = isIPv6 ? 40 : Int(ip[0] & 0xf) * 4
  if !isIPv6 {
    guard internetSum(Array(ip[..<headerBytes])) == 0xffff else { return false }
    guard Int(ip[2]) << 8 | Int(ip[3]) == ip.count else { return false }
  } else if Int(ip[4]) << 8 | Int(ip[5]) != ip.count - 40 {
    return false
  }
  let tcp = Array(ip[headerBytes...])
  let addresses = isIPv6 ? Array(ip[8..<40]) : Array(ip[12..<20])
  let pseudo =
    addresses + [0, UInt8(tcp.count >> 16)] + TCPPacket.big(UInt16(truncatingIfNeeded: tcp.count)) + [0, 6]
  return internetSum(pseudo + tcp) == 0xffff
}

@Suite("switch offloads")
struct OffloadTests {
  private func pair(_ features: UInt64, packed: Bool = false) throws -> (TestSwitch, NetGuest, NetGuest) {
    let network = try TestSwitch(ports: 2)
    let a = try network.guest(0)
    let b = try network.guest(1, features: features, packed: packed)
    return (network, a, b)
  }

  @Test("A whole packet goes as it is to a guest that takes it", arguments: [false, true])
  func passed(isIPv6: Bool) throws {
    let (network, a, b) = try pair(NetBits.all)
    let packet = TCPPacket(isIPv6: isIPv6, data: 20_000, to: b.mac, from: a.mac)
    let header = packet.header(segment: 1400, type: isIPv6 ? 4 : 1)
    try a.send(packet.bytes(), header: header, piece: 4096)
    let got = try b.next()
    #expect(got.frame == packet.bytes())
    #expect(Array(got.header[..<10]) == Array(header[..<10]))
    #expect(network.counter("checksumsMade", port: 1) == 0)
  }

  @Test("A checksum is made for a guest that takes none unmade", arguments: [0, 1, 2, 999, 1400])
  func checksum(data: Int) throws {
    let (network, a, b) = try pair(NetBits.plain)
    for isIPv6 in [false, true] {
      let packet = TCPPacket(isIPv6: isIPv6, data: data, to: b.mac, from: a.mac)
      var header = packet.header(segment: 0, type: 0)
      header[4] = 0
      try a.send(packet.bytes(), header: header, piece: 33)
      let got = try b.next()
      #expect(got.header[..<10].allSatisfy { $0 == 0 })
      #expect(isSound(got.frame, isIPv6: isIPv6))
      #expect(got.frame.count == packet.bytes().count)
    }
    #expect(network.counter("checksumsMade", port: 1) == 2)
  }

  @Test(
    "A whole packet is cut for a guest that takes none, with right checksums, lengths and sequence numbers",
    arguments: [false, true], [NetBits.plain, NetBits.plain | NetBits.guestChecksum])
  func cut(isIPv6: Bool, features: UInt64) throws {
    let (network, a, b) = try pair(features, packed: isIPv6)
    let segment = 1448
    let packet = TCPPacket(isIPv6: isIPv6, data: 20_001, flags: 0x99, to: b.mac, from: a.mac)
    let whole = packet.bytes()
    try a.send(whole, header: packet.header(segment: UInt16(segment), type: isIPv6 ? 4 : 1), piece: 4096)
    var data: [UInt8] = []
    let count = (20_001 + segment - 1) / segment
    for index in 0..<count {
      let got = try b.next()
      var bytes = got.frame
      let start = 14 + packet.networkBytes
      if features & NetBits.guestChecksum != 0 {
        #expect(got.header[0] == 1 && got.header[1] == 0)
        #expect(Array(got.header[6..<10]) == TCPPacket.little(UInt16(start)) + TCPPacket.little(16))
        // The guest would make it: from the field on, which holds the pseudo header's sum.
        let sum = ~internetSum(Array(bytes[start...]))
        bytes[start + 16] = UInt8(sum >> 8)
        bytes[start + 17] = UInt8(truncatingIfNeeded: sum)
      } else {
        #expect(got.header[..<10].allSatisfy { $0 == 0 })
      }
      #expect(isSound(bytes, isIPv6: isIPv6))
      let sequence = bytes[start + 4..<start + 8].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
      #expect(sequence == TCPPacket.sequence &+ UInt32(index * segment))
      // FIN and PSH on the last, CWR on the first.
      #expect(bytes[start + 13] == 0x10 | (index == count - 1 ? 0x09 : 0) | (index == 0 ? 0x80 : 0))
      if !isIPv6 { #expect(Int(bytes[18]) << 8 | Int(bytes[19]) == 0x12fe + index) }
      data += bytes[(14 + packet.headerBytes)...]
    }
    #expect(data == Array(whole[(14 + packet.headerBytes)...]))
    #expect(network.counter("framesCut", port: 1) == 1)
    #expect(network.counter("delivered", port: 1) == UInt64(count))
  }

  @Test("A frame that is not what its header says is not cut, and harms nobody")
  func lies() throws {
    let (network, a, b) = try pair(NetBits.plain)
    let packet = TCPPacket(data: 5000, to: b.mac, from: a.mac)
    let header = packet.header(segment: 1000, type: 1)
    var lies: [([UInt8], [UInt8])] = []
    for (offset, value) in [(14, 0x45), (14, 0x66), (23, 17), (12, 0x86)] as [(Int, UInt8)] {
      var bytes = packet.bytes()
      bytes[offset] = value
      lies.append((bytes, header))
    }
    var short = packet.bytes()
    short[14 + 24 + 12] = 0x10
    lies.append((short, header))
    for (offset, value) in [(1, 4), (6, 14), (8, 6)] as [(Int, UInt8)] {
      var wrong = header
      wrong[offset] = value
      lies.append((packet.bytes(), wrong))
    }
    // One byte a packet: more packets than are made of a frame.
    lies.append((packet.bytes(), packet.header(segment: 1, type: 1)))
    for (bytes, header) in lies { try a.send(bytes, header: header) }
    #expect(network.counter("unresolvable", port: 1) == UInt64(lies.count))
    #expect(network.counter("delivered", port: 1) == 0)
    let sent = frame(to: b.mac, from: a.mac)
    try a.send(sent)
    #expect(try b.next().frame == sent)
  }

  @Test("A tag put in or taken out moves what the header points at")
  func tagged() throws {
    var access = PortConfiguration()
    access.networks = .access(5)
    var trunk = PortConfiguration()
    trunk.networks = .trunk(native: nil, allowed: [5])
    let network = try TestSwitch([access, trunk])
    let a = try network.guest(0)
    let b = try network.guest(1)
    let packet = TCPPacket(data: 3000, to: b.mac, from: a.mac)
    try a.send(packet.bytes(), header: packet.header(segment: 1000, type: 1))
    let there = try b.next()
    #expect(there.header[6] == UInt8(14 + 24 + 4) && there.header[2] == UInt8(14 + 24 + 32 + 4))
    #expect(there.frame.count == packet.bytes().count + 4)
    var answer = there.frame
    answer.replaceSubrange(0..<12, with: a.mac + b.mac)
    try b.send(answer, header: Array(there.header[..<10]) + [0, 0])
    let back = try a.next()
    #expect(Array(back.header[..<10]) == Array(packet.header(segment: 1000, type: 1)[..<10]))
    #expect(Array(back.frame[12...]) == Array(packet.bytes()[12...]))
  }
}
