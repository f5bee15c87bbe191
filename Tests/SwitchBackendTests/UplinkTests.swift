// The way out of a switch: a real tap in a network namespace that each test makes, and a packet socket on its other side.

import DeviceKit
import Foundation
import NetBackend
import SwitchBackend
import Testing
import TestSupport
import VhostFrontend

@Suite("switch uplink", .enabled(if: Wire.isPossible))
struct UplinkTests {
  private let wire: Wire
  private let stranger: [UInt8] = [2, 0, 0, 9, 9, 9]

  init() throws { wire = try Wire.make() }

  private func network(
    _ ports: [PortConfiguration] = [PortConfiguration(), PortConfiguration()],
    uplink: PortConfiguration = PortConfiguration()
  ) throws -> TestSwitch {
    try TestSwitch(ports, uplink: (wire.tap, uplink))
  }

  private func port(_ networks: PortNetworks) -> PortConfiguration {
    var port = PortConfiguration()
    port.networks = networks
    return port
  }

  @Test("Frames go out and come in whole, and after learning no third port gets a copy")
  func bothWays() throws {
    let network = try network()
    let a = try network.guest(0)
    let b = try network.guest(1, packed: true)
    for (number, length) in [15, 60, 61, 1514].enumerated() {
      let out = frame(to: broadcast, from: a.mac, length, number: UInt8(number))
      try a.send(out, piece: [Int.max, 7, 64][number % 3])
      #expect(wire.take() == out)
      #expect(try b.next().frame == out)
    }
    let answer = frame(to: a.mac, from: stranger, 1514)
    wire.give(answer)
    let got = try a.next()
    #expect(got.frame == answer && got.header[..<10].allSatisfy { $0 == 0 })
    let before = network.counter("delivered", port: 1)
    for round in 0..<100 {
      let out = frame(to: stranger, from: a.mac, 60 + round)
      try a.send(out)
      #expect(wire.take() == out)
      wire.give(answer)
      #expect(try a.next().frame == answer)
    }
    #expect(network.counter("delivered", port: 1) == before)
    // Between guests that are known nothing goes out.
    try b.send(frame(to: a.mac, from: b.mac))
    _ = try a.next()
    let out = network.counter("delivered", port: nil)
    for _ in 0..<20 {
      try a.send(frame(to: b.mac, from: a.mac))
      _ = try b.next()
    }
    #expect(network.counter("delivered", port: nil) == out && out == 104)
    #expect(network.counter("frames", port: nil) == 101 && network.counter("learned", port: nil) == 1)
    #expect(network.counter("bytes", port: nil) > 0)
  }

  @Test("A frame in more pieces than the kernel takes goes out whole")
  func manyPieces() throws {
    let network = try network()
    let a = try network.guest(0, queueSize: 2048)
    let out = frame(to: broadcast, from: a.mac, 1514)
    try a.send(out, piece: 1)
    #expect(wire.take() == out)
  }

  @Test("A trunk's frames carry tags out and in; access ports have none; nothing crosses")
  func networks() throws {
    let network = try network(
      [port(.access(5)), port(.access(6)), port(.access(7))], uplink: port(.trunk(native: 7, allowed: [5])))
    let guests = try (0..<3).map { try network.guest($0) }
    let sent = frame(to: broadcast, from: guests[0].mac, 100)
    try guests[0].send(sent)
    #expect(wire.take() == Array(sent[..<12]) + [0x81, 0, 0, 5] + Array(sent[12...]))
    let native = frame(to: broadcast, from: guests[2].mac, 100)
    try guests[2].send(native)
    #expect(wire.take() == native)
    // Network 6 is none of the uplink's, in either direction.
    try guests[1].send(frame(to: broadcast, from: guests[1].mac))
    wire.give(frame(to: broadcast, from: stranger, 100, tag: 6))
    network.wait("wrongNetwork", port: nil, 1)
    #expect(network.counter("delivered", port: nil) == 2)
    let tagged = frame(to: broadcast, from: stranger, 100, tag: 0x6000 | 5)
    wire.give(tagged)
    #expect(try guests[0].next().frame == Array(tagged[..<12]) + Array(tagged[16...]))
    wire.give(frame(to: broadcast, from: stranger, 101))
    #expect(try guests[2].next().frame.count == 101)
    #expect((0..<3).map { network.counter("delivered", port: $0) } == [1, 0, 1])
  }

  @Test("An isolated uplink is reached by ports that are not; its floods are limited")
  func isolation() throws {
    var isolated = PortConfiguration()
    isolated.isIsolated = true
    var uplink = isolated
    uplink.floods = Rate(perSecond: 1, burst: 3)
    let network = try network([PortConfiguration(), isolated], uplink: uplink)
    let a = try network.guest(0)
    let b = try network.guest(1)
    try b.send(frame(to: broadcast, from: b.mac))
    _ = try a.next()
    let out = frame(to: broadcast, from: a.mac)
    try a.send(out)
    #expect(wire.take() == out)
    #expect(network.counter("delivered", port: nil) == 1)
    let start = ContinuousClock.now
    for _ in 0..<50 { wire.give(frame(to: broadcast, from: stranger)) }
    network.wait("floodsRefused", port: nil, 40)
    let seconds = UInt64((ContinuousClock.now - start) / .seconds(1)) + 1
    while network.counter("floods", port: nil) + network.counter("floodsRefused", port: nil) < 50 {
      sched_yield()
    }
    #expect((3...3 + seconds).contains(network.counter("floods", port: nil)))
    #expect(network.counter("delivered", port: 0) == 1 + network.counter("floods", port: nil))
    #expect(network.counter("delivered", port: 1) == 1, "a's broadcast, and none from the uplink")
  }

