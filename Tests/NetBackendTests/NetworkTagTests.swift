// A guest in a network of its own (`--vlan`): its frames carry a tag at the tap and none in the guest.

import DeviceKit
import Foundation
import NetBackend
import Testing
import TestSupport
import VirtQueue

private func tagged(_ frame: [UInt8], _ control: UInt16, type: [UInt8] = [0x81, 0]) -> [UInt8] {
  Array(frame[..<12]) + type + [UInt8(control >> 8), UInt8(truncatingIfNeeded: control)] + Array(frame[12...])
}

/// A UDP datagram in a frame, 10.0.0.2 to 10.0.0.1, whose checksum is left to others: the sum of the pseudo-header is in it.
private func datagram(payload: Int) -> [UInt8] {
  let length = 8 + payload
  let total = 20 + length
  var ip: [UInt8] = [
    0x45, 0, UInt8(total >> 8), UInt8(total & 255), 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1,
  ]
  let sum = ~checksum(ip)
  ip[10] = UInt8(sum >> 8)
  ip[11] = UInt8(sum & 255)
  let pseudo = checksum(Array(ip[12..<20]) + [0, 17, UInt8(length >> 8), UInt8(length & 255)])
  let udp: [UInt8] = [
    0x12, 0x34, 0x56, 0x78, UInt8(length >> 8), UInt8(length & 255), UInt8(pseudo >> 8), UInt8(pseudo & 255),
  ]
  return [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 8, 0] + ip + udp
    + (0..<payload).map { UInt8(truncatingIfNeeded: 7 * $0) }
}

private func checksum(_ bytes: [UInt8]) -> UInt16 {
  var sum: UInt32 = 0
  for place in stride(from: 0, to: bytes.count, by: 2) {
    sum += UInt32(bytes[place]) << 8 | (place + 1 < bytes.count ? UInt32(bytes[place + 1]) : 0)
  }
  while sum >> 16 != 0 { sum = sum & 0xffff + sum >> 16 }
  return UInt16(sum)
}

private let modern: FeatureSet = [.version1, NetFeature.mergeable]
private let five: @Sendable (inout NetDevice.Options) -> Void = { $0.tag = NetworkTag(5) }

