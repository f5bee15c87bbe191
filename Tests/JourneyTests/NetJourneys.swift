// A network card over the whole way: driver, socket, server, queue thread, and back by the loop.

import DeviceKit
import Foundation
import NetBackend
import Testing
import VhostFrontend
import VhostUser

@Suite("A network card over vhost-user")
struct NetJourneys {
  private static let inOrder: UInt64 = 1 << 35
  private static let mergeable: UInt64 = 1 << 15

  private func device(_ place: NetPlace = .loop, pairs: Int = 1) -> NetDevice {
    var options = NetDevice.Options()
    options.pairs = pairs
    return NetDevice(place: place, options: options)
  }

  private func driver(
    _ backend: Backend, packed: Bool = false, queues: Int = 2,
    features: UInt64 = VirtioBits.driven | mergeable
  ) throws -> DeviceDriver {
    let options = DriverOptions.with {
      $0.packed = packed
      $0.queues = queues
      $0.queueSize = 64
      $0.features = features
      $0.timeout = .seconds(20)
      $0.configBytes = 0
    }
    let driver = DeviceDriver(
      try FrontendConnection.connect(to: backend.socket), arena: try GuestArena(bytes: 8 << 20), options)
    try driver.connect()
    try driver.start()
    return driver
  }

  /// Sends a numbered frame and returns what comes back for it: header and frame.
  private func echo(_ driver: DeviceDriver, _ number: UInt8) throws -> (sent: [UInt8], received: [UInt8]) {
    let length = 60 + Int(number)
    let frame = (0..<length).map { UInt8(truncatingIfNeeded: $0) &+ number }
    let out = try driver.arena.allocate(12 + length)
    let into = try driver.arena.allocate(2048)
    try driver.arena.write([UInt8](repeating: 0, count: 12) + frame, at: out)
    let receive = try driver.queues[0].submit([DescriptorSpec(into, 2048, write: true)])
    _ = try driver.queues[1].submit([DescriptorSpec(out, 12), DescriptorSpec(out + 12, UInt32(length))])
    #expect(try driver.queues[1].wait().length == 0)
    let used = try driver.queues[0].wait()
    #expect(used.token == receive)
    return (frame, try driver.arena.read(at: into, count: Int(used.length)))
  }

  @Test("Frames come back over split and packed rings, with and without IN_ORDER", arguments: [false, true])
  func echoes(packed: Bool) throws {
    for order: UInt64 in [0, Self.inOrder] {
      let backend = try Backend(device())
      let driver = try driver(backend, packed: packed, features: VirtioBits.driven | Self.mergeable | order)
      #expect(driver.features & Self.inOrder == order)
      for number: UInt8 in 0..<200 {
        let (sent, received) = try echo(driver, number)
        #expect(received == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0] + sent)
      }
      driver.disconnect()
    }
  }

  @Test("A card that is stopped and started again loses no receive buffer", arguments: [false, true])
  func resumes(packed: Bool) throws {
    let backend = try Backend(device())
    let driver = try driver(backend, packed: packed)
    var waiting: [UInt16] = []
    for _ in 0..<5 {
      let into = try driver.arena.allocate(2048)
      waiting.append(try driver.queues[0].submit([DescriptorSpec(into, 2048, write: true)]))
    }
    for _ in 0..<3 {
      try driver.stop()
      try driver.start()
    }
    let out = try driver.arena.allocate(100)
    for token in waiting {
      _ = try driver.queues[1].submit([DescriptorSpec(out, 72)])
      #expect(try driver.queues[1].wait().length == 0)
      let used = try driver.queues[0].wait()
      #expect(used.token == token)
      #expect(used.length == 72)
    }
  }

  @Test("Every queue that a card of two pairs has is counted, and those of the second pair work")
  func pairs() throws {
    let backend = try Backend(device(pairs: 2), threads: 2)
    let driver = try driver(backend, queues: 4)
    #expect(try driver.connection.getQueueNum() == 5)
    let into = try driver.arena.allocate(2048)
    let out = try driver.arena.allocate(100)
    _ = try driver.queues[2].submit([DescriptorSpec(into, 2048, write: true)])
    _ = try driver.queues[3].submit([DescriptorSpec(out, 72)])
    #expect(try driver.queues[2].wait().length == 72)
  }

  @Test("What a driver asks by its control queue is in force when it is answered", arguments: [false, true])
  func filters(packed: Bool) throws {
    // Control queue, its receive modes, its address.
    let wanted: UInt64 = 1 << 17 | 1 << 18 | 1 << 23
    let backend = try Backend(device())
    let driver = try driver(
      backend, packed: packed, queues: 3, features: VirtioBits.driven | Self.mergeable | wanted)
    #expect(driver.features & wanted == wanted)
    let place = try driver.arena.allocate(4096)
    func order(_ bytes: [UInt8]) throws -> [UInt8] {
      try driver.arena.write(bytes + [0xee], at: place)
      let answer = place + UInt64(bytes.count)
      _ = try driver.queues[2].submit([
        DescriptorSpec(place, UInt32(bytes.count)), DescriptorSpec(answer, 1, write: true),
      ])
      #expect(try driver.queues[2].wait().length == 1)
      return try driver.arena.read(at: answer, count: 1)
    }
    func send(_ frame: [UInt8]) throws {
      try driver.arena.write([UInt8](repeating: 0, count: 12) + frame, at: place + 1024)
      _ = try driver.queues[1].submit([DescriptorSpec(place + 1024, UInt32(12 + frame.count))])
      _ = try driver.queues[1].wait()
    }
    let own: [UInt8] = [2, 0, 0, 0, 0, 1]
    let other: [UInt8] = [2, 0, 0, 0, 0, 2]
    let rest = [UInt8](repeating: 7, count: 60)
    #expect(try order([1, 1] + own) == [0])
    #expect(try order([0, 0, 0]) == [0])
    #expect(try order([0, 2, 1]) == [1], "not negotiated")
    _ = try driver.queues[0].submit([DescriptorSpec(place + 2048, 2048, write: true)])
    try send(other + rest)
    try send(own + rest)
    let used = try driver.queues[0].wait()
    #expect(
      Array(try driver.arena.read(at: place + 2048, count: Int(used.length)).dropFirst(12)) == own + rest)
    // A table of one card and no group.
    #expect(try order([1, 0, 1, 0, 0, 0] + other + [0, 0, 0, 0]) == [0])
    _ = try driver.queues[0].submit([DescriptorSpec(place + 2048, 2048, write: true)])
    try send([3, 0, 0, 0, 0, 1] + rest)
    try send(other + rest)
    _ = try driver.queues[0].wait()
    #expect(try driver.arena.read(at: place + 2060, count: 6) == other)
  }

  @Test("RARP and MTU are offered by cards on taps alone; a card without one refuses them")
  func messages() throws {
    let backend = try Backend(device())
    let driver = try driver(backend)
    #expect(driver.offeredProtocolFeatures & (ProtocolBits.rarp | ProtocolBits.mtu) == 0)
    #expect(driver.offeredProtocolFeatures & ProtocolBits.config != 0)
  }
}
