// IOTLB messages that no honest front-end sends, and channels that say what they like.

import Foundation
import Testing
import VhostFrontend

@Suite("hostile IOTLB")
struct HostileIOTLBTests {
  /// A connection that has negotiated ACCESS_PLATFORM and shared memory, a region at 0x100000.
  private func translated(
    _ backend: EchoBackend, features extra: UInt64 = VirtioBits.accessPlatform
  ) throws -> (front: FrontendConnection, arena: GuestArena) {
    let front = try backend.connect()
    let features = try front.getFeatures() & (VirtioBits.driven | extra)
    #expect(features & extra == extra)
    #expect(try front.setFeatures(features) == .ok)
    let arena = try GuestArena(bytes: 2 << 20)
    #expect(try front.setMemTable(arena.table, descriptors: arena.descriptors) == .ok)
    return (front, arena)
  }

  private func update(
    _ front: FrontendConnection, _ iova: UInt64, _ size: UInt64, _ user: UInt64, _ permission: UInt8 = 3,
    type: UInt8 = 2
  ) throws -> Ack {
    try front.sendIOTLB(
      WireIOTLB(iova: iova, size: size, userAddress: user, permission: permission, type: type))
  }

  /// Ring addresses and descriptors both lead to themselves.
  private func mapAll(_ front: FrontendConnection, _ arena: GuestArena) throws {
    let region = arena.table[0]
    #expect(try update(front, region.userAddress, region.size, region.userAddress) == .ok)
    #expect(try update(front, region.guestAddress, region.size, region.userAddress) == .ok)
  }

