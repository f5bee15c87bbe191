// What a guest sends, by operations of the ring: the same frames, in the same order, as by calls.

import DeviceKit
import NetBackend
import Testing
import TestSupport
import VirtQueue

@Suite("A card on a tap, by the ring", .enabled(if: Wire.isPossible))
struct RingIOTests {
  private func card(_ wire: Wire, _ features: FeatureSet = [.version1], size: Int = 64) throws -> Card {
    try Card(.tap(wire.tap), features, size: size) { $0.usesRing = true }
  }

  @Test("Frames go out whole and in order, many at a time; what may not go out goes nowhere")
  func out() throws {
    let wire = try Wire.make()
    let card = try card(wire, size: 256)
    let at = Card.data(card.transmit)
    var heads: [UInt16] = []
    for number: UInt8 in 0..<40 {
      let frame = testFrame(60 + Int(number), number: number)
      let place = at + Int(number) * 2048
      // Every fifth one is cut short.
      let length = number % 5 == 4 ? 20 : 12 + frame.count
      card.transmit.pointer(place).copyMemory(
        from: [UInt8](repeating: 0, count: 12) + frame, byteCount: 12 + frame.count)
      heads.append(card.transmit.add([(place, 12, false), (place + 12, length - 12, false)]))
    }
    card.transmit.sendKick()
    for head in heads { #expect(card.transmit.waitUsed()?.head == head, "in order") }
    for number: UInt8 in 0..<40 where number % 5 != 4 {
      #expect(wire.take() == testFrame(60 + Int(number), number: number))
    }
    #expect(card.counter("malformed") == 8)
    #expect(card.counter("frames") == 32)
  }

  @Test("A frame in more pieces than an operation has room for goes out too, in its turn")
  func pieces() throws {
    let wire = try Wire.make()
    let card = try card(wire, size: 256)
    let frame = testFrame(200)
    for _ in 0..<3 {
      #expect(try card.send([UInt8](repeating: 0, count: 12) + frame, piece: 5) == 0)
      #expect(wire.take() == frame)
      #expect(try card.send(frame: frame) == 0)
      #expect(wire.take() == frame)
    }
  }

  @Test("A queue that stops gives its buffers back, and a tap that is down ends nothing")
  func stops() throws {
    let wire = try Wire.make()
    let card = try card(wire)
    for slot in 0..<5 { card.post(slot, 2000) }
    wire.give(testFrame(60))
    #expect(card.receive.waitUsed()?.length == 72)
    try wire.set(up: false)
    #expect(try card.send(frame: testFrame(60)) == 0)
    #expect(card.counter("linkDown") == 1)
    #expect(card.host.stop([0, 1]) == [1, 1])
  }
}
