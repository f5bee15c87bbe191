// Storage that does not answer: what goes on beside it, and how the program ends over it. The storage is a FUSE file whose
// requests are held back.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite(
  "Storage that stalls",
  .enabled(if: HeldDisk.isPossible, "needs /dev/fuse and the right to mount: run as root"))
struct SlowStorageTests {
  /// The first MiB is held back; sector 8192 lies beyond it.
  static let region: Range<UInt64> = 0..<1 << 20
  static let freeSector: UInt64 = 8192

  private func serve(_ disk: HeldDisk, _ options: [String] = []) throws -> Daemon {
    let arguments = ["blk", "--socket-path", "{folder}/s", "--blk-file", HeldDisk.pathInChild]
    return try Daemon(arguments + options, descriptors: [disk.descriptor])
  }

  @Test(
    "A queue goes on while another one's storage stalls, on a thread of its own",
    arguments: ["read", "write"])
  func twoThreads(kind: String) throws {
    let stalled: DiskRequest =
      kind == "read"
      ? .read(sector: 0, bytes: 4096) : .write(sector: 0, [UInt8](repeating: 7, count: 4096))
    try progress(HeldDisk(bytes: 8 << 20), threads: 2, stalled: stalled)
  }

  @Test("Two queues on one thread: one goes on while the other's read stalls behind the page cache")
  func oneThread() throws {
    try progress(HeldDisk(bytes: 8 << 20, way: .cached), threads: 1, stalled: .read(sector: 0, bytes: 4096))
  }

  private func progress(_ disk: HeldDisk, threads: Int, stalled: DiskRequest) throws {
    let daemon = try serve(disk, ["--num-queues", "2", "--threads", "\(threads)"])
    let driver = try daemon.connect { $0.driver.queues = 2 }
    disk.hold(Self.region)
    let slot = try driver.queues[0].submit(stalled)
    try disk.waitHeld(1)
    for i in 0..<200 {
      let data = [UInt8](repeating: UInt8(i), count: 4096)
      try driver.write(sector: Self.freeSector + UInt64(8 * i), data, queue: 1)
      #expect(try driver.read(sector: Self.freeSector + UInt64(8 * i), bytes: 4096, queue: 1) == data)
    }
    #expect(try driver.queues[0].pollResult() == nil, "what is held has not completed")
    disk.release()
    #expect(try driver.queues[0].wait(for: slot).status == DiskRequest.ok)
    let written = stalled.output.isEmpty ? [UInt8](repeating: 0, count: 4096) : stalled.output
    #expect(try driver.read(sector: 0, bytes: 4096) == written)
    try daemon.stop()
  }

  @Test("A read goes on while another queue's flush stalls")
  func stalledFlush() throws {
    let disk = try HeldDisk(bytes: 8 << 20)
    let daemon = try serve(disk, ["--num-queues", "2", "--threads", "2"])
    let driver = try daemon.connect { $0.driver.queues = 2 }
    disk.hold(0..<0, flushes: true)
    let flush = try driver.queues[0].submit(.flush)
    try disk.waitHeld(1)
    for _ in 0..<200 { _ = try driver.read(sector: Self.freeSector, bytes: 4096, queue: 1) }
    #expect(try driver.queues[0].pollResult() == nil, "what is held has not completed")
    disk.release()
    #expect(try driver.queues[0].wait(for: flush).status == DiskRequest.ok)
    try daemon.stop()
  }

  @Test("BK12 an error of the storage on one sector fails the requests that touch it, and no other")
  func badSector() throws {
    let disk = try HeldDisk(bytes: 8 << 20)
    let daemon = try serve(disk, ["--num-queues", "2"])
    let driver = try daemon.connect { $0.driver.queues = 2 }
    let data = [UInt8](repeating: 5, count: 16384)
    try driver.write(sector: 0, data)
    disk.fail(4096..<4608)
    for framing in [Framing.classic, .dataPieces(4), .dataPieces(4).indirect] {
      for queue in 0..<2 {
        let bad = try driver.queues[queue].submit(.read(sector: 0, bytes: 16384), framing)
        let worse = try driver.queues[queue].submit(
          .write(sector: 8, [UInt8](repeating: 6, count: 512)), framing)
        let good = try driver.queues[queue].submit(.read(sector: 16, bytes: 4096), framing)
        #expect(try driver.queues[queue].wait(for: bad).status == DiskRequest.ioError)
        #expect(try driver.queues[queue].wait(for: worse).status == DiskRequest.ioError)
        let result = try driver.queues[queue].wait(for: good)
        #expect(result.status == DiskRequest.ok && result.input == Array(data[..<4096]))
      }
    }
    disk.fail(0..<0)
    #expect(try driver.read(sector: 0, bytes: 16384) == data)
    try daemon.stop()
  }