  @Test("What guests leave undone the kernel gets so", arguments: [false, true])
  func undoneOut(tagged: Bool) throws {
    let network = try network(
      [tagged ? port(.access(5)) : PortConfiguration()],
      uplink: tagged ? port(.trunk(native: nil, allowed: [5])) : PortConfiguration())
    let a = try network.guest(0)
    let packet = TCPPacket(data: 20_000, to: stranger, from: a.mac)
    try a.send(packet.bytes(), header: packet.header(segment: 1400, type: 1), piece: 4096)
    let (header, out) = try #require(wire.next())
    let plain = tagged ? Array(out[..<12]) + Array(out[16...]) : out
    #expect(plain == packet.bytes())
    // Flags, kind, segment size, and where the checksum goes. (The packet socket counts without the tag that it took out.)
    #expect(header[..<2] == [1, 1] && header[4..<6] == [0x78, 5])
    #expect(header[6..<10] == [UInt8(14 + packet.networkBytes), 0, 16, 0])
    #expect(network.counter("unresolvable", port: nil) == 0)
  }

  @Test("What the kernel leaves undone goes to guests that take it so, and is done for the others")
  func undoneIn() throws {
    let network = try network()
    let a = try network.guest(0)
    let b = try network.guest(1, features: NetBits.plain)
    let packet = TCPPacket(data: 20_000, to: broadcast, from: stranger)
    wire.give(packet.bytes(), header: Array(packet.header(segment: 1400, type: 1)[..<10]))
    let whole = try a.next()
    #expect(whole.frame == packet.bytes())
    #expect(whole.header[..<2] == [1, 1] && whole.header[4..<6] == [0x78, 5])
    var data: [UInt8] = []
    for _ in 0..<15 {
      let part = try b.next()
      #expect(part.header[..<10].allSatisfy { $0 == 0 } && isSound(part.frame, isIPv6: false))
      data += part.frame[(14 + packet.headerBytes)...]
    }
    #expect(data == Array(packet.bytes()[(14 + packet.headerBytes)...]))
    #expect(network.counter("framesCut", port: 1) == 1 && network.counter("framesCut", port: 0) == 0)
  }

  @Test("NT13 an uplink that is down loses frames, which are counted; guests go on, and so does it")
  func down() throws {
    let network = try network()
    let a = try network.guest(0)
    let b = try network.guest(1)
    try wire.set(up: false)
    for round in 0..<20 {
      let sent = frame(to: broadcast, from: a.mac, 60 + round)
      try a.send(sent)
      #expect(try b.next().frame == sent)
    }
    #expect(network.counter("linkDown", port: nil) == 20 && network.counter("delivered", port: nil) == 0)
    try wire.set(up: true)
    let out = frame(to: broadcast, from: a.mac, 99)
    try a.send(out)
    #expect(wire.take() == out)
    wire.give(frame(to: a.mac, from: stranger))
    _ = try a.next()
  }

  @Test(
    "NT15 a flood from outside to a guest without buffers is that guest's loss: others hear and are heard")
  func slowGuest() throws {
    let network = try network()
    let a = try network.guest(0)
    let b = try network.guest(1, buffers: 0)
    try b.send(frame(to: broadcast, from: b.mac))
    _ = try a.next()
    _ = wire.take()
    for number in 0..<2000 {
      wire.give(frame(to: b.mac, from: stranger, 60, number: UInt8(truncatingIfNeeded: number)))
      if number % 100 == 0 {
        let out = frame(to: stranger, from: a.mac, 200 + number / 100)
        try a.send(out)
        #expect(wire.take() == out)
      }
    }
    network.wait("full", port: 1, 1)
    wire.give(frame(to: a.mac, from: stranger, 77))
    #expect(try a.next().frame.count == 77)
  }

  @Test("What is meant for a bridge itself stays on its side")
  func bridges() throws {
    let network = try network()
    let a = try network.guest(0)
    let b = try network.guest(1)
    for last: UInt8 in [0, 1, 2, 0xe, 0xf] {
      try a.send(frame(to: [1, 0x80, 0xc2, 0, 0, last], from: a.mac))
      wire.give(frame(to: [1, 0x80, 0xc2, 0, 0, last], from: stranger))
    }
    network.wait("filtered", port: nil, 5)
    #expect(network.counter("filtered", port: 0) == 5)
    let other = frame(to: [1, 0x80, 0xc2, 0, 0, 0x10], from: a.mac)
    try a.send(other)
    #expect(try b.next().frame == other)
    #expect(wire.take() == other)
    #expect(network.counter("delivered", port: 0) == 0 && network.counter("delivered", port: 1) == 1)
  }

  @Test("A frame from a group's address is dropped, and the uplink goes on")
  func malformed() throws {
    let network = try network()
    let a = try network.guest(0)
    wire.give(frame(to: a.mac, from: broadcast))
    network.wait("malformed", port: nil, 1)
    wire.give(frame(to: a.mac, from: stranger, 80))
    #expect(try a.next().frame.count == 80)
  }
}
