// What a driver asks by its control queue to be given, and what it then gets.

import DeviceKit
import NetBackend
import Testing
import TestSupport
import VirtQueue

@Suite("What a driver wants to receive")
struct FilterTests {
  private static let features: FeatureSet = [
    .version1, NetFeature.mergeable, NetFeature.controlQueue, NetFeature.controlReceive,
    NetFeature.controlReceiveExtra, NetFeature.controlVLAN, NetFeature.controlMAC,
  ]
  private static let own: [UInt8] = [0x52, 0x54, 0, 0, 0, 1]
  private static let friend: [UInt8] = [0x52, 0x54, 0, 0, 0, 2]
  private static let group: [UInt8] = [1, 0, 0x5e, 0, 0, 1]
  private static let otherGroup: [UInt8] = [0x33, 0x33, 0, 0, 0, 1]
  private static let everybody = [UInt8](repeating: 0xff, count: 6)
  private static let destinations = [own, friend, group, otherGroup, everybody]

  private enum Rule {
    static let promiscuous: UInt8 = 0
    static let allMulticast: UInt8 = 1
    static let allUnicast: UInt8 = 2
    static let noMulticast: UInt8 = 3
    static let noUnicast: UInt8 = 4
    static let noBroadcast: UInt8 = 5
  }

  private func card(_ features: FeatureSet = features) throws -> Card {
    let card = try Card(.loop, features, size: 256)
    if features.contains(NetFeature.controlMAC) { try order(card, [1, 1] + Self.own) }
    return card
  }

  private func order(_ card: Card, _ bytes: [UInt8], _ answer: UInt8 = 0) throws {
    #expect(try card.command(bytes) == answer, "\(bytes.prefix(10))")
  }

  private func set(_ card: Card, _ rule: UInt8, _ on: Bool) throws { try order(card, [0, rule, on ? 1 : 0]) }

  private static func tables(_ unicast: [[UInt8]], _ multicast: [[UInt8]]) -> [UInt8] {
    [1, 0]
      + [unicast, multicast].flatMap { table in
        (0..<4).map { UInt8(truncatingIfNeeded: table.count >> (8 * $0)) } + table.flatMap { $0 }
      }
  }

  /// Whether a frame that the card gives itself reaches the guest, which has buffers for it.
  private func passes(_ card: Card, _ frame: [UInt8]) throws -> Bool {
    let (frames, filtered) = (card.counter("frames"), card.counter("filtered"))
    try card.send(frame: frame)
    let deadline = ContinuousClock.now + .seconds(20)
    while card.counter("frames") + card.counter("filtered") < frames + filtered + 2 {
      guard ContinuousClock.now < deadline else {
        Issue.record("a frame was neither given nor filtered")
        return false
      }
    }
    guard card.counter("filtered") == filtered else { return false }
    #expect(card.receive.waitUsed()?.length == UInt32(12 + frame.count))
    return true
  }

  private func frame(to destination: [UInt8], tag: UInt16? = nil) -> [UInt8] {
    let tail = testFrame(60).dropFirst(6)
    guard let tag else { return destination + tail }
    return destination + tail.prefix(6) + [0x81, 0, UInt8(tag >> 8), UInt8(tag & 255)] + tail.dropFirst(6)
  }

  private func expect(
    _ card: Card, own: Bool, friend: Bool, group: Bool, otherGroup: Bool, everybody: Bool,
    sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let expected = [own, friend, group, otherGroup, everybody]
    let passed = try Self.destinations.map { try passes(card, frame(to: $0)) }
    #expect(passed == expected, sourceLocation: sourceLocation)
  }

  @Test("Everything, until the driver has said something; then what its modes and tables say")
  func modes() throws {
    let card = try card()
    for _ in 0..<120 { card.receive.add([(Card.data(card.receive), 2000, true)]) }
    try expect(card, own: true, friend: true, group: true, otherGroup: true, everybody: true)
    try set(card, Rule.promiscuous, false)
    try expect(card, own: true, friend: false, group: false, otherGroup: false, everybody: true)
    try set(card, Rule.allMulticast, true)
    try expect(card, own: true, friend: false, group: true, otherGroup: true, everybody: true)
    try set(card, Rule.noMulticast, true)
    try expect(card, own: true, friend: false, group: false, otherGroup: false, everybody: true)
    try set(card, Rule.noMulticast, false)
    try set(card, Rule.allMulticast, false)
    try set(card, Rule.allUnicast, true)
    try expect(card, own: true, friend: true, group: false, otherGroup: false, everybody: true)
    try set(card, Rule.noUnicast, true)
    try expect(card, own: false, friend: false, group: false, otherGroup: false, everybody: true)
    try set(card, Rule.noBroadcast, true)
    try expect(card, own: false, friend: false, group: false, otherGroup: false, everybody: false)
    try set(card, Rule.promiscuous, true)
    try expect(card, own: true, friend: true, group: true, otherGroup: true, everybody: true)
  }

