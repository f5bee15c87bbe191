// The program with a driver behind an IOMMU: inside its sandbox, and killed and started again.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("Behind an IOMMU")
struct IOMMUTests {
  /// Serves a driver's misses until it is let go.
  private final class Server {
    let iommu: FrontendIOMMU
    private let stop: Doorbell
    private let ended = DispatchSemaphore(value: 0)

    init(_ device: DeviceDriver, manner: FrontendIOMMU.Manner = .plain) throws {
      iommu = try FrontendIOMMU(device, manner: manner)
      stop = try Doorbell()
      let (iommu, stop, ended) = (iommu, stop, ended)
      let thread = Thread {
        do { try iommu.serve(until: stop) } catch { Issue.record("the IOMMU's thread: \(error)") }
        ended.signal()
      }
      thread.start()
    }

    deinit {
      stop.ring()
      ended.wait()
    }
  }

  @Test(
    "what a killed process had taken is finished by the next, once its addresses are translated there",
    arguments: [false, true])
  func killed(packed: Bool) throws {
    let folder = try TemporaryFolder()
    let image = try Image.make(in: folder)
    let options = DiskOptions.with {
      $0.driver.packed = packed
      $0.driver.queueSize = 64
      $0.driver.features |= VirtioBits.accessPlatform
      $0.driver.indirectCapacity = 16
      $0.dataBytes = 16384
    }
    let arena = try GuestArena(behindIOMMU: options.arenaBytes(), straight: 64 << 10)
    // Slow reads, so that some are under way when it ends.
    let limited = ["--iops-read", "20,burst=1"]
    var daemon = try Daemon.disk(limited, image: image.path, in: folder)
    let disk = try BlockDriver(
      .connect(to: daemon.socket, waiting: .seconds(10)), arena: arena, options)
    var server: Server? = try Server(disk.device)
    let data = BytePattern(seed: 9).bytes(at: 0, count: 16384)
    try disk.write(sector: 64, data)
    for round in 0..<3 {
      var slots: [UInt16] = []
      for _ in 0..<3 { slots.append(try disk.queues[0].submit(.read(sector: 64, bytes: 16384))) }
      let first = try disk.queues[0].wait(for: slots[0])
      #expect(first.input == data)
      daemon.process.kill()
      server = nil
      daemon = try Daemon.disk(round == 2 ? [] : limited, image: image.path, in: folder)
      try disk.device.reconnect(.connect(to: daemon.socket, waiting: .seconds(10)))
      server = try Server(disk.device)
      for slot in slots.dropFirst() {
        let result = try disk.queues[0].wait(for: slot)
        #expect(result.status == 0 && result.input == data && !result.overrun, "round \(round)")
      }
      #expect(try daemon.counters().sum("iotlbMisses") > 0)
      #expect(try daemon.counters().sum("faults") == 0)
    }
    withExtendedLifetime(server) {}
    try disk.stop()
  }
}