@Suite("A card in a network of its own, on a tap", .enabled(if: Wire.isPossible))
struct TaggedTapTests {
  private static let rest: [UInt8] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]

  @Test("What the guest sends has the tag at the tap, and what it receives from there has none")
  func bothWays() throws {
    let wire = try Wire.make(peered: true)
    let card = try Card(.tap(wire.tap), modern, five)
    for length in [16, 17, 60, 1514] {
      let out = testFrame(length)
      try card.send(frame: out)
      #expect(wire.takeFromPeer() == tagged(out, 5), "\(length)")
    }
    for (slot, length) in [16, 60, 1514].enumerated() {
      let back = testFrame(length, number: 3)
      // The kernel keeps the tag beside the frame.
      card.post(2 * slot, 2000)
      wire.giveToPeer(tagged(back, 5))
      #expect(card.receive.waitUsed()?.length == UInt32(12 + length))
      #expect(card.received(2 * slot, 12 + length) == Self.rest + back)
      // And in it.
      card.post(2 * slot + 1, 2000)
      wire.give(tagged(back, 5))
      #expect(card.receive.waitUsed()?.length == UInt32(12 + length))
      #expect(card.received(2 * slot + 1, 12 + length) == Self.rest + back)
    }
  }

  @Test(
    "A sub-interface of the tap for that network is the guest's other side", .enabled(if: Wire.hasNetworks))
  func subInterface() throws {
    let wire = try Wire.make(network: 5)
    let card = try Card(.tap(wire.tap), modern, five)
    let out = testFrame(1514)
    try card.send(frame: out)
    #expect(wire.take() == out)
    card.post(0, 2000)
    let back = testFrame(1514, number: 3)
    wire.give(back)
    #expect(card.receive.waitUsed()?.length == 1526)
    #expect(card.received(0, 1526) == Self.rest + back)
  }

  @Test(
    "Frames of other networks, and without a tag, do not reach the guest; nothing of them stays in its memory"
  )
  func others() throws {
    let wire = try Wire.make()
    let card = try Card(.tap(wire.tap), modern, five)
    card.receive.pointer(Card.data(card.receive)).initializeMemory(as: UInt8.self, repeating: 0, count: 2000)
    card.post(0, 2000)
    let frame = testFrame(300)
    let wrong = [
      frame, tagged(frame, 6), tagged(frame, 0), tagged(frame, 0xe000), tagged(frame, 4095),
      tagged(frame, 5, type: [0x88, 0xa8]),
    ]
    for (number, bytes) in wrong.enumerated() {
      wire.give(bytes)
      #expect(card.wait(for: "wrongNetwork", UInt64(number + 1)), "\(number)")
    }
    // With its tag, whatever the priority and whatever is behind it.
    let inner = tagged(frame, 9)
    wire.give(tagged(inner, 0xe005))
    #expect(card.receive.waitUsed()?.length == 316)
    #expect(Array(card.received(0, 316)[12...]) == inner)
    // The buffer was wiped after the last of the others, longer than what came then.
    wire.give(tagged(testFrame(1000), 6))
    card.post(1, 2000)
    #expect(card.wait(for: "wrongNetwork", UInt64(wrong.count + 1)))
    #expect(card.received(0, 2000)[316...].allSatisfy { $0 == 0 })
    wire.give(tagged(frame, 5))
    #expect(card.receive.waitUsed()?.length == 312)
    #expect(card.received(1, 2000)[312...].allSatisfy { $0 == 0 })
  }

  @Test(
    "The guest's own tags: a priority becomes the network's, a network or two tags are none of its business")
  func ownTags() throws {
    let path = NSTemporaryDirectory() + "tags-" + UUID().uuidString
    defer { try? FileManager.default.removeItem(atPath: path) }
    let wire = try Wire.make(peered: true)
    let card = try Card(.tap(wire.tap), modern) {
      five(&$0)
      $0.capture = try? PacketCapture(path: path)
    }
    let frame = testFrame(100)
    for bytes in [
      tagged(frame, 5), tagged(frame, 6), tagged(frame, 0, type: [0x88, 0xa8]), tagged(tagged(frame, 6), 0),
      tagged(frame, 0, type: [0x91, 0]),
    ] { try card.send(frame: bytes) }
    #expect(card.counter("wrongNetwork") == 5)
    // A tag that the frame ends in.
    for length in 14..<18 { try card.send(frame: Array(tagged(frame, 0).prefix(length))) }
    #expect(card.counter("malformed") == 4)
    #expect(card.counter("frames") == 0)
    try card.send(frame: tagged(frame, 0xa000))
    #expect(wire.takeFromPeer() == tagged(frame, 0xa005))
    card.post(0, 2000)
    wire.giveToPeer(tagged(frame, 5))
    #expect(card.receive.waitUsed()?.length == 112)
    // As they are at the tap: both with the tag, the first one with the priority that the guest gave it.
    let capture = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
    #expect(capture.count == 24 + 2 * (16 + 104))
    #expect(Array(capture[40..<144]) == tagged(frame, 0xa005))
    #expect(Array(capture[160...]) == tagged(frame, 5))
  }

  private static func needsChecksum(from start: UInt16) -> [UInt8] {
    [1, 0, 0, 0, 0, 0, UInt8(start & 255), UInt8(start >> 8), 6, 0, 0, 0]
  }

  @Test("A checksum that is left to others is made where it belongs, in both directions")
  func checksums() throws {
    let wire = try Wire.make(peered: true)
    let features = modern.union([NetFeature.checksum, NetFeature.guestChecksum])
    let card = try Card(.tap(wire.tap), features, five)
    let frame = datagram(payload: 333)
    try card.send(Self.needsChecksum(from: 34) + frame)
    let out = try #require(wire.takeFromPeer())
    #expect(Array(out[12..<16]) == [0x81, 0, 0, 5])
    let arrived = Array(out[..<12]) + Array(out[16...])
    #expect(arrived.count == frame.count)
    #expect(Array(arrived[..<40]) == Array(frame[..<40]) && Array(arrived[42...]) == Array(frame[42...]))
    // Pseudo-header and datagram add up to all ones.
    let pseudo = Array(arrived[26..<34]) + [0, 17] + Array(arrived[38..<40])
    #expect(checksum(pseudo + Array(arrived[34...])) == 0xffff)
    // The same datagram to the guest, which has agreed to make the checksum itself.
    card.post(0, 2000)
    wire.giveToPeer(tagged(frame, 5), header: Array(Self.needsChecksum(from: 38).prefix(10)))
    #expect(card.receive.waitUsed()?.length == UInt32(12 + frame.count))
    let bytes = card.received(0, 12 + frame.count)
    #expect(bytes[0] == 1 && Array(bytes[6..<12]) == [34, 0, 6, 0, 1, 0])
    #expect(Array(bytes[12...]) == frame)
  }

  @Test("NT05 a checksum over addresses or tag is none, and one past what can be said neither")
  func wrongChecksums() throws {
    let wire = try Wire.make()
    let card = try Card(.tap(wire.tap), modern.union(NetFeature.checksum), five)
    let frame = datagram(payload: 10)
    for start: UInt16 in [0, 6, 12, 13, 0xfffc] { try card.send(Self.needsChecksum(from: start) + frame) }
    for start: UInt16 in [14, 17] { try card.send(Self.needsChecksum(from: start) + tagged(frame, 0)) }
    #expect(card.counter("badHeader") == 7)
    try card.send(Self.needsChecksum(from: 34) + frame)
    try card.send(Self.needsChecksum(from: 38) + tagged(frame, 0))
    #expect(card.counter("frames") == 2)
  }

  @Test("A frame may be as long as the MTU says, and its tag is not counted for it")
  func longest() throws {
    let features = modern.union(NetFeature.mtu)
    let wire = try Wire.make(peered: true)
    let card = try Card(.tap(wire.tap), features, five)
    let frame = testFrame(1514)
    try card.send(frame: frame)
    #expect(wire.takeFromPeer() == tagged(frame, 5))
    try card.send(frame: testFrame(1515))
    #expect(card.counter("badHeader") == 1)
    // With a priority it has its tag already.
    try card.send(frame: tagged(frame, 0))
    #expect(wire.takeFromPeer() == tagged(frame, 5))
    card.post(0, 2000)
    wire.giveToPeer(tagged(frame, 5))
    #expect(card.receive.waitUsed()?.length == 1526)
  }

  @Test("Frames go out by the ring with their tag too")
  func ring() throws {
    let wire = try Wire.make(peered: true)
    let card = try Card(.tap(wire.tap), modern, size: 256) {
      five(&$0)
      $0.usesRing = true
    }
    for piece in [3, 7, 14, 16, 2000] {
      let frame = testFrame(200 + piece % 100)
      try card.send([UInt8](repeating: 0, count: 12) + frame, piece: piece)
      #expect(wire.takeFromPeer() == tagged(frame, 5))
    }
    try card.send(frame: tagged(testFrame(100), 6))
    #expect(card.counter("wrongNetwork") == 1)
  }

  @Test("The guest's place is announced in its network")
  func announcement() throws {
    let wire = try Wire.make(peered: true)
    let card = try Card(.tap(wire.tap), modern, five)
    card.device.announce(0x0605_0403_0252)
    let frame = try #require(wire.takeFromPeer())
    let addresses: [UInt8] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 2, 3, 4, 5, 6]
    #expect(Array(frame.prefix(18)) == addresses + [0x81, 0, 0, 5, 0x80, 0x35])
  }
}

