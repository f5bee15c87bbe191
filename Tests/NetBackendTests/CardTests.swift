// A card without a kernel device: frames out, frames in, and what is neither.

import DeviceKit
import NetBackend
import Testing
import TestSupport
import VirtQueue

@Suite("A card that gives its own frames back")
struct CardTests {
  @Test("NT20 a frame comes back whole; transmit says 0 written, receive header and frame")
  func roundTrip() throws {
    let card = try Card(.loop)
    card.post(0, 2000)
    let frame = testFrame(600)
    #expect(try card.send(frame: frame) == 0)
    let used = try #require(card.receive.waitUsed())
    #expect(used.length == 612)
    #expect(card.received(0, 612) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0] + frame)
    #expect(card.counter("frames") == 2)
    #expect(card.counter("bytes") == 1200)
  }

  @Test("A frame takes as many mergeable buffers as it needs, each full but the last")
  func merges() throws {
    let card = try Card(.loop)
    for slot in 0..<5 { card.post(slot, 300) }
    let frame = testFrame(1000)
    try card.send(frame: frame)
    var bytes: [UInt8] = []
    for (slot, length) in [(0, 300), (1, 300), (2, 300), (3, 112)] {
      let used = try #require(card.receive.waitUsed())
      #expect(Int(used.length) == length)
      bytes += card.received(slot, length)
    }
    #expect(bytes[10] == 4 && bytes[11] == 0)
    #expect(Array(bytes[12...]) == frame)
  }

  @Test("A frame that is longer than all buffers waits for more, and is not cut")
  func parks() throws {
    let card = try Card(.loop)
    card.post(0, 300)
    let frame = testFrame(1000)
    try card.send(frame: frame)
    #expect(card.wait(for: "parked", 1))
    for slot in 1..<4 { card.post(slot, 300) }
    var bytes: [UInt8] = []
    for (slot, length) in [(0, 300), (1, 300), (2, 300), (3, 112)] {
      let used = try #require(card.receive.waitUsed())
      #expect(Int(used.length) == length)
      bytes += card.received(slot, length)
    }
    #expect(Array(bytes[12...]) == frame)
  }

  @Test(
    "NT08 without mergeable buffers a frame that does not fit is dropped, and the buffer kept for the next")
  func doesNotFit() throws {
    let card = try Card(.loop, [.version1])
    card.post(0, 300)
    try card.send(frame: testFrame(1000))
    #expect(card.wait(for: "oversize", 1))
    let frame = testFrame(200)
    try card.send(frame: frame)
    let used = try #require(card.receive.waitUsed())
    #expect(used.length == 212)
    // Where there is one buffer a frame, the number of buffers is 1 (virtio 1.3 §5.1.6.4).
    #expect(card.received(0, 212) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0] + frame)
  }

  @Test(
    "NT08 buffers that cannot hold a header come back empty, in their turn; a header's worth is enough to begin with"
  )
  func tinyBuffers() throws {
    let card = try Card(.loop)
    card.receive.add([(Card.data(card.receive), 1, true)])
    card.receive.add([(Card.data(card.receive), 11, true)])
    card.post(0, 12)
    card.receive.add([(Card.data(card.receive), 0, true)])
    card.post(1, 100)
    try card.send(frame: testFrame(60))
    #expect(card.receive.waitUsed()?.length == 0)
    #expect(card.receive.waitUsed()?.length == 0)
    // The empty one is in the way of a frame in two buffers: it waits for its turn, and the frame for the next one.
    #expect(card.wait(for: "parked", 1) || card.counter("oversize") > 0)
  }

  @Test("NT07 receive buffers with something to read, and frames with something to write, move nothing")
  func wrongDirection() throws {
    let card = try Card(.loop)
    let at = Card.data(card.receive)
    card.receive.add([(at, 100, false), (at + 4096, 2000, true)])
    card.receive.sendKick()
    #expect(card.receive.waitUsed()?.length == 0)
    card.post(0, 2000)
    let out = Card.data(card.transmit)
    card.transmit.add([(out, 100, false), (out + 4096, 100, true)])
    card.transmit.sendKick()
    #expect(card.transmit.waitUsed()?.length == 0)
    #expect(card.counter("malformed") == 2)
    #expect(card.counter("frames") == 0)
    try card.send(frame: testFrame(60))
    #expect(card.receive.waitUsed()?.length == 72)
  }

