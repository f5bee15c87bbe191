// What an operator says about a disk, as its driver sees it: --discard, --write-cache, --serial, --lock-wait.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("Options of a disk")
struct DiskOptionTests {
  @Test(
    "--discard says whether drivers are offered to discard; without, it is unsupported and changes nothing")
  func discard() throws {
    for isOn in [true, false] {
      let daemon = try Daemon.disk(["--discard", isOn ? "on" : "off"])
      let driver = try daemon.connect()
      #expect((driver.device.offeredFeatures & 1 << 13 != 0) == isOn)
      #expect((driver.config.maxDiscardSectors > 0) == isOn)
      let before = try driver.read(sector: 8, bytes: 4096)
      let status = try driver.perform(.discard([DiskSegment(sector: 8, sectors: 8)])).status
      #expect(status == (isOn ? DiskRequest.ok : DiskRequest.unsupported))
      #expect(try driver.read(sector: 8, bytes: 4096) == (isOn ? [UInt8](repeating: 0, count: 4096) : before))
      try daemon.stop()
    }
  }

  @Test(
    "--write-cache off offers no flush, and each write is durable when it completes",
    .enabled(if: access("/usr/bin/strace", X_OK) == 0, "needs strace"))
  func writeCache() throws {
    // A memory file system writes by calls, whose flags can be seen.
    let path = "/dev/shm/vhost-swiftd-\(UUID().uuidString)"
    try Data(count: 1 << 20).write(to: URL(fileURLWithPath: path))
    defer { unlink(path) }
    for isOn in [true, false] {
      let folder = try TemporaryFolder()
      let trace = folder.file("trace")
      let daemon = try Daemon.disk(
        ["--write-cache", isOn ? "on" : "off"], image: path, in: folder,
        prefix: ["strace", "-D", "-f", "-o", trace, "-e", "trace=pwritev2"])
      let driver = try daemon.connect()
      #expect((driver.device.offeredFeatures & 1 << 9 != 0) == isOn)
      for sector in 0..<5 as Range<UInt64> {
        try driver.write(sector: sector, [UInt8](repeating: 1, count: 512))
      }
      driver.disconnect()
      try daemon.stop()
      let writes = try String(contentsOfFile: trace, encoding: .utf8).split(separator: "\n").filter {
        $0.contains("pwritev2(")
      }
      #expect(writes.count == 5 && writes.allSatisfy { $0.contains("RWF_DSYNC") != isOn }, "\(writes)")
    }
  }

  @Test("Without --serial, each image has a serial of its own, the same each time")
  func serials() throws {
    let folder = try TemporaryFolder()
    let images = [try Image.make(in: folder), try Image.make(in: folder, "other.img")]
    func serial(_ image: Image, _ options: [String] = []) throws -> [UInt8] {
      let daemon = try Daemon.disk(options, image: image.path, in: folder)
      let result = try daemon.connect().perform(.getID())
      try daemon.stop()
      #expect(result.status == DiskRequest.ok)
      return result.input
    }
    let first = try serial(images[0])
    #expect(try serial(images[0]) == first && serial(images[1]) != first)
    #expect(first.contains { $0 != 0 })
    #expect(
      try serial(images[1], ["--serial", "mine"]) == Array("mine".utf8) + [UInt8](repeating: 0, count: 16))
  }

  @Test(
    "BK17 a ring that does not get the image within --lock-wait breaks, with one line; the next attempt gets it"
  )
  func lockWait() throws {
    let folder = try TemporaryFolder()
    let first = try Daemon.disk(in: folder)
    let holder = try first.connect()
    let second = try Daemon(
      [
        "blk", "--socket-path", "{folder}/t", "--blk-file", folder.file("disk.img"), "--incoming",
        "--lock-wait",
        "0.3",
      ], in: folder, listens: false)
    func attempt() throws -> BlockDriver {
      try BlockDriver(path: folder.file("t"), waiting: .seconds(20), options())
    }
    let clock = ContinuousClock()
    var refused = false
    let time = clock.measure {
      do {
        let driver = try attempt()
        refused = (try? driver.read(sector: 0, bytes: 512)) == nil
      } catch { refused = true }
    }
    #expect(refused && time >= .milliseconds(300), "\(time)")
    let lines = second.log.split(separator: "\n").filter { $0.contains("locked by another process") }
    #expect(lines.count == 1, "\(second.log)")
    try holder.write(sector: 0, [UInt8](repeating: 3, count: 512))
    holder.disconnect()
    try first.process.wait(until: "it lets go", within: 30) {
      (try? attempt().read(sector: 0, bytes: 512)) == [UInt8](repeating: 3, count: 512)
    }
    #expect(second.process.terminate() == .status(0))
    try first.stop()
  }
}
