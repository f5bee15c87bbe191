// A card on a real tap, in a network namespace that each test makes.

import CLinux
import DeviceKit
import Foundation
import HostIO
import NetBackend
import Testing
import TestSupport
import VirtQueue

@Suite("A card on a tap", .enabled(if: Wire.isPossible))
struct TapTests {
  @Test("Frames go out and come in, whole")
  func bothWays() throws {
    let wire = try Wire.make()
    let card = try Card(.tap(wire.tap))
    let out = testFrame(1514)
    #expect(try card.send(frame: out) == 0)
    #expect(wire.take() == out)
    card.post(0, 2000)
    let back = testFrame(1514, number: 3)
    wire.give(back)
    #expect(card.receive.waitUsed()?.length == 1526)
    #expect(card.received(0, 1526) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0] + back)
  }

  @Test("Whether a tap's send buffer is bounded can be told")
  func sendBuffer() throws {
    let wire = try Wire.make()
    #expect(wire.tap.takesAll)
    let answer = Reply<Bool>()
    let thread = try PinnedThread(name: "namespace", cpus: []) {
      guard clx_unshare_network() == 0 else { return answer.fulfil(false) }
      let raw = open("/dev/net/tun", O_RDWR | O_CLOEXEC)
      var bytes: Int32 = 100_000
      let flags = UInt16(CLX_IFF_TAP | CLX_IFF_NO_PI | CLX_IFF_VNET_HDR)
      // TUNSETSNDBUF
      let isMade =
        clx_tap_attach(raw, "narrow", flags) == 0
        && clx_ioctl_pointer(raw, 0x4004_54d4, &bytes) == 0
      answer.fulfil(isMade && (try? Tap.adopt([raw]))?.takesAll == false)
    }
    thread.join()
    #expect(answer.wait())
  }

  @Test("A legacy driver's shorter header is agreed with the tap")
  func legacy() throws {
    let wire = try Wire.make()
    let card = try Card(.tap(wire.tap), [])
    let out = testFrame(100)
    try card.send(frame: out)
    #expect(wire.take() == out)
    card.post(0, 2000)
    wire.give(out)
    #expect(card.receive.waitUsed()?.length == 110)
    #expect(card.received(0, 110) == [UInt8](repeating: 0, count: 10) + out)
  }

  @Test(
    "NT18 a tap whose header has another size is told ours before a frame passes, and asked whether it took it"
  )
  func headerSize() throws {
    for size: Int32 in [10, 20, 64] {
      let wire = try Wire.make()
      #expect(clx_tap_set_header_size(wire.tap.descriptors[0], size) == 0)
      let card = try Card(.tap(wire.tap))
      var now: Int32 = 0
      #expect(clx_tap_header_size(wire.tap.descriptors[0], &now) == 0 && now == 12)
      let frame = testFrame(100)
      try card.send(frame: frame)
      #expect(wire.take() == frame)
      card.post(0, 2000)
      wire.give(frame)
      #expect(card.receive.waitUsed()?.length == 112)
      #expect(Array(card.received(0, 112)[12...]) == frame)
    }
  }

