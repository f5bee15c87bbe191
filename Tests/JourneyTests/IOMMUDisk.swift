// A disk whose driver is behind an IOMMU: I/O virtual addresses in rings and descriptors, pages in another order behind them,
// and a front-end that serves misses on a thread of its own.

import DeviceKit
import Foundation
import HostIO
import Testing
import VhostFrontend

final class IOMMUDisk {
  static let spare = 1 << 20
  let image: Image
  let backend: Backend
  let disk: BlockDriver
  let iommu: FrontendIOMMU
  /// Guest memory for data, from a page on.
  let data: UInt64
  private let stop: Doorbell
  private let served = DispatchSemaphore(value: 0)

  init(
    packed: Bool, queues: Int = 2, manner: FrontendIOMMU.Manner = .plain, rate: UInt64? = nil,
    depth: Int = 16
  ) throws {
    image = try Image()
    let device = try image.device()
    if let rate {
      device.limiter.set(
        RateLimits(requests: .init(read: Rate(perSecond: rate, burst: 1))), at: Monotonic.now)
    }
    backend = try Backend(device, threads: 2)
    let options = DiskOptions.with {
      $0.driver.packed = packed
      $0.driver.queues = queues
      $0.driver.queueSize = 64
      $0.driver.features |= VirtioBits.accessPlatform
      $0.driver.indirectCapacity = 16
      $0.depth = depth
      $0.dataBytes = 32768
    }
    // Rings come first in the arena, with tables that may lie anywhere.
    let arena = try GuestArena(
      behindIOMMU: options.arenaBytes(spare: Self.spare), straight: queues * (64 * (40 + 16 * 16) + 3 * 4096))
    disk = try BlockDriver(.connect(to: backend.socket), arena: arena, options)
    #expect(disk.features & VirtioBits.accessPlatform != 0)
    data = try arena.allocate(Self.spare / 2, alignment: 4096)
    iommu = try FrontendIOMMU(disk.device, manner: manner)
    stop = try Doorbell()
    let (iommu, stop, served) = (iommu, stop, served)
    let thread = Thread {
      do { try iommu.serve(until: stop) } catch { Issue.record("the IOMMU's thread: \(error)") }
      served.signal()
    }
    thread.start()
  }

  deinit {
    stop.ring()
    served.wait()
  }

  /// Waits for a condition that only a look can tell.
  func wait(_ what: Comment, _ condition: () throws -> Bool) throws {
    let idle = try Doorbell()
    let deadline = ContinuousClock.now + .seconds(30)
    while try !condition() {
      try #require(ContinuousClock.now < deadline, what)
      _ = idle.wait(timeout: .milliseconds(1))
    }
  }
}
