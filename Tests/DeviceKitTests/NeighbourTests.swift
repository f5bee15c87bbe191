// Queues that share a thread: what a quiet one waits for when its neighbours flood. Counted, not timed.

import DeviceKit
import Foundation
import HostIO
import Synchronization
import Testing
import TestSupport
import VirtQueue

/// Serves any number of queues, and counts what each has served in one line of numbers for all.
private final class CountingDevice: VirtioDevice {
  let identity: DeviceIdentity
  let features: FeatureSet = []
  /// Chains and bytes of all queues so far, as their one thread sees them.
  let chains = Atomic<Int>(0)
  let bytes = Atomic<Int>(0)
  /// What they were when the quiet queue was served last.
  let chainsAtQuiet = Atomic<Int>(0)
  let bytesAtQuiet = Atomic<Int>(0)
  static let quiet = 0

  init(queues: Int) { identity = DeviceIdentity(id: 0x7f, name: "counting", queueLimit: queues) }

  func start(_ queue: consuming QueueStart) throws(DeviceError) {
    let isQuiet = queue.index == Self.quiet
    queue.run { [self] in CountingWorker(device: self, isQuiet: isQuiet) }
  }
}

private struct CountingWorker: QueueWorker {
  let device: CountingDevice
  let isQuiet: Bool

  mutating func service<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    while let chain = q.next() {
      if isQuiet {
        device.chainsAtQuiet.store(device.chains.load(ordering: .relaxed), ordering: .relaxed)
        device.bytesAtQuiet.store(device.bytes.load(ordering: .relaxed), ordering: .relaxed)
      } else {
        device.bytes.add(chain.byteCount, ordering: .relaxed)
        device.chains.add(1, ordering: .relaxed)
      }
      q.complete(chain, written: 0)
    }
  }
}

@Suite("neighbours")
struct NeighbourTests {
  /// Keeps a ring full, with a kick for every chain, until told to stop.
  private static func flood(_ queue: TinyQueue, bytes: Int, until stop: borrowing Atomic<Bool>) {
    var outstanding = 0
    while !stop.load(ordering: .relaxed) {
      while outstanding < queue.size {
        queue.add([(queue.dataOffset, bytes, false)])
        queue.sendKick()
        outstanding += 1
      }
      if queue.waitUsed() != nil { outstanding -= 1 }
    }
    while outstanding > 0, queue.waitUsed() != nil { outstanding -= 1 }
  }

  @Test(
    "RS02 with its neighbours flooding, a quiet queue's request waits behind at most one budget of each of them",
    arguments: [(floods: 1, bytes: 1), (floods: 3, bytes: 1), (floods: 2, bytes: 300_000)])
  func budget(floods: Int, bytes: Int) throws {
    let device = CountingDevice(queues: floods + 1)
    let thread = try QueueThread(name: "crowd", cpus: [], policy: .adaptive, seats: floods + 1, files: 0)
    let host = try DeviceHost(device: device, threads: [thread])
    _ = try thread.start()
    defer { thread.finish() }
    // More than a budget of chains in each ring.
    let queues = try (0...floods).map { _ in try TinyQueue(size: 256) }
    for (index, queue) in queues.enumerated() {
      #expect(host.start(index, try RunnerTests.setup(queue)) == nil)
    }
    let stop = Stop()
    let flooders = DispatchGroup()
    for queue in queues.dropFirst() {
      let handed = Handed(queue)
      flooders.enter()
      Thread.detachNewThread {
        Self.flood(handed.queue, bytes: bytes, until: stop.flag)
        flooders.leave()
      }
    }
    // A thread begins when the machine has room for it.
    let patience = ContinuousClock.now + .seconds(60)
    while device.chains.load(ordering: .relaxed) <= 300, ContinuousClock.now < patience { sched_yield() }
    let quiet = queues[CountingDevice.quiet]
    var (mostChains, mostBytes) = (0, 0)
    for _ in 0..<300 {
      quiet.add([(quiet.dataOffset, 1, false)])
      // From here on the thread's next look finds it.
      let (chains, served) = (device.chains.load(ordering: .relaxed), device.bytes.load(ordering: .relaxed))
      quiet.sendKick()
      _ = try #require(quiet.waitUsed())
      mostChains = max(mostChains, device.chainsAtQuiet.load(ordering: .relaxed) - chains)
      mostBytes = max(mostBytes, device.bytesAtQuiet.load(ordering: .relaxed) - served)
    }
    stop.flag.store(true, ordering: .relaxed)
    #expect(flooders.wait(timeout: .now() + 60) == .success)
    _ = host.stop(Array(0...floods))
    #expect(device.chains.load(ordering: .relaxed) > 300, "the neighbours did not flood")
    #expect(mostChains <= floods * QueueBudget.chains)
    // The chain that crosses the budget is the last.
    #expect(mostBytes <= floods * (QueueBudget.bytes + bytes))
  }
}

private final class Stop: Sendable { let flag = Atomic<Bool>(false) }

/// A queue on its way to the one thread that uses it.
private struct Handed: @unchecked Sendable {
  let queue: TinyQueue
  init(_ queue: TinyQueue) { self.queue = queue }
}
