// What a front-end may send over the socket, and what must come of it: the SP lines of the hostile cases, as far as they are about
// messages themselves. What is refused for what it says: HostileRequestTests.

import CLinux
import Foundation
import Glibc
import HostIO
import Testing
import VhostFrontend
import VhostUser

@Suite("hostile front-ends")
struct HostileSocketTests {
  static let indexed: [FrontendRequest] = [
    .setVringNum, .setVringAddr, .setVringBase, .getVringBase, .setVringKick, .setVringCall, .setVringErr,
    .setVringEnable,
  ]

  @Test("SP01 a version that is not 1 ends the connection", arguments: [UInt32(0), 2, 3])
  func version(_ version: UInt32) throws {
    let backend = try EchoBackend()
    let front = try backend.connect(acks: false)
    try front.sendRaw(request: 1, flags: version, size: 0, payload: [])
    try front.expectClosed()
    try backend.servesOthers()
  }

  @Test(
    "SP02 an unknown request is refused where an answer is asked for, else passed over",
    arguments: [UInt32(0), 200, 0x7fff_ffff])
  func unknown(_ request: UInt32) throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    try front.sendRaw(request: request, flags: 1, size: 4, payload: [1, 2, 3, 4])
    try front.sendRaw(request: request, flags: 9, size: 4, payload: [1, 2, 3, 4])
    let reply = try front.receiveAny()
    #expect(reply.header.request == request)
    #expect(reply.payload == [1, 0, 0, 0, 0, 0, 0, 0])
    #expect(try front.getFeatures() != 0)
  }

  @Test(
    "SP03 a payload past the limit ends the connection, unread",
    arguments: [UInt32(4097), 0x7fff_ffff, 0xffff_ffff])
  func tooLong(_ size: UInt32) throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    try front.sendRaw(request: 2, flags: 1, size: size, payload: [0])
    try front.expectClosed()
    try backend.servesOthers()
  }

  @Test(
    "SP04 each request with a payload one byte short, or one too long, ends the connection",
    arguments: Request.allCases)
  func wrongSize(_ request: Request) throws {
    guard let rule = MessageRule.byRequest[request.rawValue] else { return }
    let right: Int
    switch rule.payload {
    case .exactly(let size): right = size
    case .memoryTable: right = 8 + 32
    case .config: right = 12 + 4
    case .inflight: right = 24
    }
    let backend = try EchoBackend()
    for size in [right - 1, right + 1] where size >= 0 {
      let front = try backend.connect()
      var payload = [UInt8](repeating: 0, count: size)
      // A table of one region, a configuration access of 4 bytes.
      if size > 4 { payload[rule.payload == .config ? 4 : 0] = rule.payload == .config ? 4 : 1 }
      try front.sendRaw(request: request.rawValue, flags: 9, size: UInt32(size), payload: payload)
      try front.expectClosed()
    }
    try backend.servesOthers()
  }

  @Test("SP05 a ring that is not there is refused, by all 32 bits of its index", arguments: indexed)
  func index(_ request: FrontendRequest) throws {
    let backend = try EchoBackend()
    let marked = [.setVringKick, .setVringCall, .setVringErr].contains(request)
    for index in [4, 255, 256, 0xffff, 0x1_0000, 0x8000_0001] as [UInt32] {
      let front = try backend.connect()
      let payload = words([index, 0] + (request == .setVringAddr ? [UInt32](repeating: 0, count: 8) : []))
      let call = try Doorbell()
      let takesDescriptor = marked && index & 0x100 == 0
      try front.send(
        request, payload: payload, descriptors: takesDescriptor ? [call.raw] : [], needReply: true)
      if request == .getVringBase {
        // Its answer cannot say no.
        try front.expectClosed()
      } else if marked, index == 256 {
        // Ring 0, without a descriptor: legal for a call and an error line; a kick would start the ring, which is not
        // set up.
        let ack = try front.receiveAck(request)
        #expect(ack.isNack == (request == .setVringKick))
      } else {
        #expect(try front.receiveAck(request).isNack)
        #expect(try front.getFeatures() != 0)
      }
    }
    try backend.servesOthers()
  }

  @Test("SP06 a ring without a kick descriptor is polled", arguments: [false, true])
  func polled(packed: Bool) throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running(packed: packed)
    #expect(try front.setVringKick(0, nil) == .ok)
    for byte in 0..<20 { try EchoBackend.echoes(arena, queue, UInt8(byte)) }
    front.disconnect()
  }

  @Test("SP07 a kick with neither descriptor nor mark is refused")
  func kickWithout() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    #expect(try front.setVringDescriptor(.setVringKick, word: 0, descriptors: [], ack: true).isNack)
    #expect(try front.getFeatures() != 0)
  }

  @Test("SP08 SP09 descriptors that do not belong to a message are closed", arguments: [1, 2, 64, 65, 253])
  func surplus(count: Int) throws {
    let backend = try EchoBackend()
    let front = try backend.connect(acks: false)
    // A socket whose other end tells when the last copy of this end is closed.
    var ends: [Int32] = [0, 0]
    #expect(socketpair(AF_UNIX, 1, 0, &ends) == 0)
    defer { close(ends[1]) }
    let copies = (0..<count).map { _ in dup(ends[0]) }
    try front.sendRaw(FrontendConnection.encode(.getFeatures), descriptors: copies)
    for copy in copies + [ends[0]] { close(copy) }
    try front.expectClosed()
    #expect(Poll.one(ends[1], .readable, milliseconds: 20_000).contains(.readable))
    var byte: UInt8 = 0
    #expect(read(ends[1], &byte, 1) == 0)
    try backend.servesOthers()
  }

  @Test("SP10 SP11 repeating a message keeps descriptors flat")
  func flat() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    func mine() -> Int {
      // Descriptors of this test's own memory, by the memfd's inode.
      var own = stat()
      fstat(arena.descriptors[0], &own)
      let all = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd")) ?? []
      return all.filter { name in
        var facts = stat()
        return stat("/proc/self/fd/" + name, &facts) == 0 && facts.st_ino == own.st_ino
          && facts.st_dev == own.st_dev
      }.count
    }
    let before = mine()
    for _ in 0..<500 {
      #expect(try front.setMemTable(arena.table, descriptors: arena.descriptors) == .ok)
      #expect(try front.setVringCall(0, queue.call) == .ok)
    }
    for _ in 0..<500 { #expect(try front.getInflightFD(queueCount: 1, queueSize: 64) != nil) }
    #expect(mine() == before)
    try EchoBackend.echoes(arena, queue)
  }

  @Test("SP12 a running ring keeps its size, its base and its place")
  func changeRunning() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    #expect(try front.setVringNum(0, 128).isNack)
    #expect(try front.setVringBase(0, 5).isNack)
    var address = queue.address(in: arena)
    #expect(try front.setVringAddr(address) == .ok)
    address.descriptors += 4096
    #expect(try front.setVringAddr(address).isNack)
    try EchoBackend.echoes(arena, queue)
  }

  @Test("SP13 addresses may come before the memory, but a ring does not start without it")
  func early() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    #expect(try front.setVringNum(0, 64) == .ok)
    let address = WireVringAddress(index: 0, descriptors: 0x10000, available: 0x20000, used: 0x30000)
    #expect(try front.setVringAddr(address) == .ok)
    #expect(try front.setVringKick(0, Doorbell()).isNack)
    try backend.servesOthersLater(front)
  }

  @Test("SP14 misaligned ring addresses are refused")
  func misaligned() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    _ = try front.getVringBase(0)
    for change in 0..<3 {
      var address = queue.address(in: arena)
      if change == 0 { address.descriptors += 8 }
      if change == 1 { address.available += 1 }
      if change == 2 { address.used += 2 }
      #expect(try front.setVringAddr(address).isNack)
    }
    #expect(try front.setVringAddr(queue.address(in: arena)) == .ok)
  }

  @Test("SP15 a memory table of 1 to 8 regions, each with its descriptor, and no other")
  func tables() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    let arena = try GuestArena(
      regions: (0..<9).map { ArenaRegion(at: UInt64($0 + 1) << 24, bytes: 1 << 20, file: $0) })
    func table(_ count: Int) throws -> Ack {
      try front.setMemTable(
        Array(arena.table.prefix(count)), descriptors: Array(arena.descriptors.prefix(count)))
    }
    #expect(try table(8) == .ok)
    #expect(try table(9).isNack)
    #expect(try front.setMemTable([], descriptors: []).isNack)
    #expect(try front.setMemTable(Array(arena.table.prefix(2)), descriptors: [arena.descriptors[0]]).isNack)
    let surplus = [arena.descriptors[0], arena.descriptors[1]]
    #expect(try front.setMemTable(Array(arena.table.prefix(1)), descriptors: surplus).isNack)
    try front.sendRaw(
      request: 5, flags: 9, size: 8 + 32,
      payload: [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0] + arena.table[0].bytes,
      descriptors: [arena.descriptors[0]])
    try front.expectClosed()
    try backend.servesOthers()
  }

  @Test("SP16 one byte at a time is as good as all at once")
  func byteByByte() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    let arena = try GuestArena(bytes: 1 << 20)
    let message = FrontendConnection.encode(
      .setMemTable, payload: WireRegion.table(arena.table), needReply: true)
    try front.sendByteByByte(message, descriptors: arena.descriptors)
    #expect(try front.receiveAck(.setMemTable) == .ok)
  }

  @Test("SP17 two messages in one send are two messages")
  func coalesced() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    let call = try Doorbell()
    let first = FrontendConnection.encode(.setVringCall, payload: [0, 0, 0, 0, 0, 0, 0, 0], needReply: true)
    try front.sendRaw(first + FrontendConnection.encode(.getFeatures), descriptors: [call.raw])
    #expect(try front.receiveAck(.setVringCall) == .ok)
    #expect(try front.receiveReply(to: .getFeatures, size: 8).payload.count == 8)
  }

  @Test("SP18 half a header holds nobody up, and its end is clean")
  func halfHeader() throws {
    let backend = try EchoBackend()
    let other = try EchoBackend()
    let front = try backend.connect()
    try front.sendRaw([1, 0, 0, 0, 1])
    try other.servesOthers()
    front.disconnect()
    try backend.servesOthers()
  }

  @Test("SP19 every acknowledged message has one answer, those with their own no second")
  func answers() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    _ = try front.setOwner(ack: true)
    try front.send(.getFeatures, needReply: true)
    _ = try front.receiveReply(to: .getFeatures, size: 8)
    try front.send(.getQueueNum, needReply: true)
    _ = try front.receiveReply(to: .getQueueNum, size: 8)
    #expect(front.waitingBytes == 0)
  }
}

extension EchoBackend {
  /// Ends `front`, and sees others served.
  func servesOthersLater(_ front: FrontendConnection) throws {
    front.disconnect()
    try servesOthers()
  }
}

/// Little-endian words, one after another.
func words(_ values: [UInt32]) -> [UInt8] {
  values.flatMap { value in withUnsafeBytes(of: value) { Array($0) } }
}
