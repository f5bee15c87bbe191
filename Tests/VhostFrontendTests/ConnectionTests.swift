// The connection, against a peer that reads and writes plain bytes.

import Glibc
import Testing
import VhostFrontend

@Suite("Connection") struct ConnectionTests {
  /// Puts the back-end's answers into the socket, runs the front-end, and takes what it sent.
  func answering<Result>(
    _ peer: RawPeer, _ script: [(request: Int, answer: [UInt8])], _ body: () throws -> Result
  ) rethrows -> (result: Result, requests: [[UInt8]]) {
    // The answers fit into the socket's buffer: they can be there before they are asked for.
    for step in script { peer.write(step.answer) }
    let result = try body()
    return (result, script.map { peer.read($0.request) })
  }

  @Test("GET_FEATURES goes out as 12 bytes and takes 8 back")
  func getFeatures() throws {
    let (front, peer) = try RawPeer.makePair()
    let (features, requests) = try answering(
      peer, [(12, [1, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 0xef, 0xbe, 0xad, 0xde, 1, 0, 0, 0x40])]
    ) { try front.getFeatures() }
    #expect(features == 0x4000_0001_dead_beef)
    #expect(requests == [[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]])
  }

  @Test("acknowledgements are asked for once REPLY_ACK is set, and tell good from bad")
  func acks() throws {
    let (front, peer) = try RawPeer.makePair()
    #expect(try front.setOwner() == .notAsked)
    #expect(peer.read(12) == RawPeer.words(3, 1, 0))
    #expect(try front.setProtocolFeatures(ProtocolBits.replyAck) == .notAsked)
    #expect(peer.read(20) == RawPeer.words(16, 1, 8, 8, 0))

    let (acks, requests) = try answering(
      peer, [(20, RawPeer.replyToNumber(8, 0)), (20, RawPeer.replyToNumber(8, 7))]
    ) { [try front.setVringNum(1, 256), try front.setVringNum(1, 255)] }
    #expect(acks == [.ok, .nack(7)])
    #expect(requests[0] == RawPeer.words(8, 9, 8, 1, 256))
    #expect(throws: FrontendError.refused(request: 8, value: 7)) { try acks[1].accepted(.setVringNum) }

    front.ackPolicy = .only([.setMemTable])
    #expect(try front.setVringNum(0, 4) == .notAsked)
    #expect(peer.read(20) == RawPeer.words(8, 1, 8, 0, 4))
    front.ackPolicy = .never
    #expect(
      try answering(peer, [(12, RawPeer.replyToNumber(34, 0))]) { try front.resetDevice(ack: true) }.result
        == .ok)
  }

  @Test(
    "an answer with any other flags, id or size is refused",
    arguments: [
      (RawPeer.replyToNumber(1, 0, flags: 1), "flags"), (RawPeer.replyToNumber(1, 0, flags: 0xd), "flags"),
      (RawPeer.replyToNumber(1, 0, flags: 0x15), "flags"), (RawPeer.replyToNumber(2, 0), "request"),
      (RawPeer.words(1, 5, 4, 0), "size"), (RawPeer.words(1, 5, 0), "size"),
      (RawPeer.words(1, 5, 12, 0, 0, 0), "size"), (RawPeer.words(1, 5, 0xffff_ffff), "size"),
    ])
  func strictReplies(answer: [UInt8], wrong: String) throws {
    let (front, peer) = try RawPeer.makePair()
    peer.write(answer)
    let error = #expect(throws: FrontendError.self) { try front.getFeatures() }
    guard case .badReply(1, let field, _, _) = error else {
      Issue.record("got \(String(describing: error))")
      return
    }
    #expect(field == wrong)
  }

  @Test("an answer that comes byte by byte is one answer")
  func slowAnswer() throws {
    let (front, peer) = try RawPeer.makePair()
    try front.send(.getQueueNum)
    for byte in RawPeer.replyToNumber(17, 9) { peer.write([byte]) }
    let reply = try front.receiveReply(to: .getQueueNum, size: 8)
    #expect(reply.payload == [9, 0, 0, 0, 0, 0, 0, 0])
  }

  @Test("a wait ends at its deadline, and says for what")
  func deadline() throws {
    let (front, peer) = try RawPeer.makePair()
    front.timeout = .milliseconds(20)
    #expect(throws: FrontendError.timedOut(waitingFor: "reply to GET_FEATURES")) { try front.getFeatures() }
    #expect(throws: FrontendError.timedOut(waitingFor: "end of the connection")) { try front.expectClosed() }
    withExtendedLifetime(peer) {}
  }

  @Test("a closed connection is seen, and told from bytes that come instead")
  func closed() throws {
    var (front, peer): (FrontendConnection, RawPeer?) = try RawPeer.makePair()
    peer?.write([1])
    let error = #expect(throws: FrontendError.self) { try front.expectClosed() }
    #expect(error == .badReply(request: 0, field: "byte", value: 1, expected: 0))
    peer = nil
    try front.expectClosed()
    #expect(throws: FrontendError.self) { try front.getFeatures() }

    (front, peer) = try RawPeer.makePair()
    try front.send(.getFeatures)
    peer = nil
    #expect(throws: FrontendError.closed(during: "reply to GET_FEATURES")) {
      try front.receiveReply(to: .getFeatures)
    }
  }

  @Test("descriptors travel with the first byte, up to 253 of them", arguments: [1, 2, 8, 253])
  func descriptors(count: Int) throws {
    let (front, back) = try FrontendConnection.pair()
    let bells = try (0..<count).map { _ in try Doorbell() }
    for bell in bells { bell.ring() }
    try front.send(.setMemTable, payload: [1, 2, 3], descriptors: bells.map(\.raw))
    let received = try FrontendConnection(adopting: back).receiveAny()
    #expect(received.header == WireHeader(request: 5, flags: 1, size: 3))
    #expect(received.payload == [1, 2, 3])
    #expect(received.descriptors.count == count)
    // They are the same eventfds: taking the count through one empties the other.
    for descriptor in received.descriptors {
      var value: UInt64 = 0
      #expect(read(descriptor.raw, &value, 8) == 8)
      #expect(value == 1)
    }
    #expect(bells.allSatisfy { $0.take() == 0 })
  }

  @Test("a surplus descriptor in an answer is an error")
  func surplusDescriptor() throws {
    let (front, back) = try FrontendConnection.pair()
    let answerer = FrontendConnection(adopting: back)
    let bell = try Doorbell()
    try answerer.sendRaw(RawPeer.replyToNumber(1, 0), descriptors: [bell.raw])
    #expect(throws: FrontendError.wrongDescriptorCount(request: 1, count: 1, expected: 0)) {
      try front.getFeatures()
    }
  }

  @Test("kick, call and error name the ring in a byte, and NOFD where there is none")
  func ringDescriptors() throws {
    let (front, peer) = try RawPeer.makePair()
    let bell = try Doorbell()
    _ = try front.setVringKick(3, bell)
    #expect(peer.read(20) == RawPeer.words(12, 1, 8, 3, 0))
    _ = try front.setVringCall(255, nil)
    #expect(peer.read(20) == RawPeer.words(13, 1, 8, 0x1ff, 0))
    _ = try front.setVringErr(0, nil)
    #expect(peer.read(20) == RawPeer.words(14, 1, 8, 0x100, 0))
    _ = try front.setVringDescriptor(.setVringKick, word: 0xffff_ffff_0000_0203, descriptors: [])
    #expect(peer.read(20) == RawPeer.words(12, 1, 8, 0x203, 0xffff_ffff))
  }

  @Test("GET_CONFIG repeats offset and size, and an empty answer is a refusal")
  func config() throws {
    let (front, peer) = try RawPeer.makePair()
    let (bytes, requests) = try answering(
      peer, [(12 + 12 + 3, RawPeer.words(24, 5, 15, 32, 3, 0) + [7, 8, 9])]
    ) { try front.getConfig(offset: 32, size: 3) }
    #expect(bytes == [7, 8, 9])
    #expect(requests == [RawPeer.words(24, 1, 15, 32, 3, 0) + [0, 0, 0]])

    peer.write(RawPeer.words(24, 5, 0))
    #expect(throws: FrontendError.refused(request: 24, value: 0)) { try front.getConfig(size: 60) }
    peer.write(RawPeer.words(24, 5, 15, 32, 3, 0) + [7, 8, 9])
    #expect(throws: FrontendError.badReply(request: 24, field: "size", value: 3, expected: 4)) {
      try front.getConfig(offset: 32, size: 4)
    }
    peer.write(RawPeer.words(24, 5, 15, 33, 3, 0) + [7, 8, 9])
    #expect(throws: FrontendError.badReply(request: 24, field: "offset", value: 33, expected: 32)) {
      try front.getConfig(offset: 32, size: 3)
    }
  }

  @Test("GET_VRING_BASE must answer for the ring it was asked about")
  func vringBase() throws {
    let (front, peer) = try RawPeer.makePair()
    peer.write(RawPeer.words(11, 5, 8, 2, 77))
    #expect(try front.getVringBase(2) == 77)
    #expect(peer.read(20) == RawPeer.words(11, 1, 8, 2, 0))
    peer.write(RawPeer.words(11, 5, 8, 1, 77))
    #expect(throws: FrontendError.badReply(request: 11, field: "index", value: 1, expected: 2)) {
      try front.getVringBase(2)
    }
  }

  @Test("SET_LOG_BASE wants its structure back, exactly")
  func logBase() throws {
    let (front, peer) = try RawPeer.makePair()
    _ = try front.setProtocolFeatures(ProtocolBits.logShmFD)
    _ = peer.read(20)
    let bell = try Doorbell()
    peer.write(RawPeer.words(6, 5, 16, 0x1000, 0, 0x20, 0))
    try front.setLogBase(WireLog(size: 0x1000, offset: 0x20), descriptor: bell.raw)
    #expect(peer.read(28) == RawPeer.words(6, 1, 16, 0x1000, 0, 0x20, 0))
    peer.write(RawPeer.words(6, 5, 8, 0, 0))
    #expect(throws: FrontendError.badReply(request: 6, field: "size", value: 8, expected: 16)) {
      try front.setLogBase(WireLog(size: 0x1000, offset: 0x20), descriptor: bell.raw)
    }
  }

  @Test("an inflight region comes with one descriptor, or with size 0 and none")
  func inflight() throws {
    let (front, back) = try FrontendConnection.pair()
    let answerer = FrontendConnection(adopting: back)
    let bell = try Doorbell()
    let region = WireInflight(mmapSize: 4096, queueCount: 1, queueSize: 128)
    try answerer.sendRaw(request: 31, flags: 5, payload: region.bytes, descriptors: [bell.raw])
    let given = try #require(try front.getInflightFD(queueCount: 1, queueSize: 128))
    #expect(given.description == region)
    try answerer.sendRaw(request: 31, flags: 5, payload: WireInflight(queueCount: 1, queueSize: 128).bytes)
    #expect(try front.getInflightFD(queueCount: 1, queueSize: 128) == nil)
    try answerer.sendRaw(request: 31, flags: 5, payload: region.bytes)
    #expect(throws: FrontendError.wrongDescriptorCount(request: 31, count: 0, expected: 1)) {
      try front.getInflightFD(queueCount: 1, queueSize: 128)
    }
  }

  @Test("the back-end channel tells requests from answers, and answers itself")
  func backendChannel() throws {
    let (front, back) = try FrontendConnection.pair()
    let backend = FrontendConnection(adopting: back)
    let (channel, ack) = try front.openBackendChannel()
    #expect(ack == .notAsked)
    let message = try backend.receiveAny()
    #expect(message.header.request == 21)
    let socket = try #require(message.descriptors.first)
    let peer = RawPeer(socket: socket)
    peer.write(RawPeer.words(2, 9, 0))
    let change = try channel.receive()
    #expect(change.request == .configChange)
    #expect(change.needsReply)
    try channel.reply(to: change, value: 1)
    #expect(peer.read(20) == RawPeer.words(2, 5, 8, 1, 0))
    peer.write(RawPeer.words(2, 5, 0))
    #expect(throws: FrontendError.self) { try channel.receive() }
  }

  @Test("fault moves send exactly the bytes they are given")
  func faultMoves() throws {
    let (front, peer) = try RawPeer.makePair()
    try front.sendRaw(request: 200, flags: 0xf, size: 0xffff_ffff, payload: [1, 2, 3])
    #expect(peer.read(15) == RawPeer.words(200, 15, 0xffff_ffff) + [1, 2, 3])
    let two = FrontendConnection.encode(.getFeatures) + FrontendConnection.encode(.setOwner, needReply: true)
    try front.sendRaw(two)
    #expect(peer.read(24) == RawPeer.words(1, 1, 0, 3, 9, 0))
    try front.sendByteByByte(two)
    #expect(peer.read(24) == two)
    #expect(front.waitingBytes == 0)
    peer.write([1, 2, 3])
    #expect(front.waitingBytes == 3)
    front.endSending()
    #expect(peer.read(1) == [])
  }

  @Test("the front-end can listen, and cleans its socket up")
  func listener() throws {
    let path = "/tmp/frontend-listen-\(getpid())-\(UInt32.random(in: 0 ... .max))"
    do {
      let listener = try FrontendListener(path: path)
      // Somebody else's socket is not taken away by a failed attempt.
      #expect(throws: FrontendError.system(call: "bind", code: EADDRINUSE)) {
        try FrontendListener(path: path)
      }
      #expect(throws: FrontendError.timedOut(waitingFor: "connection at \(path)")) {
        try listener.accept(timeout: .milliseconds(10))
      }
      let back = try FrontendConnection.connect(to: path)
      let front = try listener.accept()
      try back.sendRaw(RawPeer.replyToNumber(1, 5))
      #expect(try front.getFeatures() == 5)
    }
    #expect(access(path, F_OK) != 0)
    #expect(throws: FrontendError.system(call: "connect", code: ENOENT)) {
      try FrontendConnection.connect(to: path)
    }
  }

  @Test("a path that does not fit is refused with its length")
  func longPath() {
    let path = "/" + String(repeating: "x", count: 107)
    #expect(throws: FrontendError.pathTooLong(bytes: 108)) { try FrontendConnection.connect(to: path) }
  }
}
