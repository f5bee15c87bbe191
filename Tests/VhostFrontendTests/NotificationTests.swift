// Driver and device on two threads: whoever sleeps is woken.

import Foundation
import Synchronization
import Testing
import VhostFrontend

@Suite("Notifications between threads") struct NotificationTests {
  func makeDisk(
    packed: Bool, eventIndex: Bool, _ change: (inout DiskOptions) -> Void = { _ in }
  ) throws -> (BlockDriver, ToyBackend) {
    var options = DiskOptions.with {
      $0.driver.packed = packed
      if !eventIndex { $0.driver.features &= ~VirtioBits.eventIndex }
      $0.driver.queueSize = 32
      $0.depth = 8
      $0.driver.timeout = .seconds(10)
    }
    change(&options)
    let (front, back) = try FrontendConnection.pair()
    let arena = try GuestArena(bytes: options.arenaBytes())
    let toy = ToyBackend(back, arena: arena)
    return (try BlockDriver(front, arena: arena, options), toy)
  }

  @Test(
    "bursts of any size, each waited for asleep, lose no kick and no call", arguments: [false, true],
    [false, true])
  func bursts(packed: Bool, eventIndex: Bool) throws {
    let (disk, _) = try makeDisk(packed: packed, eventIndex: eventIndex)
    let queue = disk.queues[0]
    var dice = Dice(seed: 11)
    var sent = 0
    while sent < 6000 {
      let burst = Int.random(in: 1...8, using: &dice)
      for _ in 0..<burst {
        _ = try queue.add(.flush)
        if Bool.random(using: &dice) { queue.publish() }
      }
      queue.publish()
      for _ in 0..<burst { #expect(try queue.waitNext().result.status == 0) }
      sent += burst
    }
    let counters = queue.queue.ring.counters
    #expect(counters.used == UInt64(sent))
    #expect(queue.queue.callsReceived > 0)
    #expect(queue.queue.ring.inFlight == 0)
  }

  /// A device that looks at the ring all the time, and answers after a moment that is another each time: its
  /// answers come before, between and after the driver's look at the ring and its request for a call.
  final class BusyDevice: @unchecked Sendable {
    private let device: any DeviceModel
    private let call: Doorbell
    private let ends = Atomic(false)
    private let finished = DispatchSemaphore(value: 0)

    init(_ device: any DeviceModel, call: Doorbell) {
      (self.device, self.call) = (device, call)
      Thread { [self] in
        run()
        finished.signal()
      }.start()
    }

    private func run() {
      var dice = Dice(seed: 3)
      while !ends.load(ordering: .relaxed) {
        guard let chain = device.next() else { continue }
        for _ in 0..<Int.random(in: 0...100, using: &dice) { _ = dice.next() }
        device.complete(chain, written: 1)
        if device.publish() { call.ring() }
      }
    }

    func end() {
      ends.store(true, ordering: .relaxed)
      finished.wait()
    }
  }

  @Test(
    "an answer just as the driver falls asleep wakes it all the same", arguments: [false, true],
    [false, true])
  func fallingAsleep(packed: Bool, eventIndex: Bool) throws {
    let arena = try GuestArena(bytes: 1 << 20)
    let options = DriverRingOptions(size: 8, eventIndex: eventIndex)
    let queue = try QueueDriver(index: 0, options, packed: packed, in: arena)
    let model: any DeviceModel =
      packed
      ? try PackedDevice(queue.ring.areas, size: 8, eventIndex: eventIndex, in: arena)
      : try SplitDevice(queue.ring.areas, size: 8, eventIndex: eventIndex, in: arena)
    let device = BusyDevice(model, call: queue.call)
    defer { device.end() }
    for round in 0..<20_000 {
      queue.ring.disarm()
      let token = try queue.submit([DescriptorSpec(0x1000, 1)])
      #expect(try queue.wait(timeout: .seconds(10)) == UsedChain(token: token, length: 1), "round \(round)")
    }
  }

  @Test("without a call descriptor the driver looks for itself", arguments: [false, true])
  func withoutCall(packed: Bool) throws {
    let (disk, _) = try makeDisk(packed: packed, eventIndex: true) { $0.driver.withoutCall = true }
    for _ in 0..<200 { try disk.flush() }
    #expect(disk.queues[0].queue.collectCalls() == 0)
  }

  @Test("the fast path runs without the slots' requests getting mixed up", arguments: [false, true])
  func fastPath(packed: Bool) throws {
    let (disk, _) = try makeDisk(packed: packed, eventIndex: true) { $0.driver.withoutCall = true }
    for sector in 0..<64 {
      try disk.write(sector: UInt64(sector), [UInt8](repeating: UInt8(sector), count: 512))
    }
    let queue = disk.queues[0]
    var asked: [UInt16: UInt8] = [:]
    var (sent, done) = (0, 0)
    let end = ContinuousClock.now + .seconds(20)
    while done < 3000 {
      try #require(ContinuousClock.now < end && queue.queue.ring.fault == nil, "\(done) of \(sent) came back")
      while sent < 3000 {
        let slot = queue.submit(
          type: DiskRequest.Kind.read, sector: UInt64(sent % 64), bytes: 512, deviceWrites: true)
        guard let slot else { break }
        #expect(asked[slot] == nil)
        asked[slot] = UInt8(sent % 64)
        sent += 1
      }
      queue.publish()
      guard let completion = queue.poll() else { continue }
      let expected = try #require(asked[completion.slot])
      asked[completion.slot] = nil
      #expect(completion.status == 0)
      #expect(completion.used.length == 513)
      #expect(
        try disk.arena.read(at: queue.dataAddress(of: completion.slot), count: 512)
          == [UInt8](repeating: expected, count: 512))
      done += 1
    }
    #expect(asked.isEmpty)
  }
}