  @Test(
    "ranges that overflow or are empty, memory that is not shared, permissions and types of none are refused")
  func refused() throws {
    let backend = try EchoBackend()
    let (front, arena) = try translated(backend)
    let user = arena.table[0].userAddress
    let messages: [(UInt64, UInt64, UInt64, UInt8, UInt8)] = [
      (0, 0, user, 3, 2), (.max, 2, user, 3, 2), (4096, .max, user, 3, 2), (0, 4096, .max - 100, 3, 2),
      (0, .max, user, 3, 2), (0, 4096, 0, 3, 2), (0, 4096, user - 1, 3, 2),
      (0, 4096, user + arena.table[0].size, 3, 2), (0, 4096, user, 0, 2), (0, 4096, user, 4, 2),
      (0, 4096, user, 255, 2), (0, 4096, user, 3, 0), (0, 4096, user, 3, 1), (0, 4096, user, 3, 4),
      (0, 4096, user, 3, 5), (0, 4096, user, 3, 255), (5, 0, 0, 0, 3),
    ]
    for (iova, size, user, permission, type) in messages {
      #expect(
        try update(front, iova, size, user, permission, type: type).isNack,
        "\(iova) \(size) \(user) \(permission) \(type)")
    }
    // To take away what is not there, or more than there is, is no fault.
    for (iova, size): (UInt64, UInt64) in [(0, 0), (0, .max), (.max, .max), (1 << 50, 1), (.max, 1)] {
      #expect(try update(front, iova, size, 0, 0, type: 3) == .ok)
    }
    // A mapping that ends outside the memory is good as far as there is any.
    #expect(try update(front, 1 << 40, 1 << 40, user) == .ok)
    try mapAll(front, arena)
    try EchoBackend.echoes(arena, EchoBackend.start(front, arena, packed: false))
    try backend.servesOthersLater(front)
  }

  @Test("without ACCESS_PLATFORM the message is refused; one that is no such message ends the connection")
  func unwanted() throws {
    let backend = try EchoBackend()
    let (front, arena) = try translated(backend, features: 0)
    #expect(try update(front, 0, 4096, arena.table[0].userAddress).isNack)
    #expect(try update(front, 0, 4096, 0, type: 3).isNack)
    front.disconnect()
    for size in [0, 8, 31, 33, 64] {
      let other = try backend.connect()
      try other.send(.iotlbMessage, payload: [UInt8](repeating: 0, count: size), needReply: true)
      try other.expectClosed()
    }
    let bell = try Doorbell()
    let other = try backend.connect()
    try other.send(.iotlbMessage, payload: [UInt8](repeating: 0, count: 32), descriptors: [bell.raw])
    try other.expectClosed()
    try backend.servesOthersLater(other)
  }

  @Test("tens of thousands of updates are taken, and cost the ring that runs meanwhile nothing")
  func flood() throws {
    let backend = try EchoBackend()
    let (front, arena) = try translated(backend)
    try mapAll(front, arena)
    let queue = try EchoBackend.start(front, arena, packed: false)
    try EchoBackend.echoes(arena, queue)
    let user = arena.table[0].userAddress
    for i in 0..<20_000 {
      let iova = 1 << 40 + UInt64(i) * 8192
      #expect(try update(front, iova, 1 + UInt64(i) % 5000, user + UInt64(i), UInt8(1 + i % 3)) == .ok)
      if i % 7 == 0 { #expect(try update(front, iova + 100, 50, 0, type: 3) == .ok) }
    }
    // The buffers' own mapping had to go in favour of newer ones: it comes again.
    try mapAll(front, arena)
    try EchoBackend.echoes(arena, queue)
    try backend.servesOthersLater(front)
  }

  @Test("ACCESS_PLATFORM is not switched while a ring runs")
  func switched() throws {
    let backend = try EchoBackend()
    let (front, arena) = try translated(backend)
    try mapAll(front, arena)
    let queue = try EchoBackend.start(front, arena, packed: false)
    #expect(try front.setFeatures(VirtioBits.driven).isNack)
    #expect(try front.setProtocolFeatures(ProtocolBits.replyAck).isNack)
    try EchoBackend.echoes(arena, queue)
    _ = try front.getVringBase(0)
    #expect(try front.setFeatures(VirtioBits.driven) == .ok)
    try backend.servesOthersLater(front)
  }

  @Test("a ring in mappings that do not lie side by side is reported, and another one runs")
  func apart() throws {
    let backend = try EchoBackend()
    let (front, arena) = try translated(backend)
    let region = arena.table[0]
    _ = try arena.allocate(4096 - 512, alignment: 4096)
    // Descriptors lie over the border of two pages, the second of which is mapped to elsewhere.
    let page = UInt64(4096)
    #expect(try update(front, region.userAddress, page, region.userAddress) == .ok)
    #expect(
      try update(front, region.userAddress + page, region.size - page, region.userAddress + 2 * page) == .ok)
    let queue = try EchoBackend.start(front, arena, packed: false)
    #expect(queue.error.wait())
    _ = try front.getVringBase(0)
    try mapAll(front, arena)
    try EchoBackend.echoes(arena, backend.ring(front, arena, 1))
    try backend.servesOthersLater(front)
  }

  @Test("answers that are none, and a channel that is closed, change nothing", arguments: 0..<7)
  func channel(kind: Int) throws {
    let backend = try EchoBackend()
    let (front, arena) = try translated(backend)
    let (channel, ack) = try front.openBackendChannel()
    #expect(ack == .ok)
    let region = arena.table[0]
    #expect(try update(front, region.userAddress, region.size, region.userAddress) == .ok)
    let queue = try EchoBackend.start(front, arena, packed: false)
    let from = try arena.allocate(1)
    let to = try arena.allocate(4)
    try arena.write([7], at: from)
    _ = try queue.submit([DescriptorSpec(from, 1), DescriptorSpec(to, 4, write: true)])
    let miss = try channel.receive()
    #expect(miss.request == .iotlbMessage && miss.needsReply)
    let asked = WireIOTLB(miss.payload)
    #expect(asked.iova == from && asked.permission == 1 && asked.type == 1)
    func say(_ request: UInt32, _ flags: UInt32, _ size: UInt32, _ payload: [UInt8]) throws {
      let header = WireHeader(request: request, flags: flags, size: size).bytes
      try channel.sendRaw(header + payload)
    }
    let zero = [UInt8](repeating: 0, count: 8)
    switch kind {
    case 0: try say(1, 1, 8, zero)
    case 1: try say(2, 5, 8, zero)
    case 2: try say(1, 5, 0xffff_ffff, zero)
    case 3: try say(1, 5, 4, [0, 0, 0, 0])
    case 4: try channel.sendRaw([UInt8](repeating: 0xff, count: 5000))
    case 5: try channel.sendRaw([1, 0, 0])
    default: channel.disconnect()
    }
    // The queue still waits, and goes on with the mapping.
    #expect(try update(front, region.guestAddress, region.size, region.userAddress) == .ok)
    #expect(try queue.wait().length == 4)
    #expect(try arena.read(at: to, count: 4) == [7, 7, 7, 7])
    try backend.servesOthersLater(front)
  }

  @Test(
    "an answer that comes after its question was settled otherwise is none to the same question asked again")
  func late() throws {
    let backend = try EchoBackend()
    let (front, arena) = try translated(backend)
    let (channel, _) = try front.openBackendChannel()
    let region = arena.table[0]
    #expect(try update(front, region.userAddress, region.size, region.userAddress) == .ok)
    let queue = try EchoBackend.start(front, arena, packed: false)
    let from = try arena.allocate(1)
    let to = try arena.allocate(4096, alignment: 4096)
    #expect(try update(front, to, 4096, arena.userAddress(of: to)) == .ok)
    let page = from & ~4095
    try arena.write([9], at: from)
    _ = try queue.submit([DescriptorSpec(from, 1), DescriptorSpec(to, 4, write: true)])
    let first = try channel.receive()
    // Settled by an update, used, and taken away; asked for again before the first question is answered: by no.
    #expect(try update(front, page, 4096, arena.userAddress(of: page), 1) == .ok)
    #expect(try queue.wait().length == 4)
    #expect(try update(front, page, 4096, 0, 0, type: 3) == .ok)
    _ = try queue.submit([DescriptorSpec(from, 1), DescriptorSpec(to, 4, write: true)])
    let second = try channel.receive()
    #expect(first.payload == second.payload)
    try channel.reply(to: first, value: 1)
    try front.barrier()
    #expect(try update(front, page, 4096, arena.userAddress(of: page), 1) == .ok)
    try channel.reply(to: second, value: 0)
    #expect(try queue.wait().length == 4)
    #expect(try arena.read(at: to, count: 4) == [9, 9, 9, 9])
    try backend.servesOthersLater(front)
  }

  @Test("what a front-end refuses is a hole: the request ends, the queue goes on")
  func denied() throws {
    let backend = try EchoBackend()
    let (front, arena) = try translated(backend)
    let (channel, _) = try front.openBackendChannel()
    let region = arena.table[0]
    #expect(try update(front, region.userAddress, region.size, region.userAddress) == .ok)
    let queue = try EchoBackend.start(front, arena, packed: false)
    let from = try arena.allocate(1)
    for value: UInt64 in [1, .max, 1] {
      _ = try queue.submit([DescriptorSpec(from, 1), DescriptorSpec(from, 4, write: true)])
      // Both directions are asked for, each once.
      for permission: UInt8 in [1, 2] {
        let miss = try channel.receive()
        #expect(WireIOTLB(miss.payload).permission == permission)
        try channel.reply(to: miss, value: value)
      }
      #expect(try queue.wait().length == 0)
    }
    try mapAll(front, arena)
    try EchoBackend.echoes(arena, queue)
    try backend.servesOthersLater(front)
  }
}
