// Storage that fails, fills up, dawdles, does half of what it is asked, or is taken away: what the guest is told, and that
// all of it works again when the storage does (HOSTILE FT01, FT02, FT03, FT13).

import Foundation
import GuestHarness
import Testing
import VhostFrontend

/// A command that runs another with a file system of its own mounted, which is gone with the last process that has it.
private func mounted(_ commands: String, in folder: TemporaryFolder) -> [String] {
  [
    "unshare", "--mount", "--propagation", "private", "sh", "-c",
    "set -e; PATH=$PATH:/usr/sbin:/sbin; cd \(folder.path); \(commands); exec \"$@\"", "sh",
  ]
}

@Suite(
  "Faults of the storage",
  .enabled(if: HeldDisk.isPossible, "needs /dev/fuse and the right to mount: run as root"))
struct StorageFaultTests {
  private static let blocks = 128

  private func serve(_ descriptor: Int32, _ options: [String] = []) throws -> Daemon {
    try Daemon(
      ["blk", "--socket-path", "{folder}/s", "--blk-file", HeldDisk.pathInChild, "--num-queues", "2"]
        + options,
      descriptors: [descriptor])
  }

  private func connect(_ daemon: Daemon, packed: Bool = false) throws -> BlockDriver {
    try daemon.connect {
      $0.driver.packed = packed
      $0.driver.queues = 2
      $0.driver.queueSize = 64
      $0.dataBytes = Oracle.blockBytes
      $0.depth = 20
    }
  }

  // MARK: Errors

  @Test(
    "FT01: where one read in ten and one write in five fails, each failure is that request's error, and all else is right",
    .enabled(if: NbdDisk.isPossible, "needs nbdkit and nbdfuse"), arguments: [false, true])
  func errorRates(packed: Bool) throws {
    let disk = try NbdDisk(bytes: Self.blocks * Oracle.blockBytes, readErrors: 10, writeErrors: 20)
    let daemon = try serve(disk.descriptor, ["--direct"])
    let driver = try connect(daemon, packed: packed)
    let oracle = Oracle(driver, blocks: Self.blocks)
    let before = disk.record
    disk.isFailing = true
    oracle.toleratesErrors = true
    // No two lie side by side: those may be moved by one operation, and tried again one by one where it fails.
    let apart = Array(stride(from: 0, to: Self.blocks, by: 2))
    for _ in 0..<Environment.rounds(10) {
      try oracle.submit(apart.shuffled().prefix(40))
      try oracle.wait(untilOutstanding: 0)
    }
    disk.isFailing = false
    let record = disk.record
    #expect(oracle.failed > 0 && oracle.failed == record.failed, "\(oracle.failed), \(record)")
    #expect(oracle.completed - oracle.failed == record.done - before.done)
    #expect(try daemon.counters().sum("errors") == UInt64(oracle.failed))
    // Nothing of it lasts.
    oracle.toleratesErrors = false
    try oracle.compare { try driver.read(sector: UInt64($0 / 512), bytes: $1) }
    try daemon.stop()
  }

  /// An error that a system may give, and whether the request is tried again.
  struct Passing: CustomTestStringConvertible, Sendable {
    let name: String
    let error: Int32
    let isTriedAgain: Bool
    var testDescription: String { name }
  }

  @Test(
    "Storage that answers EINTR or EAGAIN is asked again, and EBUSY is that request's error",
    arguments: [
      Passing(name: "EINTR", error: EINTR, isTriedAgain: true),
      Passing(name: "EAGAIN", error: EAGAIN, isTriedAgain: true),
      Passing(name: "EBUSY", error: EBUSY, isTriedAgain: false),
    ], [HeldDisk.Way.direct, .asynchronous])
  func passingErrors(_ passing: Passing, way: HeldDisk.Way) throws {
    let disk = try HeldDisk(bytes: Self.blocks * Oracle.blockBytes, way: way)
    let daemon = try serve(disk.descriptor, way == .asynchronous ? ["--direct"] : [])
    let driver = try connect(daemon)
    let data = [UInt8](repeating: 9, count: 4096)
    for sector in [0, 8] as [UInt64] {
      for request in [DiskRequest.write(sector: sector, data), .read(sector: sector, bytes: 4096)] {
        disk.falter(3, with: passing.error)
        let expected = passing.isTriedAgain ? DiskRequest.ok : DiskRequest.ioError
        #expect(try driver.perform(request).status == expected)
        disk.falter(0, with: 0)
        #expect(try driver.perform(request).status == DiskRequest.ok)
      }
      #expect(try driver.read(sector: sector, bytes: 4096) == data)
    }
    #expect(try daemon.counters().sum("errors") == (passing.isTriedAgain ? 0 : 4))
    try daemon.stop()
  }

