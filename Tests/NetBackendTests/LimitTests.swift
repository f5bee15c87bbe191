// A card at its limits: frames wait for their turn in the guest or in the tap, none is lost by it, and the rate is the rate.

import CLinux
import DeviceKit
import Foundation
import HostIO
import NetBackend
import Testing
import TestSupport
import VirtQueue

@Suite("A card's limits")
struct LimitTests {
  /// Makes `count` frames of 100 bytes available and kicks once.
  private func submit(_ count: Int, _ card: Card) {
    for number in 0..<count {
      let place = Card.data(card.transmit) + 2048 * number
      let bytes = [UInt8](repeating: 0, count: card.headerBytes) + testFrame(100, number: UInt8(number))
      card.transmit.pointer(place).copyMemory(from: bytes, byteCount: bytes.count)
      card.transmit.add([(place, bytes.count, false)])
    }
    card.transmit.sendKick()
  }

  private func limit(_ card: Card, _ requests: RateLimits.Measure, bytes: RateLimits.Measure = .init()) {
    card.device.limiter.set(RateLimits(requests: requests, bytes: bytes), at: Monotonic.now)
  }

  @Test("What the guest sends beyond the burst waits its turn, in order, and none of it is lost")
  func sends() throws {
    let card = try Card(.loop)
    limit(card, .init(write: Rate(perSecond: 50, burst: 4)))
    for slot in 0..<20 { card.post(slot, 200) }
    let start = ContinuousClock.now
    submit(20, card)
    for number in 0..<20 {
      #expect(card.receive.waitUsed()?.length == 112)
      #expect(Array(card.received(number, 112)[12...]) == testFrame(100, number: UInt8(number)))
    }
    let took = ContinuousClock.now - start
    // Sixteen of them at the rate's pace; the clock may only be later.
    #expect(took >= .milliseconds(16 * 20 - 1))
    #expect((1...16).contains(card.counter("throttles")))
    #expect(card.counter("throttledNanoseconds") > 100_000_000)
    #expect(card.counter("frames") == 40 && card.counter("noRoom") == 0)
  }

  @Test("What the guest receives waits where it comes from, in order, and none of it is lost")
  func receives() throws {
    let card = try Card(.loop)
    limit(card, .init(), bytes: .init(read: Rate(perSecond: 5000, burst: 400)))
    submit(20, card)
    #expect(card.transmit.waitUsed()?.length == 0)
    for slot in 0..<20 { card.post(slot, 200) }
    let start = ContinuousClock.now
    for number in 0..<20 {
      #expect(card.receive.waitUsed()?.length == 112)
      #expect(Array(card.received(number, 112)[12...]) == testFrame(100, number: UInt8(number)))
    }
    // From the fifth one on.
    #expect(ContinuousClock.now - start >= .milliseconds(14 * 20))
    #expect((1...16).contains(card.counter("throttles")))
    #expect(card.counter("frames") == 40 && card.counter("oversize") == 0)
  }

  @Test("The rate of frames is exact to 5 %, shared by both directions and all queues")
  func exact() throws {
    // Nobody goes before it is due. That nobody is late either can be seen only where this process is not: tried a few times.
    for _ in 0..<5 {
      let (least, spent) = try measureRate(500, burst: 50)
      #expect(spent >= 0.95 * least)
      if spent <= 1.05 * least { return }
    }
    Issue.record("five times more than 5 % too slow")
  }

  /// Moves 500 frames by two receive queues and a transmit queue; the seconds that they have to take, and took.
  private func measureRate(_ rate: Int, burst: Int) throws -> (least: Double, spent: Double) {
    let features: FeatureSet = [.version1, NetFeature.mergeable, NetFeature.multiQueue]
    let card = try Card(.source, features, size: 256) { $0.pairs = 2 }
    let other = try TinyQueue(size: 256)
    limit(card, .init(total: Rate(perSecond: UInt64(rate), burst: UInt64(burst))))
    try card.start(2, other, features)
    for _ in 0..<200 {
      card.receive.add([(Card.data(card.receive), 200, true)])
      other.add([(Card.data(other), 200, true)])
    }
    let start = ContinuousClock.now
    card.receive.sendKick()
    other.sendKick()
    submit(100, card)
    #expect(card.wait(for: "frames", 500))
    return (Double(500 - burst) / Double(rate), (ContinuousClock.now - start) / .seconds(1))
  }

