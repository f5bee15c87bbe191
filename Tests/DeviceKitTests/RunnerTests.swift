// A device's queue from start to stop, without a wire.

import CLinux
import DeviceKit
import Glibc
import HostIO
import Testing
import TestSupport
import VirtQueue

/// Answers each chain with the first byte it can read, as many times as it may write.
final class EchoDevice: VirtioDevice {
  let identity = DeviceIdentity(id: 0x7f, name: "echo", queueLimit: 2, counters: ["echoed"])
  let features: FeatureSet = []

  func start(_ queue: consuming QueueStart) throws(DeviceError) { queue.run { EchoWorker() } }
}

struct EchoWorker: QueueWorker {
  mutating func service<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    while let chain = q.next() {
      let written = Self.echo(chain)
      q.count(0)
      q.complete(chain, written: written)
    }
  }

  private static func echo(_ chain: borrowing Chain) -> UInt32 {
    let byte = chain.readable.load(UInt8.self) ?? 0xff
    return chain.writable.fill { span in
      for i in 0..<span.byteCount { span.storeBytes(of: byte, toByteOffset: i, as: UInt8.self) }
      return true
    }
  }
}

struct RunnerTests {
  static func map(_ queue: TinyQueue) throws -> GuestMemoryMap {
    try GuestMemoryMap(
      generation: 1,
      regions: [
        GuestRegion(
          guestAddress: TinyQueue.guestBase, size: UInt64(queue.memory.length),
          userAddress: TinyQueue.userBase,
          host: queue.memory.base, owner: queue.memory)
      ])
  }

  static func setup(_ queue: TinyQueue, kick: Bool = true) throws -> QueueSetup {
    QueueSetup(
      layout: RingLayout(
        size: UInt16(queue.size), descriptorArea: queue.descriptorArea, driverArea: queue.availableArea,
        deviceArea: queue.usedArea, base: 0, indirect: false, eventIndex: false),
      features: [.version1], map: try map(queue), enabled: true, kick: kick ? queue.kick.raw : nil,
      call: queue.call.raw, onFault: { _ in })
  }

  @Test(
    "a chain made available and kicked comes back used, under every poll policy",
    arguments: [PollPolicy.interrupt, .adaptive, .busy])
  func echoes(policy: PollPolicy) throws {
    let thread = try QueueThread(name: "echo", cpus: [], policy: policy, seats: 2, files: 0)
    let host = try DeviceHost(device: EchoDevice(), threads: [thread])
    _ = try thread.start()
    defer { thread.finish() }
    let queue = try TinyQueue()
    #expect(host.start(0, try Self.setup(queue)) == nil)
    let at = queue.dataOffset
    for round in 0..<200 {
      queue.pointer(at).storeBytes(of: UInt8(truncatingIfNeeded: round), as: UInt8.self)
      let head = queue.add([(at, 1, false), (at + 16, 3, true)])
      queue.sendKick()
      let used = try #require(queue.waitUsed())
      #expect(used.head == head)
      #expect(used.length == 3)
      #expect(queue.pointer(at + 18).load(as: UInt8.self) == UInt8(truncatingIfNeeded: round))
    }
    #expect(host.stop([0, 1]) == [200, nil])
    #expect(host.counters[0].value(.chains) == 200)
    #expect(host.counters[0].value(QueueCounters.firstOwn) == 200)
  }

  @Test("a queue without a kick descriptor is polled")
  func polled() throws {
    let thread = try QueueThread(name: "echo", cpus: [], policy: .adaptive, seats: 2, files: 0)
    let host = try DeviceHost(device: EchoDevice(), threads: [thread])
    _ = try thread.start()
    defer { thread.finish() }
    let queue = try TinyQueue()
    #expect(host.start(1, try Self.setup(queue, kick: false)) == nil)
    for _ in 0..<20 {
      queue.add([(queue.dataOffset, 1, false), (queue.dataOffset + 16, 1, true)])
      #expect(queue.waitUsed() != nil)
    }
    #expect(host.stop([1]) == [20])
  }

  @Test("a chain that is there before the queue starts is served without a kick")
  func servedAtStart() throws {
    let thread = try QueueThread(name: "echo", cpus: [], policy: .interrupt, seats: 2, files: 0)
    let host = try DeviceHost(device: EchoDevice(), threads: [thread])
    _ = try thread.start()
    defer { thread.finish() }
    let queue = try TinyQueue()
    queue.add([(queue.dataOffset, 1, false), (queue.dataOffset + 16, 1, true)])
    #expect(host.start(0, try Self.setup(queue)) == nil)
    #expect(queue.waitUsed() != nil)
  }

  @Test("a disabled queue takes nothing until it is enabled")
  func disabled() throws {
    let thread = try QueueThread(name: "echo", cpus: [], policy: .interrupt, seats: 2, files: 0)
    let host = try DeviceHost(device: EchoDevice(), threads: [thread])
    _ = try thread.start()
    defer { thread.finish() }
    let queue = try TinyQueue()
    var setup = try Self.setup(queue)
    setup.enabled = false
    queue.add([(queue.dataOffset, 1, false), (queue.dataOffset + 16, 1, true)])
    #expect(host.start(0, setup) == nil)
    queue.sendKick()
    host.setEnabled(0, false)
    #expect(host.counters[0].value(.chains) == 0)
    host.setEnabled(0, true)
    #expect(queue.waitUsed() != nil)
  }

  @Test("a broken ring reports its fault once, and stops at the broken entry")
  func fault() throws {
    let thread = try QueueThread(name: "echo", cpus: [], policy: .interrupt, seats: 2, files: 0)
    let host = try DeviceHost(device: EchoDevice(), threads: [thread])
    _ = try thread.start()
    defer { thread.finish() }
    let queue = try TinyQueue()
    let faulted = Reply<QueueFault>()
    var setup = try Self.setup(queue)
    setup.onFault = { faulted.fulfil($0) }
    queue.add([(queue.dataOffset, 1, true), (queue.dataOffset, 1, false)])
    #expect(host.start(0, setup) == nil)
    #expect(faulted.wait(timeout: .seconds(20)) == .readableAfterWritable)
    #expect(host.stop([0]) == [0])
    #expect(host.counters[0].value(.faults) == 1)
  }
}