  @Test(
    "Storage that moves less than it was asked for is asked for the rest",
    arguments: [HeldDisk.Way.direct, .asynchronous], [512, 1536])
  func shortOperations(way: HeldDisk.Way, most: Int) throws {
    let disk = try HeldDisk(bytes: Self.blocks * Oracle.blockBytes, way: way)
    let daemon = try serve(disk.descriptor, way == .asynchronous ? ["--direct"] : [])
    let driver = try connect(daemon)
    for (index, framing) in [Framing.classic, .dataPieces(3), .dataPieces(8).indirect].enumerated() {
      let data = BytePattern(seed: UInt64(index)).bytes(at: 0, count: 4096)
      let sector = UInt64(16 * index)
      // What FUSE writes asynchronously it writes whole, or it is EIO. And of a short read of a file that is past the page
      // cache by its server's wish, Linux's io_uring (6.18) reads the same bytes again, and says that all is there.
      disk.shorten(to: way == .direct ? most : .max)
      #expect(try driver.perform(.write(sector: sector, data), framing).status == DiskRequest.ok)
      #expect(disk.bytes(at: Int(sector) * 512, count: 4096) == data)
      disk.shorten(to: way == .asynchronous ? most : .max)
      let result = try driver.perform(.read(sector: sector, bytes: 4096), framing)
      #expect(result.status == DiskRequest.ok && result.input == data && result.usedLength == 4097)
    }
    #expect(try daemon.counters().sum("continued") > 0)
    try daemon.stop()
  }

  // MARK: Time

  @Test(
    "FT03: with storage that takes 0 to 500 ms, in whatever order, each request is answered with its own data",
    arguments: [false, true])
  func randomLatency(packed: Bool) throws {
    let disk = try HeldDisk(bytes: Self.blocks * Oracle.blockBytes, way: .asynchronous)
    let daemon = try serve(disk.descriptor, ["--direct"])
    let driver = try connect(daemon, packed: packed)
    let oracle = Oracle(driver, blocks: Self.blocks)
    disk.delay(upToMilliseconds: 500)
    for _ in 0..<Environment.rounds(4) {
      try oracle.submit((0..<Self.blocks).shuffled().prefix(40))
      try oracle.wait(untilOutstanding: 0)
    }
    #expect(oracle.overtaken > 0, "some answers come before earlier ones")
    oracle.compare(disk.bytes)
    try daemon.stop()
  }

  // MARK: Room

