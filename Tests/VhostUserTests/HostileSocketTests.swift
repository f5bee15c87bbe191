// What a front-end may send over the socket, and what must come of it: the SP lines of the hostile cases.

import CLinux
import Foundation
import Glibc
import HostIO
import Testing
import VhostFrontend
import VhostUser

@Suite("hostile front-ends")
struct HostileSocketTests {
  /// Little-endian words, one after another.
  private func words(_ values: [UInt32]) -> [UInt8] {
    values.flatMap { value in withUnsafeBytes(of: value) { Array($0) } }
  }

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

  @Test("SP20 a message of a protocol feature that was not negotiated is refused")
  func notNegotiated() throws {
    let backend = try EchoBackend()
    let front = try backend.connect(acks: false)
    _ = try front.setProtocolFeatures(ProtocolBits.replyAck)
    #expect(try front.resetDevice().isNack)
    let arena = try GuestArena(bytes: 1 << 20)
    #expect(try front.addMemReg(arena.table[0], descriptor: arena.descriptors[0]).isNack)
    try front.send(.getConfig, payload: [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])
    try front.expectClosed()
  }

  @Test("SP21 SP22 what was not offered is refused, and nothing of it is taken")
  func notOffered() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    #expect(try front.setFeatures(.max).isNack)
    #expect(try front.setProtocolFeatures(.max).isNack)
    #expect(try front.setFeatures(front.getFeatures()) == .ok)
  }

  @Test("a refusal that cannot be told ends the connection")
  func refusedWithoutAcks() throws {
    let backend = try EchoBackend()
    let front = try backend.connect(acks: false)
    try front.send(.setFeatures, payload: [UInt8](repeating: 0xff, count: 8))
    try front.expectClosed()
    try backend.servesOthers()
  }

  @Test("SP23 owner twice, and reset of the owner, change nothing")
  func owner() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    #expect(try front.setOwner() == .ok)
    #expect(try front.resetOwner() == .ok)
    try EchoBackend.echoes(arena, queue)
  }

  @Test("SP24 configuration is answered up to 256 bytes, zero past the device's own")
  func getConfig() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    #expect(try front.getConfig(offset: 0, size: 8) == [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11])
    #expect(try front.getConfig(offset: 6, size: 6) == [0x22, 0x11, 0, 0, 0, 0])
    #expect(try front.getConfig(offset: 0, size: 256).count == 256)
    for (offset, size) in [(0, 0), (0, 257), (255, 2), (0xffff_ffff, 1), (256, 1)] as [(UInt32, UInt32)] {
      try front.send(
        .getConfig, payload: words([offset, size, 0]) + [UInt8](repeating: 0, count: Int(min(size, 512))))
      #expect(try front.receiveReply(to: .getConfig, size: 0).payload.isEmpty)
    }
  }

  @Test("SP25 only what the device lets the driver write is written")
  func setConfig() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    #expect(try front.setConfig(offset: 4, [1]) == .ok)
    #expect(try front.setConfig(offset: 4, [1], flags: 1) == .ok)
    #expect(try front.setConfig(offset: 4, [1], flags: 2).isNack)
    #expect(try front.setConfig(offset: 0, [1]).isNack)
    #expect(try front.setConfig(offset: 4, [1, 2]).isNack)
    #expect(try front.setConfig(offset: 0xffff_fff0, [1]).isNack)
  }

  @Test("SP26 a ring that never started answers the base it was given")
  func baseOfStopped() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    #expect(try front.setVringBase(2, 0x1234) == .ok)
    #expect(try front.getVringBase(2) == 0x1234)
    #expect(try front.getVringBase(3) == 0)
  }

  @Test("SP27 enabling takes 0 and 1; without protocol features rings are enabled at once")
  func enable() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    for index in 0..<4 as Range<UInt32> { #expect(try front.setVringEnable(index, true) == .ok) }
    #expect(try front.setVringEnable(0, value: 2).isNack)
    #expect(try front.setVringEnable(0, value: 0xffff_ffff).isNack)
    front.disconnect()

    let plain = try backend.connect(acks: false)
    _ = try plain.setFeatures(VirtioBits.version1)
    let arena = try GuestArena(bytes: 1 << 20)
    _ = try plain.setMemTable(arena.table, descriptors: arena.descriptors)
    let queue = try QueueDriver(
      index: 1, DriverRingOptions(size: 16, eventIndex: false), packed: false, in: arena)
    _ = try plain.setVringNum(1, 16)
    _ = try plain.setVringAddr(queue.address(in: arena))
    _ = try plain.setVringCall(1, queue.call)
    _ = try plain.setVringKick(1, queue.kick)
    try EchoBackend.echoes(arena, queue)
  }

  @Test("SP28 an inflight region that cannot be is refused")
  func inflight() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    let made = try #require(try front.getInflightFD(queueCount: 2, queueSize: 64))
    func set(_ change: (inout WireInflight) -> Void) throws -> Ack {
      var description = made.description
      change(&description)
      return try front.setInflightFD(description, descriptor: made.descriptor.raw)
    }
    #expect(try set { _ in } == .ok)
    #expect(try set { $0.queueCount = 0 }.isNack)
    #expect(try set { $0.queueCount = 5 }.isNack)
    #expect(try set { $0.queueCount = 65535 }.isNack)
    #expect(try set { $0.queueSize = 0 }.isNack)
    #expect(try set { $0.queueSize = 65535 }.isNack)
    #expect(try set { $0.mmapSize = 0 }.isNack)
    #expect(try set { $0.mmapSize = 1 << 63 }.isNack)
    #expect(try set { $0.mmapOffset = .max }.isNack)
    #expect(try set { $0.mmapOffset = 4096 * 4096 }.isNack)
    #expect(try front.getInflightFD(queueCount: 0, queueSize: 64) == nil)
    #expect(try front.getInflightFD(queueCount: 65535, queueSize: 64) == nil)
  }

  @Test("SP29 a back-end channel that is no socket is refused, a closed one harms nobody")
  func channel() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    let file = open("/dev/null", O_RDWR)
    defer { close(file) }
    #expect(try front.setBackendReqFD(file).isNack)
    let first = try UnixStream.pair()
    let second = try UnixStream.pair()
    #expect(try front.setBackendReqFD(first.first.raw) == .ok)
    #expect(try front.setBackendReqFD(second.first.raw) == .ok)
    first.second.shutdown()
    try backend.servesOthersLater(front)
  }

  @Test(
    "SP30 messages of features we do not have are refused, with their descriptors closed",
    arguments: [
      .sendRARP, .netSetMTU, .postcopyListen, .postcopyEnd, .setVringEndian, .setStatus,
    ] as [FrontendRequest])
  func unsupported(_ request: FrontendRequest) throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    let bytes = [.postcopyListen, .postcopyEnd].contains(request) ? 0 : 8
    try front.send(request, payload: [UInt8](repeating: 0, count: bytes), needReply: true)
    #expect(try front.receiveAck(request).isNack)
    #expect(try front.getFeatures() != 0)
  }

  @Test("SP31 a device reset stops and disables the rings and keeps the memory")
  func reset() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    try EchoBackend.echoes(arena, queue)
    #expect(try front.resetDevice() == .ok)
    #expect(try front.getVringBase(0) == 0)
    let fresh = try QueueDriver(
      index: 0, DriverRingOptions(size: 32, eventIndex: true), packed: false, in: arena)
    #expect(try front.setVringNum(0, 32) == .ok)
    #expect(try front.setVringAddr(fresh.address(in: arena)) == .ok)
    #expect(try front.setVringCall(0, fresh.call) == .ok)
    #expect(try front.setVringKick(0, fresh.kick) == .ok)
    #expect(try front.setVringEnable(0, true) == .ok)
    try EchoBackend.echoes(arena, fresh)
  }

  @Test("SP34 FT09 only eventfds are kicks, calls and error lines")
  func descriptorKinds() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    var ends: [Int32] = [0, 0]
    pipe(&ends)
    let kinds = [
      open("/dev/null", O_RDWR), open("/tmp", O_RDONLY), ends[0], ends[1], arena.descriptors[0],
      socket(AF_UNIX, 1, 0),
    ]
    for descriptor in kinds {
      for request in [FrontendRequest.setVringKick, .setVringCall, .setVringErr] {
        #expect(try front.setVringDescriptor(request, word: 0, descriptors: [descriptor], ack: true).isNack)
      }
    }
    try EchoBackend.echoes(arena, queue)
    for descriptor in kinds where descriptor != arena.descriptors[0] { close(descriptor) }
    close(ends[0])
  }
}

extension EchoBackend {
  /// Ends `front`, and sees others served.
  func servesOthersLater(_ front: FrontendConnection) throws {
    front.disconnect()
    try servesOthers()
  }
}