  @Test("NT01, NT03, NT16 chains that hold no frame are dropped, and the queue goes on", arguments: 0...25)
  func short(length: Int) throws {
    let card = try Card(.loop)
    card.post(0, 2000)
    #expect(try card.send([UInt8](repeating: 0, count: length)) == 0)
    #expect(card.counter("malformed") == 1)
    try card.send(frame: testFrame(60))
    #expect(card.receive.waitUsed()?.length == 72)
  }

  @Test("NT03 a frame longer than any is dropped")
  func long() throws {
    let card = try Card(.loop)
    try card.send([UInt8](repeating: 0, count: 12 + NetTerms.longestFrame + 1))
    #expect(card.counter("malformed") == 1)
    let at = Card.data(card.transmit)
    card.transmit.add((0..<60).map { _ in (at, 3 << 20, false) })
    card.transmit.sendKick()
    #expect(card.transmit.waitUsed()?.length == 0)
    #expect(card.counter("malformed") == 2)
  }

  @Test("NT02 a header in pieces is a header", arguments: 1...13)
  func pieces(piece: Int) throws {
    let card = try Card(.loop, size: 128)
    card.post(0, 2000)
    let frame = testFrame(60)
    try card.send([UInt8](repeating: 0, count: 12) + frame, piece: piece)
    #expect(card.receive.waitUsed()?.length == 72)
    #expect(Array(card.received(0, 72)[12...]) == frame)
  }