  @Test("FT02: a full file system is an error of each write there, and none any more when there is room")
  func full() throws {
    let folder = try Self.folderWithMount()
    let daemon = try Daemon.disk(
      image: folder.file("mount/disk.img"), in: folder,
      prefix: mounted(
        """
        mount -t tmpfs -o size=1m none mount; head -c 786432 /dev/zero >mount/filler; truncate -s 8M mount/disk.img
        """, in: folder))
    let driver = try daemon.connect()
    let data = [UInt8](repeating: 0x44, count: 4096)
    var accepted: [UInt64] = []
    var refused: [UInt64] = []
    for sector in stride(from: 0, to: 1024, by: 8) as StrideTo<UInt64> {
      let status = try driver.perform(.write(sector: sector, data)).status
      if status == DiskRequest.ok { accepted.append(sector) } else { refused.append(sector) }
      #expect(status == DiskRequest.ok || status == DiskRequest.ioError)
    }
    #expect(accepted.count > 32 && refused.count > 32, "\(accepted.count) written, \(refused.count) refused")
    #expect(try daemon.counters().sum("errors") == UInt64(refused.count))
    for sector in accepted { #expect(try driver.read(sector: sector, bytes: 4096) == data) }
    for sector in refused {
      #expect(try driver.read(sector: sector, bytes: 4096) == [UInt8](repeating: 0, count: 4096))
    }
    #expect(unlink("/proc/\(daemon.pid)/root\(daemon.folder.file("mount/filler"))") == 0)
    for sector in refused { try driver.write(sector: sector, data) }
    for sector in accepted + refused { #expect(try driver.read(sector: sector, bytes: 4096) == data) }
    try daemon.stop()
  }

  @Test("FT02: with --on-enospc wait a write waits for room, and reads go on meanwhile")
  func waitsForRoom() throws {
    let folder = try Self.folderWithMount()
    let daemon = try Daemon.disk(
      ["--on-enospc", "wait"], image: folder.file("mount/disk.img"), in: folder,
      prefix: mounted(
        """
        mount -t tmpfs -o size=1m none mount; truncate -s 8M mount/disk.img
        dd if=/dev/zero of=mount/filler bs=64k 2>/dev/null || true
        """, in: folder))
    let driver = try daemon.connect()
    let data = [UInt8](repeating: 0x45, count: 8192)
    let slot = try driver.queues[0].submit(.write(sector: 64, data))
    let deadline = ContinuousClock.now + .seconds(30)
    while try daemon.counters().sum("waits") < 2, ContinuousClock.now < deadline {
      #expect(try driver.perform(.read(sector: 1024, bytes: 512)).status == DiskRequest.ok)
    }
    #expect(try daemon.counters().sum("waits") >= 2 && driver.queues[0].pollResult() == nil)
    #expect(unlink("/proc/\(daemon.pid)/root\(daemon.folder.file("mount/filler"))") == 0)
    #expect(try driver.queues[0].wait(for: slot).status == DiskRequest.ok)
    #expect(try driver.read(sector: 64, bytes: 8192) == data)
    #expect(try daemon.counters().sum("errors") == 0)
    try daemon.stop()
  }

  @Test(
    "FT02: the same where io_uring does the writing", arguments: [HeldDisk.Way.direct, .asynchronous],
    [false, true])
  func fullThroughTheRing(way: HeldDisk.Way, waits: Bool) throws {
    let disk = try HeldDisk(bytes: Self.blocks * Oracle.blockBytes, way: way)
    let daemon = try serve(
      disk.descriptor,
      (way == .asynchronous ? ["--direct"] : []) + ["--on-enospc", waits ? "wait" : "report"])
    let driver = try connect(daemon)
    let data = [UInt8](repeating: 0x46, count: 4096)
    disk.fail(4096..<8192, with: ENOSPC)
    let slot = try driver.queues[0].submit(.write(sector: 8, data))
    try driver.write(sector: 32, data)
    if waits {
      try daemon.process.wait(until: "it waits for room", within: 30) {
        try daemon.counters().sum("waits") > 0
      }
      #expect(try driver.queues[0].pollResult() == nil)
    } else {
      #expect(try driver.queues[0].wait(for: slot).status == DiskRequest.ioError)
    }
    disk.fail(0..<0)
    if waits {
      #expect(try driver.queues[0].wait(for: slot).status == DiskRequest.ok)
    } else {
      try driver.write(sector: 8, data)
    }
    #expect(disk.bytes(at: 4096, count: 4096) == data)
    try daemon.stop()
  }

  // MARK: A file system that turns read-only

  @Test(
    "FT13: a file system that becomes read-only under us is an error of each write, and reads go on",
    .enabled(if: FileManager.default.fileExists(atPath: "/dev/loop-control"), "needs loop devices"),
    arguments: [[], ["--direct"]])
  func readOnlyFileSystem(options: [String]) throws {
    let folder = try Self.folderWithMount()
    let daemon = try Daemon.disk(
      options, image: folder.file("mount/disk.img"), in: folder,
      prefix: mounted(
        """
        truncate -s 16M fs; mkfs.ext4 -q -F fs; mount -o loop fs mount; head -c 4194304 /dev/zero >mount/disk.img; sync
        """, in: folder))
    let driver = try daemon.connect()
    let data = [UInt8](repeating: 0x47, count: 4096)
    try driver.write(sector: 8, data)
    try driver.flush()
    // As the file system itself does when it finds an error. One with files open for writing is made read-only no other way.
    let mount = daemon.folder.file("mount")
    try Tool.run(
      "nsenter", ["--target", "\(daemon.pid)", "--mount", "mount", "-o", "remount,abort", mount])
    // The first may be what tells the file system.
    _ = try driver.perform(.write(sector: 16, data))
    try daemon.process.wait(until: "the file system is read-only", within: 30) {
      ProcessFacts(daemon.process).text("mounts").split(separator: "\n").contains {
        $0.contains(" \(mount) ext4 ") && ($0.contains(" ro,") || $0.contains("emergency_ro"))
      }
    }
    for sector in [16, 24, 4096] as [UInt64] {
      #expect(try driver.perform(.write(sector: sector, data)).status == DiskRequest.ioError)
    }
    #expect(try driver.read(sector: 8, bytes: 4096) == data)
    #expect(
      try driver.perform(.writeZeroes([DiskSegment(sector: 8, sectors: 8)])).status == DiskRequest.ioError)
    #expect(try daemon.counters().sum("errors") >= 4)
    driver.disconnect()
    #expect(try daemon.connect().read(sector: 8, bytes: 4096) == data)
    try daemon.stop()
  }

  @Test(
    "FT13: EROFS from the storage is that write's error", arguments: [HeldDisk.Way.direct, .asynchronous])
  func readOnlyAnswer(way: HeldDisk.Way) throws {
    let disk = try HeldDisk(bytes: Self.blocks * Oracle.blockBytes, way: way)
    let daemon = try serve(disk.descriptor, way == .asynchronous ? ["--direct"] : [])
    let driver = try connect(daemon)
    disk.fail(0..<4096, with: EROFS)
    let data = [UInt8](repeating: 1, count: 4096)
    #expect(try driver.perform(.write(sector: 0, data)).status == DiskRequest.ioError)
    try driver.write(sector: 8, data)
    disk.fail(0..<0)
    try driver.write(sector: 0, data)
    try daemon.stop()
  }

  /// A folder with a place to mount at.
  private static func folderWithMount() throws -> TemporaryFolder {
    let folder = try TemporaryFolder()
    try FileManager.default.createDirectory(atPath: folder.file("mount"), withIntermediateDirectories: false)
    return folder
  }
}
