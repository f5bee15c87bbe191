// Messages that are whole, and ask for what is not to be had: the SP lines of the hostile cases about features, configuration and
// rings.

import CLinux
import Foundation
import Glibc
import HostIO
import Testing
import VhostFrontend
import VhostUser

@Suite("hostile requests")
struct HostileRequestTests {
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
