// Where frames go: learned, flooded, kept apart. Over real sockets, ring to ring.

import DeviceKit
import Foundation
import NetBackend
import SwitchBackend
import Testing
import VhostFrontend

@Suite("switch")
struct ForwardingTests {
  @Test(
    "What one guest sends another gets, whatever rings they have",
    arguments: [(false, false), (false, true), (true, false), (true, true)])
  func rings(sender: Bool, receiver: Bool) throws {
    let network = try TestSwitch(ports: 2)
    let a = try network.guest(0, packed: sender)
    let b = try network.guest(1, packed: receiver)
    for (number, length) in [14, 15, 60, 61, 1514, 2000, 9000, 65_000].enumerated() {
      let sent = frame(to: b.mac, from: a.mac, length, number: UInt8(number))
      try a.send(sent, piece: [Int.max, 1000, 37 + 1000 * number][number % 3])
      let got = try b.next()
      #expect(got.frame == sent)
      #expect(got.header[..<10].allSatisfy { $0 == 0 })
    }
    #expect(network.counter("frames", port: 0) + network.counter("floods", port: 0) == 8)
    #expect(network.counter("delivered", port: 1) == 8)
    #expect(try b.arena.damagedGuards() == [])
  }

  @Test("After learning no third port gets a copy")
  func learning() throws {
    let network = try TestSwitch(ports: 3)
    let guests = try (0..<3).map { try network.guest($0) }
    try guests[0].send(frame(to: guests[1].mac, from: guests[0].mac))
    _ = try guests[1].next()
    _ = try guests[2].next()
    try guests[1].send(frame(to: guests[0].mac, from: guests[1].mac))
    _ = try guests[0].next()
    let before = network.counter("delivered", port: 2)
    #expect(before == 1, "the answer went to nobody else")
    for round in 0..<200 {
      let (from, to) = round % 2 == 0 ? (0, 1) : (1, 0)
      let sent = frame(to: guests[to].mac, from: guests[from].mac, 60 + round)
      try guests[from].send(sent)
      #expect(try guests[to].next().frame == sent)
    }
    #expect(network.counter("delivered", port: 2) == before)
    #expect(network.counter("learned", port: 0) == 1 && network.counter("learned", port: 1) == 1)
    #expect(network.counter("floods", port: 0) == 1 && network.counter("frames", port: 1) == 101)
  }