  @Test("LC10 SIGTERM takes no new request, finishes those under way, and ends with 0")
  func drains() throws {
    let disk = try HeldDisk(bytes: 8 << 20)
    let daemon = try serve(disk, ["--num-queues", "2", "--threads", "2"])
    let driver = try daemon.connect { $0.driver.queues = 2 }
    disk.hold(Self.region)
    let stuck = try driver.queues[0].submit(.read(sector: 0, bytes: 4096))
    try disk.waitHeld(1)
    daemon.process.signal(SIGTERM)
    // Requests are served until the signal has taken effect, and no longer.
    let deadline = ContinuousClock.now + .seconds(30)
    var stopped = false
    while !stopped, ContinuousClock.now < deadline {
      let slot = try driver.queues[1].submit(.read(sector: Self.freeSector, bytes: 512))
      do { _ = try driver.queues[1].wait(for: slot, timeout: .seconds(1)) } catch { stopped = true }
    }
    #expect(stopped, "new requests are still served")
    #expect(daemon.process.exit == nil, "it waits for what is under way")
    disk.release()
    let result = try driver.queues[0].wait(for: stuck)
    #expect(result.status == DiskRequest.ok && result.input == [UInt8](repeating: 0, count: 4096))
    #expect(try daemon.process.waitExit(within: 30) == .status(0), "\(daemon.log)")
    #expect(access(daemon.socket, F_OK) != 0)
    #expect(try driver.queues[1].pollResult() == nil, "what came after the signal is the next process's")
  }

  @Test("LC10 --drain-timeout ends the wait for storage, with 0 and without the socket")
  func timeout() throws {
    let disk = try HeldDisk(bytes: 8 << 20)
    let daemon = try serve(disk, ["--drain-timeout", "0.5", "--stats", "{folder}/stats"])
    let driver = try daemon.connect()
    disk.hold(Self.region)
    let stuck = try driver.queues[0].submit(.read(sector: 0, bytes: 4096))
    try disk.waitHeld(1)
    let start = ContinuousClock.now
    daemon.process.signal(SIGTERM)
    #expect(try daemon.process.waitExit(within: 30) == .status(0), "\(daemon.log)")
    let time = ContinuousClock.now - start
    #expect(time >= .milliseconds(500), "ended after \(time)")
    #expect(access(daemon.socket, F_OK) != 0)
    #expect(throws: FrontendError.self) { try driver.queues[0].wait(for: stuck, timeout: .milliseconds(100)) }
    let stats = try String(contentsOfFile: daemon.folder.file("stats"), encoding: .utf8)
    #expect(stats.contains(#""reads":1"#), "\(stats)")
  }

  @Test("LC10 A second SIGTERM ends it at once, with 0 and without the socket")
  func secondSignal() throws {
    let disk = try HeldDisk(bytes: 8 << 20)
    let daemon = try serve(disk, ["--drain-timeout", "600"])
    let driver = try daemon.connect()
    disk.hold(Self.region)
    _ = try driver.queues[0].submit(.read(sector: 0, bytes: 4096))
    try disk.waitHeld(1)
    daemon.process.signal(SIGTERM)
    // Two of one signal that come together are one: the first has to be taken before the second is sent.
    try daemon.process.wait(until: "the first SIGTERM is taken", within: 30) {
      ProcessFacts(daemon.process).pendingSignals & (1 << UInt64(SIGTERM - 1)) == 0
    }
    daemon.process.signal(SIGTERM)
    #expect(try daemon.process.waitExit(within: 30) == .status(0), "\(daemon.log)")
    #expect(access(daemon.socket, F_OK) != 0)
  }

  @Test(
    "SP32 A front-end that goes with requests under way holds up the next one only until their storage answers"
  )
  func nextFrontend() throws {
    let disk = try HeldDisk(bytes: 8 << 20)
    let daemon = try serve(disk)
    let first = try daemon.connect()
    disk.hold(Self.region)
    _ = try first.queues[0].submit(.write(sector: 0, [UInt8](repeating: 1, count: 4096)))
    try disk.waitHeld(1)
    first.disconnect()
    let second = try FrontendConnection.connect(to: daemon.socket)
    try second.send(.getFeatures)
    #expect(throws: FrontendError.self, "served while the old session writes") {
      try second.receiveReply(to: .getFeatures, timeout: .milliseconds(300))
    }
    disk.release()
    _ = try second.receiveReply(to: .getFeatures, size: 8, timeout: .seconds(30))
    second.disconnect()
    let third = try daemon.connect()
    #expect(try third.read(sector: 0, bytes: 4096) == [UInt8](repeating: 1, count: 4096))
    try daemon.stop()
  }
}
