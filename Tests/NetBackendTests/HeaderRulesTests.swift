// Which headers a guest may send, and what its choice of features makes of a tap.

import DeviceKit
import NetBackend
import Testing

private let everything = NetFeature.send.union(NetFeature.hostUSO)

private func rules(_ features: FeatureSet = everything, limit: Int = 1518) -> HeaderRules {
  HeaderRules(features: features, frameLimit: limit)
}

/// A header that asks for a checksum, and for cutting where `type` is not 0.
private func header(
  type: UInt8 = 0, size: UInt16 = 1448, start: UInt16 = 34, offset: UInt16 = 16, length: UInt16 = 54,
  flags: NetHeader.Flags = .needsChecksum
) -> NetHeader {
  var header = NetHeader()
  header.flags = flags
  header.segmentationType = type
  header.segmentSize = size
  header.checksumStart = start
  header.checksumOffset = offset
  header.headerLength = length
  return header
}

@Suite("Headers that guests send")
struct HeaderRulesTests {
  @Test("What Linux sends is accepted")
  func plain() {
    #expect(rules().fault(in: NetHeader(), frameLength: 60) == nil)
    #expect(rules([]).fault(in: NetHeader(), frameLength: 14) == nil)
    #expect(rules().fault(in: header(), frameLength: 1514) == nil)
    for type: UInt8 in [1, 3, 4, 5, 0x81, 0x84] {
      #expect(rules().fault(in: header(type: type), frameLength: 65535) == nil, "type \(type)")
    }
  }

  @Test("NT04 a kind of segmentation that does not exist, or was not negotiated")
  func segmentation() {
    for type: UInt8 in [2, 6, 7, 0x20, 0x40, 0x7f, 0x80, 0x83, 0x85, 0xff] {
      #expect(rules().fault(in: header(type: type), frameLength: 3000) == .segmentation, "type \(type)")
    }
    let kinds: [(UInt8, FeatureSet)] = [
      (1, NetFeature.hostTSO4), (4, NetFeature.hostTSO6), (3, NetFeature.hostUFO), (5, NetFeature.hostUSO),
    ]
    for (type, feature) in kinds {
      let without = rules(everything.subtracting(feature))
      #expect(without.fault(in: header(type: type), frameLength: 3000) == .segmentation)
    }
    let noECN = rules(everything.subtracting(NetFeature.hostECN))
    #expect(noECN.fault(in: header(type: 0x81), frameLength: 3000) == .segmentation)
  }

  @Test("NT04 segments of size 0, without a checksum, with a header longer than the frame")
  func sizes() {
    #expect(rules().fault(in: header(type: 1, size: 0), frameLength: 3000) == .segmentSize)
    #expect(rules().fault(in: header(type: 1, flags: []), frameLength: 3000) == .segmentWithoutChecksum)
    #expect(rules().fault(in: header(type: 1, length: 0), frameLength: 3000) == nil)
    #expect(rules().fault(in: header(type: 1, length: 65535), frameLength: 3000) == .headerLength)
    #expect(rules().fault(in: header(length: 61), frameLength: 60) == .headerLength)
  }

  @Test("NT05 a checksum that would be written past the frame, or was not negotiated")
  func checksum() {
    #expect(rules().fault(in: header(start: 42, offset: 16, length: 0), frameLength: 60) == nil)
    #expect(rules().fault(in: header(start: 43, offset: 16), frameLength: 60) == .checksumOutside)
    #expect(rules().fault(in: header(start: 59, offset: 0), frameLength: 60) == .checksumOutside)
    for (start, offset) in [(UInt16.max, UInt16(0)), (0, .max), (.max, .max), (0xffff, 1)] {
      #expect(rules().fault(in: header(start: start, offset: offset), frameLength: 60) == .checksumOutside)
    }
    #expect(rules([]).fault(in: header(), frameLength: 1514) == .checksumNotNegotiated)
    // Without the flag the fields say nothing.
    #expect(rules([]).fault(in: header(start: .max, offset: .max, flags: []), frameLength: 1514) == nil)
  }