  @Test("A broadcast goes to every other port, once, and not back")
  func broadcasts() throws {
    let network = try TestSwitch(ports: 4)
    let guests = try (0..<4).map { try network.guest($0, packed: $0 % 2 == 1) }
    let sent = frame(to: broadcast, from: guests[2].mac)
    try guests[2].send(sent)
    for index in [0, 1, 3] { #expect(try guests[index].next().frame == sent) }
    #expect((0..<4).map { network.counter("delivered", port: $0) } == [1, 1, 0, 1])
  }

  @Test("An address that moves is found at its new port, and one that left is flooded again")
  func moves() throws {
    let network = try TestSwitch(ports: 3)
    let a = try network.guest(0)
    let b = try network.guest(1)
    let c = try network.guest(2)
    let roamer: [UInt8] = [2, 9, 9, 9, 9, 9]
    try b.send(frame(to: broadcast, from: roamer))
    _ = try a.next()
    _ = try c.next()
    try c.send(frame(to: broadcast, from: roamer))
    _ = try a.next()
    _ = try b.next()
    #expect(network.counter("moved", port: 2) == 1)
    try a.send(frame(to: roamer, from: a.mac))
    _ = try c.next()
    #expect(network.counter("delivered", port: 1) == 1)
    // Its guest goes: nobody knows where it is now.
    c.driver.disconnect()
    network.wait("completed", port: 2, 1)
    let d = try network.guest(2)
    try a.send(frame(to: roamer, from: a.mac))
    _ = try b.next()
    _ = try d.next()
  }

  @Test("Isolated ports reach the others, and not each other")
  func isolation() throws {
    var isolated = PortConfiguration()
    isolated.isIsolated = true
    let network = try TestSwitch([PortConfiguration(), isolated, isolated])
    let guests = try (0..<3).map { try network.guest($0) }
    try guests[1].send(frame(to: broadcast, from: guests[1].mac))
    _ = try guests[0].next()
    try guests[2].send(frame(to: broadcast, from: guests[2].mac))
    _ = try guests[0].next()
    // Known by now, and still not to be reached.
    try guests[1].send(frame(to: guests[2].mac, from: guests[1].mac))
    #expect(network.counter("filtered", port: 1) == 1)
    try guests[0].send(frame(to: guests[2].mac, from: guests[0].mac))
    _ = try guests[2].next()
    #expect((0..<3).map { network.counter("delivered", port: $0) } == [2, 0, 1])
  }

  @Test("Access ports are in one network, trunks carry tags, and nothing crosses")
  func networks() throws {
    func port(_ networks: PortNetworks) -> PortConfiguration {
      var port = PortConfiguration()
      port.networks = networks
      return port
    }
    let network = try TestSwitch([
      port(.access(10)), port(.access(20)), port(.trunk(native: nil, allowed: [10, 20])),
      port(.trunk(native: 10, allowed: [30])), port(.transparent),
    ])
    let guests = try (0..<5).map { try network.guest($0) }
    // Untagged of network 10: tagged at the trunk, untagged at the native one, nowhere else.
    let sent = frame(to: broadcast, from: guests[0].mac, 100)
    try guests[0].send(sent)
    #expect(try guests[2].next().frame == Array(sent[..<12]) + [0x81, 0, 0, 10] + Array(sent[12...]))
    #expect(try guests[3].next().frame == sent)
    #expect((0..<5).map { network.counter("delivered", port: $0) } == [0, 0, 1, 1, 0])
    // Tagged 20 from the trunk, with a priority: untagged at its access port.
    let tagged = frame(to: broadcast, from: guests[2].mac, 100, tag: 0x6000 | 20)
    try guests[2].send(tagged)
    #expect(try guests[1].next().frame == Array(tagged[..<12]) + Array(tagged[16...]))
    #expect((0..<5).map { network.counter("delivered", port: $0) } == [0, 1, 1, 1, 0])
    // What no port is in, or may not send.
    try guests[2].send(frame(to: broadcast, from: guests[2].mac, 100, tag: 30))
    try guests[2].send(frame(to: broadcast, from: guests[2].mac, 100))
    try guests[0].send(frame(to: broadcast, from: guests[0].mac, 100, tag: 10))
    #expect(network.counter("wrongNetwork", port: 2) == 2)
    #expect(network.counter("wrongNetwork", port: 0) == 1)
    try guests[3].send(frame(to: broadcast, from: guests[3].mac, 100, tag: 30))
    // A tag without a number is a priority.
    try guests[0].send(frame(to: guests[3].mac, from: guests[0].mac, 100, tag: 0xa000))
    #expect(try guests[3].next().frame.count == 96)
    // Nor is there a way into another network behind a tag of one's own: it would leave the native trunk as network 30's.
    let inner = frame(to: broadcast, from: guests[0].mac, 100, tag: 30)
    try guests[0].send(Array(inner[..<12]) + [0x81, 0, 0, 0] + Array(inner[12...]))
    try guests[2].send(Array(inner[..<12]) + [0x81, 0, 0, 10] + Array(inner[12...]))
    for type: [UInt8] in [[0x88, 0xa8], [0x91, 0]] {
      try guests[0].send(Array(inner[..<12]) + type + Array(inner[14...]))
    }
    #expect(network.counter("wrongNetwork", port: 2) == 3 && network.counter("wrongNetwork", port: 0) == 4)
    // The transparent port's tags are part of its frames.
    try guests[4].send(frame(to: broadcast, from: guests[4].mac, 100, tag: 10))
    // It was heard in network 30, not in 10: the trunk that is in 10 got a copy. The transparent port's reached nobody.
    #expect((0..<5).map { network.counter("delivered", port: $0) } == [0, 1, 2, 2, 0])
  }

  @Test("A port with an address sends under no other, and is found without a word from it")
  func address() throws {
    var port = PortConfiguration()
    port.mac = MACAddress("02:00:00:00:01:01")
    let network = try TestSwitch([PortConfiguration(), port, PortConfiguration()])
    let guests = try (0..<3).map { try network.guest($0) }
    try guests[0].send(frame(to: guests[1].mac, from: guests[0].mac))
    _ = try guests[1].next()
    #expect(network.counter("floods", port: 0) == 0 && network.counter("delivered", port: 2) == 0)
    #expect(Array(guests[1].driver.config[..<6]) == guests[1].mac)
    try guests[1].send(frame(to: broadcast, from: guests[0].mac))
    #expect(network.counter("spoofed", port: 1) == 1)
    // Nor can another claim it.
    try guests[2].send(frame(to: broadcast, from: guests[1].mac))
    _ = try guests[1].next()
    #expect(network.counter("notLearned", port: 2) == 1)
    try guests[0].send(frame(to: guests[1].mac, from: guests[0].mac))
    _ = try guests[1].next()
    #expect(network.counter("delivered", port: 2) == 0)
  }

  @Test("A port's flood limit is exact, and does not touch what goes to one port")
  func floods() throws {
    var port = PortConfiguration()
    // So slow that no second token comes while this runs.
    port.floods = Rate(perSecond: 1, burst: 3)
    let network = try TestSwitch([port, PortConfiguration()])
    let a = try network.guest(0)
    let b = try network.guest(1)
    try b.send(frame(to: broadcast, from: b.mac))
    _ = try a.next()
    for _ in 0..<200 { try a.send(frame(to: b.mac, from: a.mac)) }
    #expect(network.counter("frames", port: 0) == 200)
    let start = ContinuousClock.now
    for _ in 0..<50 { try a.send(frame(to: broadcast, from: a.mac)) }
    let seconds = UInt64((ContinuousClock.now - start) / .seconds(1)) + 1
    #expect((3...3 + seconds).contains(network.counter("floods", port: 0)))
    #expect(network.counter("floods", port: 0) + network.counter("floodsRefused", port: 0) == 50)
  }

  @Test("An address that is not heard of any more is forgotten")
  func ageing() throws {
    let network = try TestSwitch([PortConfiguration](repeating: PortConfiguration(), count: 3), ageing: 1)
    let guests = try (0..<3).map { try network.guest($0) }
    try guests[1].send(frame(to: broadcast, from: guests[1].mac))
    _ = try guests[0].next()
    _ = try guests[2].next()
    // Frames to it are flooded once two seconds of the clock have passed, and not before one has.
    let deadline = ContinuousClock.now + .seconds(60)
    while network.counter("floods", port: 0) == 0, ContinuousClock.now < deadline {
      try guests[0].send(frame(to: guests[1].mac, from: guests[0].mac))
      _ = try guests[1].next()
    }
    #expect(network.counter("floods", port: 0) == 1)
    #expect(try guests[2].next().frame.count == 60)
  }

  @Test("A guest that has moved here is found at its port by SEND_RARP, without a word from it")
  func announced() throws {
    var fixed = PortConfiguration()
    fixed.mac = MACAddress("02:00:00:00:01:02")
    var access = PortConfiguration()
    access.networks = .access(9)
    let network = try TestSwitch([PortConfiguration(), PortConfiguration(), fixed, access])
    let guests = try (0..<4).map { try network.guest($0) }
    // It was at port 0 before, and is at port 1 now.
    let roamer: [UInt8] = [2, 9, 9, 9, 9, 9]
    try guests[0].send(frame(to: broadcast, from: roamer))
    for index in [1, 2] { _ = try guests[index].next() }
    #expect(guests[1].driver.offeredProtocolFeatures & ProtocolBits.rarp != 0)
    #expect(try guests[1].driver.connection.sendRARP(roamer) == .ok)
    for index in [0, 2] {
      let told = try guests[index].next().frame
      #expect(told.count == 60 && Array(told[..<14]) == broadcast + roamer + [0x80, 0x35])
    }
    try guests[2].send(frame(to: roamer, from: guests[2].mac))
    #expect(try guests[1].next().frame.count == 60)
    #expect(network.counter("floods", port: 2) == 0)
    // Another address than the port's own is nobody's; a group's neither; other networks hear nothing.
    _ = try guests[2].driver.connection.sendRARP(roamer)
    _ = try guests[1].driver.connection.sendRARP(broadcast)
    try guests[0].send(frame(to: roamer, from: guests[0].mac))
    _ = try guests[1].next()
    #expect((0..<4).map { network.counter("delivered", port: $0) } == [1, 3, 2, 0])
  }
}