  @Test("NT15 frames that no buffer waits for are lost in the tap: nothing spins, and transmit goes on")
  func flood() throws {
    let wire = try Wire.make()
    let card = try Card(.tap(wire.tap))
    for number in 0..<3000 { wire.give(testFrame(60, number: UInt8(truncatingIfNeeded: number))) }
    for _ in 0..<20 { try card.send(frame: testFrame(60)) }
    #expect(card.host.counters[0].value(.chains) == 0)
    for slot in 0..<40 { card.post(slot, 100) }
    for slot in 0..<40 {
      #expect(card.receive.waitUsed()?.length == 72)
      #expect(
        Array(card.received(slot, 72)[12...]) == testFrame(60, number: UInt8(slot)),
        "in order, from the first")
    }
  }

  @Test("NT13 a tap that is down takes nothing and ends nothing; one that is up again works")
  func down() throws {
    let wire = try Wire.make()
    let card = try Card(.tap(wire.tap))
    try wire.set(up: false)
    for _ in 0..<5 { #expect(try card.send(frame: testFrame(60)) == 0) }
    #expect(card.counter("linkDown") == 5)
    try wire.set(up: true)
    let out = testFrame(61)
    try card.send(frame: out)
    #expect(wire.take() == out)
  }

  @Test("NT14 the link goes and comes 300 times under traffic, and works in the end")
  func flapping() throws {
    let wire = try Wire.make()
    let card = try Card(.tap(wire.tap))
    for round in 0..<300 {
      try wire.set(up: round % 2 == 1)
      _ = card.device.refreshLink()
      try card.send(frame: testFrame(60))
    }
    let out = testFrame(61)
    try card.send(frame: out)
    while let frame = wire.take() { if frame.count == 61 { break } }
    card.post(0, 2000)
    wire.give(out)
    #expect(card.receive.waitUsed()?.length == 73)
  }

  @Test("The guest is told of the link, and to say where it is when the link comes back")
  func link() throws {
    let wire = try Wire.make()
    let card = try Card(
      .tap(wire.tap), [.version1, NetFeature.status, NetFeature.guestAnnounce, NetFeature.controlQueue])
    #expect(card.status == 1)
    try wire.set(up: false)
    #expect(card.device.refreshLink())
    #expect(card.status == 0)
    try wire.set(up: true)
    #expect(card.device.refreshLink())
    #expect(!card.device.refreshLink())
    #expect(card.status == 3)
    #expect(try card.command([3, 0]) == 0)
    #expect(card.status == 1)
  }

  @Test("The guest's place is announced with the frame that switches know")
  func announcement() throws {
    let wire = try Wire.make()
    let card = try Card(.tap(wire.tap))
    card.device.announce(0x0605_0403_0252)
    let frame = try #require(wire.take())
    #expect(frame.prefix(14) == [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 2, 3, 4, 5, 6, 0x80, 0x35])
    #expect(frame.count >= 60)
  }

  @Test("A limit above the tap's MTU is refused, another one told to drivers")
  func packetLimit() throws {
    let wire = try Wire.make()
    let card = try Card(.tap(wire.tap), starts: false)
    for bytes: UInt16 in [0, 67, 1501, 65535] { #expect(!card.device.setPacketLimit(bytes)) }
    #expect(card.device.setPacketLimit(1400))
    var config = ConfigWriter()
    card.device.readConfig(&config)
    #expect(config.bytes[10...11] == [0x78, 5])
  }

  @Test("NT17 with an MTU negotiated, longer frames are dropped in both directions")
  func mtu() throws {
    let wire = try Wire.make()
    let card = try Card(.tap(wire.tap), [.version1, NetFeature.mergeable, NetFeature.mtu], starts: false)
    #expect(card.device.setPacketLimit(1000))
    let features: FeatureSet = [.version1, NetFeature.mergeable, NetFeature.mtu]
    try card.start(0, card.receive, features)
    try card.start(1, card.transmit, features)
    try card.send(frame: testFrame(1019))
    #expect(card.counter("badHeader") == 1)
    card.post(0, 2000)
    wire.give(testFrame(1019))
    #expect(card.wait(for: "oversize", 1))
    let frame = testFrame(1018)
    wire.give(frame)
    #expect(card.receive.waitUsed()?.length == 1030)
    try card.send(frame: frame)
    #expect(wire.take() == frame)
  }

  @Test("A capture holds what went through, as tcpdump reads it")
  func capture() throws {
    let path = NSTemporaryDirectory() + "capture-" + UUID().uuidString
    defer { try? FileManager.default.removeItem(atPath: path) }
    let wire = try Wire.make()
    let card = try Card(.tap(wire.tap)) { $0.capture = try? PacketCapture(path: path) }
    let out = testFrame(99)
    try card.send(frame: out)
    #expect(wire.take() == out)
    let bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
    #expect(bytes.prefix(4) == [0x4d, 0x3c, 0xb2, 0xa1])
    let places = bytes.indices.filter { bytes[$0...].starts(with: out) }
    #expect(places.count == 1)
    let at = try #require(places.first)
    #expect(bytes[(at - 8)..<at] == [99, 0, 0, 0, 99, 0, 0, 0])
  }

  @Test("A tap that was made is gone with its owner, one that is in use is no other's")
  func exclusive() throws {
    let wire = try Wire.make()
    #expect(wire.tap.queueCount == 1)
    #expect(wire.tap.name == "wire0")
    #expect(throws: TapError.badName("a-name-that-is-too-long")) {
      _ = try Tap.open(name: "a-name-that-is-too-long", queues: 1, create: false)
    }
    #expect(throws: TapError.noSuchInterface("vs-nothing0")) {
      _ = try Tap.open(name: "vs-nothing0", queues: 1, create: false)
    }
    #expect(throws: TapError.notATap("lo")) { _ = try Tap.open(name: "lo", queues: 1, create: false) }
  }

  @Test("Several pairs take a queue of the tap each")
  func pairs() throws {
    let wire = try Wire.make(queues: 3)
    #expect(wire.tap.isMultiQueue)
    let features: FeatureSet = [.version1, NetFeature.mergeable, NetFeature.multiQueue]
    let card = try Card(.tap(wire.tap), features) { $0.pairs = 3 }
    let second = try TinyQueue()
    try card.start(3, second, features)
    let out = testFrame(80)
    let at = Card.data(second)
    second.pointer(at).copyMemory(from: [UInt8](repeating: 0, count: 12) + out, byteCount: 92)
    second.add([(at, 92, false)])
    second.sendKick()
    #expect(second.waitUsed()?.length == 0)
    #expect(wire.take() == out)
  }
}

extension Card {
  /// The status field of the configuration space.
  var status: Int {
    var config = ConfigWriter()
    device.readConfig(&config)
    return Int(config.bytes[6]) | Int(config.bytes[7]) << 8
  }
}
