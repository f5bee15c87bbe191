// What of a card moves with its guest, and what no card can have been.

import DeviceKit
import NetBackend
import Testing

@Suite("A card's state")
struct StateTests {
  private static let features: FeatureSet = [
    .version1, NetFeature.controlQueue, NetFeature.controlReceive, NetFeature.controlReceiveExtra,
    NetFeature.controlVLAN, NetFeature.controlMAC, NetFeature.multiQueue,
  ]

  private func card(_ features: FeatureSet = features, mac: MACAddress? = nil) -> NetDevice {
    var options = NetDevice.Options()
    options.pairs = 4
    options.mac = mac
    let card = NetDevice(place: .loop, options: options)
    card.negotiated(features)
    return card
  }

  /// A state with a value of its own in each field.
  private func state(_ change: (inout [UInt16: [UInt8]]) -> Void = { _ in }) -> DeviceState {
    var networks = [UInt8](repeating: 0, count: 512)
    networks[3] = 0x10
    var fields: [UInt16: [UInt8]] = [
      1: [0, 0, 0, 0, 0, 0, 0, 0], 2: [0x52, 0x54, 0, 0, 0, 1, 0, 0], 3: [3, 0], 4: [0b10010],
      5: [0, 0x52, 0x54, 0, 0, 0, 2], 6: [1], 7: networks,
    ]
    change(&fields)
    var state = DeviceState()
    for (number, bytes) in fields {
      let isSet = state.set(number, bytes: bytes)
      #expect(isSet)
    }
    return state
  }

  @Test("A card is what another was, before its driver has chosen its features and after")
  func goesOn() throws {
    let late = card([])
    try late.loadState(state())
    late.negotiated(Self.features)
    try late.loadState(state())
    let early = card()
    try early.loadState(state())
    for card in [late, early] {
      #expect(card.saveState() == state())
      var config = ConfigWriter()
      card.readConfig(&config)
      #expect(Array(config.bytes[..<6]) == [0x52, 0x54, 0, 0, 0, 1])
    }
  }

  @Test("What a driver has not negotiated here is as for a new one")
  func lessFeatures() throws {
    let card = card([.version1])
    let fresh = card.saveState()
    try card.loadState(state())
    let now = card.saveState()
    for number: UInt16 in [1, 4, 5, 6, 7] { #expect(now.fields[number] == fresh.fields[number]) }
  }

  @Test(
    "A field that is missing, or that no card has, is refused, and changes nothing",
    arguments: [
      (1, nil), (1, [0]), (1, [UInt8](repeating: 0xff, count: 8)), (2, nil),
      (2, [1, 0, 0x5e, 0, 0, 1, 0, 0]),
      (2, [0x52, 0x54, 0, 0, 0, 1, 1, 0]), (3, nil), (3, [0, 0]), (3, [5, 0]), (3, [0xff, 0xff]), (4, nil),
      (4, [64]),
      (5, nil), (5, [0, 1]), (5, [2]), (5, [1, 1, 2, 3, 4, 5, 6]), (6, [UInt8](repeating: 0, count: 391)),
      (7, [0]), (7, [UInt8](repeating: 0, count: 504)),
    ] as [(UInt16, [UInt8]?)])
  func refused(field: UInt16, bytes: [UInt8]?) throws {
    let card = card()
    let before = card.saveState()
    #expect(throws: DeviceError.self) { try card.loadState(state { $0[field] = bytes }) }
    #expect(card.saveState() == before)
  }

  @Test("A card with an address of its own takes no guest with another")
  func otherAddress() throws {
    let other = card(mac: MACAddress("52:54:00:00:00:09"))
    #expect(throws: DeviceError.self) { try other.loadState(state()) }
    try card(mac: MACAddress("52:54:00:00:00:01")).loadState(state())
  }
}
