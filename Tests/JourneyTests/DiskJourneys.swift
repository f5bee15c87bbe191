// A front-end's whole way to a disk and back, over a real socket to a real file.

import BlockBackend
import DeviceKit
import Foundation
import Testing
import VhostFrontend

/// One way to set a ring up.
struct RingKind: CustomStringConvertible, Sendable {
  var packed: Bool
  var eventIndex: Bool
  var size: UInt16

  var description: String {
    "\(packed ? "packed" : "split") ring of \(size)\(eventIndex ? ", event index" : "")"
  }

  static let all: [RingKind] = [
    RingKind(packed: false, eventIndex: true, size: 128),
    RingKind(packed: false, eventIndex: false, size: 128),
    RingKind(packed: false, eventIndex: true, size: 4),
    RingKind(packed: false, eventIndex: true, size: 32768),
    RingKind(packed: true, eventIndex: true, size: 128), RingKind(packed: true, eventIndex: false, size: 128),
    RingKind(packed: true, eventIndex: true, size: 5), RingKind(packed: true, eventIndex: true, size: 1000),
  ]

  func options(queues: Int = 1, habit: Habit = .plain) -> DiskOptions {
    .with {
      $0.driver.queues = queues
      $0.driver.packed = packed
      $0.driver.habit = habit
      $0.driver.queueSize = size
      if !eventIndex { $0.driver.features &= ~VirtioBits.eventIndex }
      $0.depth = min(16, max(1, Int(size) / 4))
    }
  }
}

@Suite("disk journeys")
struct DiskJourneys {
  @Test("what is written is on the file, and is read back", arguments: RingKind.all)
  func roundTrip(kind: RingKind) throws {
    let image = try Image()
    let backend = try Backend(try image.device())
    let disk = try BlockDriver(path: backend.socket, kind.options())
    let data = BytePattern(seed: 7).bytes(at: 0, count: 8192)
    let framing: Framing = kind.size < 8 ? .classic : .dataPieces(100)
    try disk.write(sector: 100, data, framing)
    #expect(try disk.read(sector: 100, bytes: 8192, framing) == data)
    #expect(try image.bytes(sector: 100, count: 8192) == data)
    #expect(try disk.read(sector: 99, bytes: 512) == [UInt8](repeating: 99, count: 512))
    try disk.flush()
    #expect(try disk.getID() == "journey")
    #expect(try disk.arena.damagedGuards().isEmpty)
    _ = try disk.stop()
    disk.disconnect()
  }

  static let framings: [Framing] = [
    .classic, .headerSplit(3), .headerSplit(1), .headerWithData, .statusWithData, .joined, .dataPieces(9),
    .dataCuts([1, 511, 512, 513]), .crumbs,
  ]

  @Test("however a request is cut, it means the same", arguments: framings, [false, true])
  func anyFraming(framing: Framing, packed: Bool) throws {
    let image = try Image()
    let backend = try Backend(try image.device())
    let kind = RingKind(packed: packed, eventIndex: true, size: 2048)
    let disk = try BlockDriver(path: backend.socket, kind.options())
    let ways = [framing, framing.indirect] + (packed ? [] : [framing.mixed(direct: 1)])
    for (i, way) in ways.enumerated() {
      let data = BytePattern(seed: UInt64(i)).bytes(at: 0, count: 1024)
      try disk.write(sector: UInt64(8 * i), data, way)
      #expect(try disk.read(sector: UInt64(8 * i), bytes: 1024, way) == data)
      #expect(try disk.getID(way) == "journey")
      try disk.flush(way)
    }
    #expect(try disk.arena.damagedGuards().isEmpty)
  }

  @Test(
    "every front-end's order of messages works",
    arguments: [Habit.plain, .qemu72, .cloudHypervisor, .crosvm, .libblkio], [false, true])
  func habits(habit: Habit, packed: Bool) throws {
    let image = try Image()
    let backend = try Backend(try image.device())
    for round in 0..<3 {
      let disk = try BlockDriver(
        path: backend.socket,
        RingKind(packed: packed, eventIndex: true, size: 128).options(queues: 2, habit: habit))
      let data = [UInt8](repeating: UInt8(round + 1), count: 4096)
      try disk.write(sector: 64, data, queue: 1)
      #expect(try disk.read(sector: 64, bytes: 4096, queue: 0) == data)
      _ = try disk.stop()
      try disk.resume()
      #expect(try disk.read(sector: 64, bytes: 4096, queue: 1) == data)
      disk.disconnect()
    }
  }

