// The program killed with requests under way, of which the storage holds some back, and started again: only so are lost
// and doubled requests seen, since fast storage finishes nearly in order.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite(
  "Killed and started again",
  .enabled(if: HeldDisk.isPossible, "needs /dev/fuse and the right to mount: run as root"))
struct KillTests {
  private static let blocks = 64

  private func serve(_ disk: HeldDisk, in folder: TemporaryFolder) throws -> Daemon {
    try Daemon(
      [
        "blk", "--socket-path", "{folder}/s", "--blk-file", HeldDisk.pathInChild, "--num-queues", "2",
        "--threads", "2", "--lock-wait", "30", "--direct",
      ], in: folder, descriptors: [disk.descriptor])
  }

  @Test(
    "LC01 every request is answered exactly once and every answered write is kept, whenever the process is killed",
    arguments: [false, true])
  func killed(packed: Bool) throws {
    let disk = try HeldDisk(bytes: Self.blocks * Oracle.blockBytes, way: .asynchronous)
    let folder = try TemporaryFolder()
    var daemon = try serve(disk, in: folder)
    let driver = try daemon.connect {
      $0.driver.packed = packed
      $0.driver.queues = 2
      $0.driver.queueSize = 64
      $0.dataBytes = Oracle.blockBytes
      $0.depth = 20
    }
    let oracle = Oracle(driver, blocks: Self.blocks)
    func killAndRestart(holding held: Range<UInt64>) throws {
      daemon.process.signal(SIGKILL)
      // The kernel lets the process go when the storage has answered it: with the requests done, or not.
      disk.settle(doing: Bool.random())
      #expect(try daemon.process.waitExit(within: 60) == .signal(SIGKILL))
      // As long as any request of the dead one is under way, the image is in use.
      disk.release()
      // What it had answered is there, before anybody could mend it.
      try oracle.collect()
      oracle.compare(disk.bytes)
      unlink(daemon.socket)
      daemon = try serve(disk, in: folder)
      disk.hold(held)
      try driver.device.reconnect(.connect(to: daemon.socket, waiting: .seconds(60), timeout: .seconds(60)))
    }
    for round in 0..<Environment.rounds(4) {
      let chosen = Array((0..<Self.blocks).shuffled().prefix(24))
      // The first request and its neighbours are held: those that came later overtake them.
      let held = chosen[0]..<chosen[0] + Int.random(in: 1...3)
      let bytes = UInt64(held.lowerBound * Oracle.blockBytes)..<UInt64(held.upperBound * Oracle.blockBytes)
      disk.hold(bytes)
      try oracle.submit(chosen)
      try oracle.wait(untilOutstanding: Int.random(in: chosen.count { held.contains($0) }...chosen.count))
      try killAndRestart(holding: bytes)
      // Again with the same requests resubmitted and held, and new ones beside them.
      if round % 2 == 1 {
        try oracle.submit(Set(0..<Self.blocks).subtracting(chosen).shuffled().prefix(8))
        try killAndRestart(holding: bytes)
      }
      disk.release()
      try oracle.wait(untilOutstanding: 0)
      oracle.compare(disk.bytes)
      // Each ring goes on from there, and nothing comes twice.
      try oracle.submit((0..<Self.blocks).shuffled().prefix(10))
      try oracle.wait(untilOutstanding: 0)
      #expect(driver.queues.allSatisfy { $0.queue.ring.inFlight == 0 })
    }
    try daemon.stop()
  }

  @Test("LC02 a front-end that dies with 256 requests under way writes nothing over what the next one writes")
  func frontendDies() throws {
    let disk = try HeldDisk(bytes: 512 * Oracle.blockBytes, way: .asynchronous)
    let folder = try TemporaryFolder()
    let daemon = try serve(disk, in: folder)
    func connect() throws -> BlockDriver {
      try daemon.connect {
        $0.driver.queues = 2
        $0.driver.queueSize = 512
        $0.dataBytes = Oracle.blockBytes
        $0.depth = 128
        $0.driver.timeout = .seconds(60)
      }
    }
    let first = try connect()
    disk.hold(0..<UInt64(512 * Oracle.blockBytes))
    try Oracle(first, blocks: 256).submit(0..<256) { _ in true }
    try disk.waitHeld(1)
    let answered = DispatchSemaphore(value: 0)
    first.disconnect()
    // The next one is there at once; its rings start when the storage has let go of the old requests.
    Thread {
      answered.wait()
      disk.release()
    }.start()
    answered.signal()
    let second = try connect()
    let oracle = Oracle(second, blocks: 512)
    try oracle.submit(0..<256) { _ in true }
    try oracle.wait(untilOutstanding: 0)
    for start in stride(from: 256, to: 512, by: 128) {
      try oracle.submit(start..<start + 128) { _ in true }
      try oracle.wait(untilOutstanding: 0)
    }
    oracle.compare(disk.bytes)
    #expect(try second.arena.damagedGuards().isEmpty)
    try daemon.stop()
  }
}