@Suite("A card in a network of its own")
struct TaggedLoopTests {
  @Test("Offloads count from the frame's start in the guest, and buffers are filled as without a tag")
  func whole() throws {
    let features: FeatureSet = [
      .version1, NetFeature.mergeable, NetFeature.checksum, NetFeature.guestChecksum, NetFeature.hostTSO4,
      NetFeature.guestTSO4,
    ]
    let card = try Card(.loop, features, size: 128, five)
    let frame = testFrame(20_000)
    let header: [UInt8] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]
    // Buffers of a header's size and of odd sizes; more pieces than one.
    let sizes = [12, 12, 1, 13, 3000, 1500, 2000, 9000, 7000]
    for (slot, size) in sizes.enumerated() { card.post(slot, max(12, size)) }
    try card.send(header + frame, piece: 4000)
    var bytes: [UInt8] = []
    var number = 0
    while bytes.count < 20_012, let used = card.receive.waitUsed() {
      bytes += card.received(number, Int(used.length))
      number += 1
    }
    #expect(Array(bytes[..<10]) == Array(header[..<10]))
    #expect(Int(bytes[10]) == number)
    #expect(Array(bytes[12...]) == frame)
  }

  @Test("A frame waits for buffers, and has its tag taken out once", arguments: [12, 24, 300])
  func parks(first: Int) throws {
    let card = try Card(.loop, modern, five)
    card.post(0, first)
    let frame = testFrame(1000)
    try card.send(frame: frame)
    for slot in 1..<4 { card.post(slot, 500) }
    var bytes: [UInt8] = []
    var number = 0
    while bytes.count < 1012, let used = card.receive.waitUsed() {
      bytes += card.received(number, Int(used.length))
      number += 1
    }
    #expect(Array(bytes[12...]) == frame)
  }

  @Test("Without mergeable buffers one that cannot hold a frame's head comes back, one that fits is filled")
  func single() throws {
    let card = try Card(.loop, [.version1], five)
    card.post(0, 23)
    #expect(card.receive.waitUsed()?.length == 0)
    card.post(1, 300)
    try card.send(frame: testFrame(400))
    #expect(card.wait(for: "oversize", 1))
    let frame = testFrame(288)
    try card.send(frame: frame)
    #expect(card.receive.waitUsed()?.length == 300)
    #expect(Array(card.received(1, 300)[12...]) == frame)
  }
}