  @Test("a read-only disk says so, and refuses writes")
  func readOnly() throws {
    let image = try Image()
    let backend = try Backend(try image.device(readOnly: true))
    let disk = try BlockDriver(path: backend.socket, RingKind.all[0].options())
    #expect(disk.features & DiskBits.readOnly != 0)
    let result = try disk.perform(.write(sector: 0, [UInt8](repeating: 1, count: 512)))
    #expect(result.status == 1)
    #expect(try image.bytes(sector: 0, count: 512) == [UInt8](repeating: 0, count: 512))
  }

  @Test("the configuration space is what the disk is, and the cache mode is the driver's")
  func configuration() throws {
    let image = try Image()
    let backend = try Backend(try image.device(queues: 3))
    let disk = try BlockDriver(path: backend.socket, RingKind.all[0].options())
    #expect(disk.config.capacity == UInt64(image.sectors))
    #expect(try disk.connection.getQueueNum() == 3)
    #expect(!(try disk.setWriteback(false).isNack))
    #expect(try disk.refreshConfig().writeback == 0)
    #expect(!(try disk.setWriteback(true).isNack))
  }

  @Test("requests of every size up to a mebibyte arrive whole", arguments: [false, true])
  func sizes(packed: Bool) throws {
    let image = try Image(sectors: 8192)
    let backend = try Backend(try image.device())
    var options = RingKind(packed: packed, eventIndex: true, size: 1024).options()
    options.dataBytes = 1 << 20
    options.driver.indirectCapacity = 1024
    let disk = try BlockDriver(path: backend.socket, options)
    for sectors in [1, 2, 3, 7, 8, 127, 128, 1000, 2048] {
      let data = BytePattern(seed: UInt64(sectors)).bytes(at: 0, count: sectors * 512)
      try disk.write(sector: 5, data, .dataPieces(min(900, sectors)).indirect)
      #expect(try disk.read(sector: 5, bytes: sectors * 512, .dataPieces(3)) == data)
    }
  }

  @Test("a second front-end waits until the first has left, and is served then (SP32)")
  func oneAfterAnother() throws {
    let image = try Image()
    let backend = try Backend(try image.device())
    let first = try BlockDriver(path: backend.socket, RingKind.all[0].options())
    let second = try FrontendConnection.connect(to: backend.socket)
    try second.send(.getFeatures)
    let data = [UInt8](repeating: 0x42, count: 512)
    try first.write(sector: 1, data)
    #expect(second.waitingBytes == 0)
    first.disconnect()
    #expect(try second.receiveReply(to: .getFeatures, size: 8).payload.count == 8)
    second.disconnect()
    let third = try BlockDriver(path: backend.socket, RingKind.all[4].options())
    #expect(try third.read(sector: 1, bytes: 512) == data)
  }

  @Test("requests of several queues on several threads all arrive", arguments: [1, 2])
  func queues(threads: Int) throws {
    let image = try Image()
    let backend = try Backend(try image.device(), threads: threads)
    let disk = try BlockDriver(path: backend.socket, RingKind.all[0].options(queues: 4))
    for round in 0..<50 {
      let queue = round % 4
      let data = [UInt8](repeating: UInt8(round), count: 1024)
      try disk.write(sector: UInt64(round * 2), data, queue: queue)
      #expect(try disk.read(sector: UInt64(round * 2), bytes: 1024, queue: (queue + 1) % 4) == data)
    }
    #expect(backend.counter("writes") == 50)
  }

  @Test("without FLUSH each write is durable, with it the cache is the driver's")
  func durability() throws {
    let image = try Image()
    let device = try image.device()
    let backend = try Backend(device)
    var options = RingKind.all[0].options()
    let disk = try BlockDriver(path: backend.socket, options)
    #expect(!device.mustBeDurable)
    _ = try disk.setWriteback(false)
    #expect(device.mustBeDurable)
    _ = try disk.setWriteback(true)
    disk.disconnect()
    options.driver.features &= ~(DiskBits.flush | DiskBits.configWCE)
    let plain = try BlockDriver(path: backend.socket, options)
    #expect(device.mustBeDurable)
    try plain.write(sector: 3, [UInt8](repeating: 9, count: 512))
    plain.disconnect()
  }
}