  @Test(
    "NT11 tables of addresses: what is in them comes; one that is too long for us brings all, a wrong one changes nothing"
  )
  func tables() throws {
    let card = try card()
    for _ in 0..<120 { card.receive.add([(Card.data(card.receive), 2000, true)]) }
    try set(card, Rule.promiscuous, false)
    try order(card, Self.tables([Self.friend], [Self.group]))
    try expect(card, own: true, friend: true, group: true, otherGroup: false, everybody: true)
    let good = Self.tables([Self.own], [Self.otherGroup])
    let wrong: [[UInt8]] = [
      Array(good.dropLast()), good + [0], Array(good.prefix(12)), [1, 0], [1, 0, 0, 0, 0, 0],
      [1, 0, 0xff, 0xff, 0xff, 0xff] + good.dropFirst(6), [1, 0, 0, 0, 0, 0, 0xab, 0xaa, 0xaa, 0x2a],
    ]
    for bytes in wrong { try order(card, bytes, 1) }
    try expect(card, own: true, friend: true, group: true, otherGroup: false, everybody: true)
    let many = (0..<64).map { [2, 0, 0, 0, 1, UInt8($0)] as [UInt8] }
    try order(card, Self.tables(many, [Self.otherGroup]))
    try expect(card, own: true, friend: false, group: false, otherGroup: true, everybody: true)
    #expect(try passes(card, frame(to: many[63])))
    try order(card, Self.tables(many + [Self.own], []))
    try expect(card, own: true, friend: true, group: false, otherGroup: false, everybody: true)
    let groups = (0..<600).map { [1, 0, 0, 0, UInt8($0 / 256), UInt8($0 % 256)] as [UInt8] }
    try order(card, Self.tables([], groups))
    try expect(card, own: true, friend: false, group: true, otherGroup: true, everybody: true)
    try order(card, Self.tables([], []))
    try expect(card, own: true, friend: false, group: false, otherGroup: false, everybody: true)
  }

  @Test("NT12 networks: tags that were asked for, and none past 4095")
  func networks() throws {
    let card = try card()
    for _ in 0..<60 { card.receive.add([(Card.data(card.receive), 2000, true)]) }
    try set(card, Rule.promiscuous, false)
    let tags: [UInt16] = [0, 1, 5, 63, 64, 4095]
    for tag in tags { #expect(try !passes(card, frame(to: Self.own, tag: tag)), "\(tag)") }
    for tag in tags {
      try order(card, [2, 0, UInt8(tag & 255), UInt8(tag >> 8)])
      #expect(try passes(card, frame(to: Self.own, tag: tag | 0xe000)), "\(tag)")
      #expect(try !passes(card, frame(to: Self.friend, tag: tag)))
      try order(card, [2, 1, UInt8(tag & 255), UInt8(tag >> 8)])
      #expect(try !passes(card, frame(to: Self.own, tag: tag)), "\(tag)")
    }
    for bytes: [UInt8] in [
      [2, 0, 0, 0x10], [2, 0, 0xff, 0xff], [2, 2, 1, 0], [2, 0, 1], [0, 6, 1], [0, 0, 1, 0],
    ] {
      try order(card, bytes, 1)
    }
    #expect(try passes(card, frame(to: Self.own)))
  }

  @Test("What was not negotiated is refused, and then filters nothing")
  func negotiated() throws {
    let card = try card([.version1, NetFeature.mergeable, NetFeature.controlQueue, NetFeature.controlReceive])
    for _ in 0..<60 { card.receive.add([(Card.data(card.receive), 2000, true)]) }
    for bytes: [UInt8] in [
      [0, Rule.allUnicast, 1], [0, Rule.noBroadcast, 1], [2, 0, 5, 0], [1, 1] + Self.own,
    ] {
      try order(card, bytes, 1)
    }
    try set(card, Rule.promiscuous, false)
    // Its address was never told: every card's may be its own. Nor were networks.
    try expect(card, own: true, friend: true, group: false, otherGroup: false, everybody: true)
    #expect(try passes(card, frame(to: Self.own, tag: 7)))
  }

  @Test("The address that the operator fixed is the card's own")
  func fixed() throws {
    let features: FeatureSet = [
      .version1, NetFeature.mergeable, NetFeature.controlQueue, NetFeature.controlReceive,
    ]
    let card = try Card(.loop, features) { $0.mac = MACAddress("02:00:00:00:00:09") }
    for _ in 0..<10 { card.receive.add([(Card.data(card.receive), 2000, true)]) }
    try set(card, Rule.promiscuous, false)
    #expect(try passes(card, frame(to: [2, 0, 0, 0, 0, 9])))
    #expect(try !passes(card, frame(to: Self.own)))
  }

  @Test("A new driver begins with everything")
  func reset() throws {
    let card = try card()
    for _ in 0..<20 { card.receive.add([(Card.data(card.receive), 2000, true)]) }
    try set(card, Rule.promiscuous, false)
    #expect(try !passes(card, frame(to: Self.group)))
    card.device.reset()
    #expect(try passes(card, frame(to: Self.group)))
  }
}