  @Test("NT04, NT05 a header against the rules is dropped and counted, and the queue goes on")
  func badHeader() throws {
    let card = try Card(.loop)
    card.post(0, 2000)
    for header: [UInt8] in [
      [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
      [0, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
      try card.send(header + testFrame(60))
    }
    #expect(card.counter("badHeader") == 4)
    #expect(card.counter("frames") == 0)
    // NT06: marks that mean nothing here stay behind.
    let frame = testFrame(60)
    try card.send([2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 9] + frame)
    #expect(card.receive.waitUsed()?.length == 72)
    #expect(card.received(0, 72) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0] + frame)
  }

  @Test("NT05 a checksum that would be written over the addresses is none, and evades no check of them")
  func checksumOverAddress() throws {
    let card = try Card(.loop, [.version1, NetFeature.checksum]) { $0.mac = MACAddress("02:00:00:00:00:09") }
    card.post(0, 2000)
    for start: UInt8 in [0, 6, 10, 13] {
      try card.send([1, 0, 0, 0, 0, 0, start, 0, 0, 0, 0, 0] + testFrame(60))
    }
    #expect(card.counter("badHeader") == 4)
    #expect(card.counter("frames") == 0)
    try card.send([1, 0, 0, 0, 0, 0, 14, 0, 0, 0, 0, 0] + testFrame(60))
    #expect(card.receive.waitUsed()?.length == 72)
  }

  @Test("Frames from another address than the guest's are dropped")
  func spoofed() throws {
    let card = try Card(.loop) { $0.mac = MACAddress("52:54:00:00:00:01") }
    card.post(0, 2000)
    try card.send(frame: testFrame(60))
    #expect(card.counter("spoofed") == 1)
    try card.send(frame: testFrame(60, from: [0x52, 0x54, 0, 0, 0, 1]))
    #expect(card.receive.waitUsed()?.length == 72)
  }

  @Test("A disabled transmit queue takes frames and sends none; a disabled receive queue keeps its buffers")
  func disabled() throws {
    let card = try Card(.loop)
    card.host.setEnabled(1, false)
    card.post(0, 2000)
    try card.send(frame: testFrame(60))
    #expect(card.counter("discarded") == 1)
    card.host.setEnabled(0, false)
    card.host.setEnabled(1, true)
    let frame = testFrame(61)
    try card.send(frame: frame)
    #expect(card.counter("frames") == 1)
    card.host.setEnabled(0, true)
    #expect(card.receive.waitUsed()?.length == 73)
    #expect(Array(card.received(0, 73)[12...]) == frame)
  }

  @Test(
    "A queue that stops gives unused buffers back to the ring: it resumes where the driver's frames ended")
  func stops() throws {
    let card = try Card(.loop)
    for slot in 0..<3 { card.post(slot, 2000) }
    try card.send(frame: testFrame(60))
    #expect(card.receive.waitUsed()?.length == 72)
    #expect(card.host.stop([0, 1, 2]) == [1, 1, nil])
  }

  @Test("A source always has a frame, and a sink takes all")
  func ends() throws {
    let source = try Card(.source)
    for slot in 0..<3 {
      source.post(slot, 2000)
      #expect(source.receive.waitUsed()?.length == 72)
      #expect(source.received(slot, 26)[24...] == [8, 0])
    }
    let sink = try Card(.sink)
    try sink.send(frame: testFrame(1514))
    #expect(sink.counter("frames") == 1)
  }
}

@Suite("The control queue")
struct ControlTests {
  private static let features: FeatureSet = [
    .version1, NetFeature.controlQueue, NetFeature.multiQueue, NetFeature.controlMAC,
  ]

  private func card(_ features: FeatureSet = features) throws -> Card {
    try Card(.sink, features) { $0.pairs = 2 }
  }

  @Test("NT10 the number of pairs: what there are is taken, anything else refused")
  func pairs() throws {
    let card = try card()
    for (count, answer) in [(1, 0), (2, 0), (0, 1), (3, 1), (0x8000, 1), (0xffff, 1)] {
      let bytes = [4, 0, UInt8(truncatingIfNeeded: count), UInt8(count >> 8)]
      #expect(try card.command(bytes) == UInt8(answer), "\(count)")
    }
    #expect(card.counter("commands") == 6)
    #expect(card.counter("refusedCommands") == 4)
  }

  @Test(
    "NT09, NT11, NT12 commands that are short, long, unknown or not negotiated are answered with an error")
  func refused() throws {
    let card = try card()
    let wrong: [[UInt8]] = [
      [], [4], [4, 0], [4, 0, 1], [4, 0, 1, 0, 0], [4, 1, 0, 0], [9, 9, 0], [0xff, 0xff],
      // Unicast entries that overflow what follows, and a multicast table.
      [1, 0, 0xff, 0xff, 0xff, 0xff] + [UInt8](repeating: 2, count: 12), [1, 0, 0, 0, 0, 0x80],
      // A VLAN past 4095, promiscuous mode, offloads that were not negotiated.
      [2, 0, 0, 0x10], [0, 0, 1], [5, 0, 0xff, 0, 0, 0, 0, 0, 0, 0], [3, 0],
      [UInt8](repeating: 1, count: 4000),
    ]
    for bytes in wrong { #expect(try card.command(bytes) == 1, "\(bytes.prefix(8))") }
    #expect(try card.command([4, 0, 1, 0]) == 0)
  }

  @Test("NT09 a command without room for its answer comes back, and the queue goes on")
  func noAnswer() throws {
    let card = try card()
    #expect(try card.command([4, 0, 1, 0], answerBytes: 0) == nil)
    #expect(card.counter("malformed") == 1)
    #expect(try card.command([4, 0, 1, 0]) == 0)
  }

  @Test("The driver sets its address, unless the operator did")
  func address() throws {
    let card = try card()
    #expect(try card.command([1, 1, 2, 0, 0, 0, 0, 7]) == 0)
    var config = ConfigWriter()
    card.device.readConfig(&config)
    #expect(config.bytes.prefix(6) == [2, 0, 0, 0, 0, 7])
    #expect(try card.command([1, 1, 3, 0, 0, 0, 0, 7]) == 1, "a group's")
    let fixed = try Card(.sink, Self.features) {
      $0.pairs = 2
      $0.mac = MACAddress("52:54:00:00:00:01")
    }
    #expect(try fixed.command([1, 1, 2, 0, 0, 0, 0, 7]) == 1)
  }

  @Test("Without several pairs the control queue follows the first one")
  func position() throws {
    let card = try card([.version1, NetFeature.controlQueue, NetFeature.controlMAC])
    #expect(try card.command([1, 1, 2, 0, 0, 0, 0, 8]) == 0)
  }
}