  @Test("Other limits let those go who wait, both ways")
  func change() throws {
    let card = try Card(.loop)
    limit(card, .init(read: Rate(perSecond: 1, burst: 1), write: Rate(perSecond: 1, burst: 2)))
    for slot in 0..<10 { card.post(slot, 200) }
    submit(10, card)
    // Two of them are through, one came back; the others would take eight seconds.
    #expect(card.receive.waitUsed() != nil)
    #expect(card.wait(for: "throttles", 2))
    card.device.limiter.set(RateLimits(), at: Monotonic.now)
    for number in 1..<10 {
      #expect(card.receive.waitUsed()?.length == 112)
      #expect(Array(card.received(number, 112)[12...]) == testFrame(100, number: UInt8(number)))
    }
    for _ in 0..<10 { #expect(card.transmit.waitUsed()?.length == 0) }
    let before = card.counter("throttles")
    try card.send(frame: testFrame(60))
    #expect(card.counter("throttles") == before)
  }

  @Test("A stop waits for no bucket: what was not sent stays in the ring, what was received is delivered")
  func stop() throws {
    let card = try Card(.loop)
    limit(
      card, .init(read: Rate(perSecond: 1, burst: 1), write: Rate(perSecond: 1, burst: 2)),
      bytes: .init(total: Rate(perSecond: 1, burst: 1 << 20)))
    for slot in 0..<5 { card.post(slot, 200) }
    submit(5, card)
    #expect(card.receive.waitUsed() != nil)
    #expect(card.wait(for: "throttles", 2))
    let start = ContinuousClock.now
    let bases = card.host.stop([0, 1])
    #expect(ContinuousClock.now - start < .milliseconds(700))
    // Two frames were sent and the third one waited; the second one had been read for the guest.
    #expect(bases == [2, 2])
    #expect(card.receive.waitUsed()?.length == 112)
  }

  @Test("Frames against the rules cost nothing, and a limit of one direction is none for the other")
  func free() throws {
    let card = try Card(.loop)
    let start = Monotonic.now
    card.device.limiter.set(RateLimits(requests: .init(write: Rate(perSecond: 1, burst: 1))), at: start)
    for _ in 0..<5 { try card.send([UInt8](repeating: 0, count: 20)) }
    #expect(card.counter("malformed") == 5)
    #expect(card.counter("throttles") == 0)
    card.post(0, 200)
    try card.send(frame: testFrame(60))
    #expect(card.receive.waitUsed()?.length == 72)
    // Its only token is gone now.
    #expect(card.device.limiter.reserve(.write, bytes: 0, at: start) > start)
    #expect(card.device.limiter.reserve(.read, bytes: 0, at: start) == start)
  }
}

@Suite("A card's limits, on a tap", .enabled(if: Wire.isPossible))
struct TapLimitTests {
  @Test(
    "Frames that wait for their turn are the tap's to keep; both ways of sending keep order",
    arguments: [false, true])
  func tap(ring: Bool) throws {
    let wire = try Wire.make()
    let card = try Card(.tap(wire.tap)) { $0.usesRing = ring }
    card.device.limiter.set(
      RateLimits(requests: .init(total: Rate(perSecond: 100, burst: 2))), at: Monotonic.now)
    for number in 0..<10 { wire.give(testFrame(100, number: UInt8(number))) }
    for slot in 0..<10 { card.post(slot, 200) }
    for number in 0..<10 {
      #expect(card.receive.waitUsed()?.length == 112)
      #expect(Array(card.received(number, 112)[12...]) == testFrame(100, number: UInt8(number)))
    }
    for number in 0..<10 {
      let place = Card.data(card.transmit) + 2048 * number
      let bytes = [UInt8](repeating: 0, count: 12) + testFrame(100, number: UInt8(number))
      card.transmit.pointer(place).copyMemory(from: bytes, byteCount: bytes.count)
      // Every third one in more pieces than an operation of the ring has room for.
      let piece = number % 3 == 2 ? 4 : bytes.count
      card.transmit.add(
        stride(from: 0, to: bytes.count, by: piece).map { (place + $0, min(piece, bytes.count - $0), false) })
      card.transmit.sendKick()
      #expect(card.transmit.waitUsed()?.length == 0)
    }
    for number in 0..<10 { #expect(wire.take() == testFrame(100, number: UInt8(number))) }
    #expect(card.counter("throttles") > 2)
    #expect(card.counter("frames") == 20)
  }
}
