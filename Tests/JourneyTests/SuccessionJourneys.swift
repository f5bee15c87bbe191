// One front-end after another, each with other choices: what one of them had is not the next one's.

import BlockBackend
import DeviceKit
import Foundation
import Testing
import VhostFrontend

@Suite("one front-end after another")
struct SuccessionJourneys {
  /// How a front-end drives the disk.
  private struct Choice: CustomStringConvertible {
    var queues = 1
    var packed = false
    var eventIndex = true
    var indirect = true
    var flush = true
    var size: UInt16 = 128
    var habit = Habit.plain

    static func random(_ random: inout SeededGenerator) -> Choice {
      var choice = Choice()
      choice.queues = Int.random(in: 1...4, using: &random)
      choice.packed = Bool.random(using: &random)
      choice.eventIndex = Bool.random(using: &random)
      choice.indirect = Bool.random(using: &random)
      choice.flush = Bool.random(using: &random)
      choice.size = [8, 64, 128, 256].randomElement(using: &random) ?? 128
      choice.habit =
        [Habit.plain, .qemu72, .cloudHypervisor, .crosvm].randomElement(using: &random) ?? .plain
      return choice
    }

    var description: String {
      "\(habit), \(queues) queues of \(size)\(packed ? ", packed" : "")\(eventIndex ? ", event index" : "")"
        + "\(indirect ? ", indirect" : "")\(flush ? ", flush" : "")"
    }

    var options: DiskOptions {
      .with {
        $0.driver.habit = habit
        $0.driver.queues = queues
        $0.driver.packed = packed
        $0.driver.queueSize = size
        $0.depth = max(1, Int(size) / 8)
        $0.dataBytes = 4096
        if !eventIndex { $0.driver.features &= ~VirtioBits.eventIndex }
        if !indirect { $0.driver.features &= ~VirtioBits.indirect }
        // A driver that cannot flush has every write on stable storage when it completes.
        if !flush { $0.driver.features &= ~(DiskBits.flush | DiskBits.configWCE) }
      }
    }
  }

  @Test(
    "LC15 features, formats, sizes and numbers of queues are another front-end's, and nothing is left over")
  func succession() throws {
    let image = try Image()
    let device = try image.device()
    let backend = try Backend(device, threads: 2)
    var random = SeededGenerator(seed: 15)
    for round in 0..<60 {
      let choice = Choice.random(&random)
      let disk = try BlockDriver(path: backend.socket, choice.options)
      // Some ask for no acknowledgement: what they chose has been taken in when this is answered.
      try disk.connection.barrier()
      #expect(device.mustBeDurable == !choice.flush, "\(choice)")
      let data = BytePattern(seed: UInt64(round)).bytes(at: 0, count: 4096)
      for queue in 0..<choice.queues {
        try disk.write(sector: UInt64(8 * queue), data, queue: queue)
        #expect(try disk.read(sector: UInt64(8 * queue), bytes: 4096, queue: queue) == data, "\(choice)")
      }
      // Rings that this one did not set up stand where a new ring does, whatever the one before did with them.
      for index in choice.queues..<4 {
        #expect(try disk.connection.getVringBase(UInt32(index)) == 0, "ring \(index) of \(choice)")
      }
      try leave(disk, round)
      #expect(try disk.arena.damagedGuards().isEmpty, "\(choice)")
    }
  }

  /// Goes as front-ends go: with everything stopped, at once, or with requests under way.
  private func leave(_ disk: BlockDriver, _ round: Int) throws {
    if round % 3 == 0 { try disk.stop() }
    if round % 3 == 1 {
      for queue in disk.queues {
        for sector in 0..<queue.depth { _ = try queue.add(.read(sector: UInt64(100 + sector), bytes: 512)) }
        queue.publish()
      }
    }
    disk.disconnect()
  }

  @Test("LC15 a log, a channel and negotiated protocol features are a session's own")
  func sessionsOwn() throws {
    let backend = try Backend(try Image().device())
    let disk = try BlockDriver(path: backend.socket)
    let log = try DirtyBitmap(memoryUpTo: 1 << 30)
    try disk.connection.setLogBase(log.description, descriptor: log.descriptor.raw)
    try disk.connection.setFeatures(disk.features | VirtioBits.logAll).accepted(.setFeatures)
    _ = try disk.read(sector: 0, bytes: 512)
    #expect(!log.take().isEmpty)
    disk.disconnect()
    let unlogged = try BlockDriver(path: backend.socket)
    _ = log.take()
    _ = try unlogged.read(sector: 0, bytes: 512)
    #expect(log.take().isEmpty)
    unlogged.disconnect()

    let next = try FrontendConnection.connect(to: backend.socket)
    _ = try next.getFeatures()
    // Nothing is negotiated: a message that needs it is refused, and without REPLY_ACK that is the end.
    try next.send(.getMaxMemSlots)
    try next.expectClosed()
  }
}