  @Test("NT06 marks of the other direction are no fault")
  func ignored() {
    var marked = header(flags: [.needsChecksum, .dataValid])
    marked.bufferCount = 7
    #expect(rules().fault(in: marked, frameLength: 1514) == nil)
    #expect(rules([]).fault(in: header(flags: .dataValid), frameLength: 1514) == nil)
    #expect(rules([]).fault(in: header(flags: NetHeader.Flags(rawValue: 0xfe)), frameLength: 60) == nil)
  }

  @Test("NT16, NT17 frames that are too short, too long, or longer than the MTU allows")
  func lengths() {
    for length in 0..<14 { #expect(rules().fault(in: NetHeader(), frameLength: length) == .shortFrame) }
    #expect(rules().fault(in: NetHeader(), frameLength: 1518) == nil)
    #expect(rules().fault(in: NetHeader(), frameLength: 1519) == .longFrame)
    #expect(rules().fault(in: header(type: 1), frameLength: NetTerms.longestFrame) == nil)
    #expect(rules().fault(in: header(type: 1), frameLength: NetTerms.longestFrame + 1) == .longFrame)
    #expect(rules().fault(in: header(type: 1), frameLength: .max) == .longFrame)
  }

  @Test("No header whatever makes the rules trap")
  func anything() {
    var generator = SystemRandomNumberGenerator()
    for _ in 0..<100_000 {
      let header = NetHeader(low: generator.next(), high: UInt32(truncatingIfNeeded: generator.next()))
      let features = FeatureSet(rawValue: generator.next())
      _ = rules(features).fault(in: header, frameLength: Int.random(in: 0...100_000, using: &generator))
    }
  }
}

@Suite("What a driver's choice means")
struct NetTermsTests {
  @Test("The tap is told exactly what was negotiated, in sets that the kernel takes")
  func offloads() {
    let cases: [(FeatureSet, UInt32)] = [
      ([], 0), (NetFeature.guestChecksum, 1), (NetFeature.guestTSO4, 0),
      ([NetFeature.guestChecksum, NetFeature.guestTSO4], 3),
      ([NetFeature.guestChecksum, NetFeature.guestTSO6], 5),
      ([NetFeature.guestChecksum, NetFeature.guestECN], 1),
      ([NetFeature.guestChecksum, NetFeature.guestTSO6, NetFeature.guestECN], 13),
      ([NetFeature.guestChecksum, NetFeature.guestUFO], 0x11),
      ([NetFeature.guestChecksum, NetFeature.guestUSO4], 1),
      ([NetFeature.guestChecksum, NetFeature.guestUSO6], 1),
      ([NetFeature.guestChecksum, NetFeature.guestUSO4, NetFeature.guestUSO6], 0x61),
      (NetFeature.receive, 0x1f), (NetFeature.receive.union(NetFeature.udpSegmentation), 0x7f),
    ]
    for (features, offload) in cases { #expect(NetTerms.tapOffload(features) == offload, "\(features)") }
  }

  @Test("The header's size, the MTU and what may be undone follow the features")
  func terms() {
    let legacy = NetTerms(features: [], mtu: 1500)
    #expect(legacy.layout.byteCount == 10)
    #expect(!legacy.mergeable && !legacy.receivesSegments && !legacy.receivesPartialChecksums)
    #expect(legacy.frameLimit == NetTerms.longestFrame)
    let modern = NetTerms(
      features: [.version1, NetFeature.mergeable, NetFeature.mtu, NetFeature.guestChecksum], mtu: 9000)
    #expect(modern.layout.byteCount == 12)
    #expect(modern.mergeable && modern.receivesPartialChecksums && !modern.receivesSegments)
    #expect(modern.frameLimit == 9018)
  }

  @Test("Addresses are read and written as people write them")
  func addresses() throws {
    let address = try #require(MACAddress("52:54:00:aB:cd:0f"))
    #expect(address.bytes == [0x52, 0x54, 0, 0xab, 0xcd, 0x0f])
    #expect(address.description == "52:54:00:ab:cd:0f")
    #expect(!address.isMulticast)
    #expect(try #require(MACAddress("ff:ff:ff:ff:ff:ff")).isMulticast)
    for text in [
      "", "52:54:00:ab:cd", "52:54:00:ab:cd:0f:1", "5:54:00:ab:cd:0f", "g2:54:00:ab:cd:0f",
      "+2:54:00:ab:cd:0f",
    ] {
      #expect(MACAddress(text) == nil, "\(text)")
    }
  }
}
