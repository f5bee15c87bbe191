// A queue thread at work allocates nothing: counted on that thread, by the worker it runs.

import DeviceKit
import HostIO
import MallocCount
import Synchronization
import TestSupport
import Testing
import VirtQueue

/// Gives every chain back, and notes what its thread had allocated when it did.
private final class CountingDevice: VirtioDevice {
  let identity = DeviceIdentity(id: 0x7f, name: "count", queueLimit: 1, counters: ["chains"])
  let features: FeatureSet = []
  /// Allocations of the queue's thread, after so many chains.
  let allocations = Atomic<UInt64>(0)

  func start(_ queue: consuming QueueStart) throws(DeviceError) {
    queue.run { [self] in Worker(device: self) }
  }

  struct Worker: QueueWorker {
    let device: CountingDevice
    mutating func service<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
      while let chain = q.next() {
        q.count(0)
        device.allocations.store(malloc_count_here(), ordering: .relaxed)
        q.complete(chain, written: 0)
      }
    }
  }
}

@Suite("Allocations", .enabled(if: malloc_is_counted() != 0, "a sanitizer's allocator is not counted"))
struct AllocationTests {
  @Test("The counter sees an allocation of its thread")
  func sees() {
    let before = malloc_count_here()
    let memory = UnsafeMutableRawPointer.allocate(byteCount: 100, alignment: 16)
    #expect(malloc_count_here() > before)
    memory.deallocate()
  }

  @Test(
    "A thousand requests through a queue thread cost no allocation",
    .enabled(if: Built.isRelease, "counts what optimised code does: swift test -c release"),
    arguments: [PollPolicy.interrupt, .adaptive, .busy])
  func none(policy: PollPolicy) throws {
    let device = CountingDevice()
    let thread = try QueueThread(name: "count", cpus: [], policy: policy, seats: 1, files: 0)
    let host = try DeviceHost(device: device, threads: [thread])
    _ = try thread.start()
    defer { thread.finish() }
    let queue = try TinyQueue()
    let map = try GuestMemoryMap(
      generation: 1,
      regions: [
        GuestRegion(
          guestAddress: TinyQueue.guestBase, size: UInt64(queue.memory.length),
          userAddress: TinyQueue.userBase,
          host: queue.memory.base, owner: queue.memory)
      ])
    let setup = QueueSetup(
      layout: RingLayout(
        size: UInt16(queue.size), descriptorArea: queue.descriptorArea, driverArea: queue.availableArea,
        deviceArea: queue.usedArea, base: 0, indirect: false, eventIndex: false),
      features: [.version1], map: map, enabled: true, kick: queue.kick.raw, call: queue.call.raw,
      onFault: { _ in })
    try #require(host.start(0, setup) == nil)

    func send(_ count: Int) throws {
      for _ in 0..<count {
        queue.add([(queue.dataOffset, 1, false), (queue.dataOffset + 16, 1, true)])
        queue.sendKick()
        _ = try #require(queue.waitUsed())
      }
    }
    // Whatever is made once is made by then.
    try send(200)
    let before = device.allocations.load(ordering: .relaxed)
    try send(1000)
    #expect(device.allocations.load(ordering: .relaxed) - before == 0)
    _ = host.stop([0])
  }
}
