// Guest memory as front-ends give and take it while requests are under way: other tables, slots by the hundred, huge pages.

import CLinux
import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("Guest memory of a running disk")
struct MemoryTests {
  /// Where data of these tests lies, apart from the rings.
  private static let second: UInt64 = 1 << 32

  private func options(_ protocolFeatures: UInt64? = nil) -> DiskOptions {
    DaemonTests.options {
      $0.driver.protocolFeatures = protocolFeatures
      $0.depth = 8
    }
  }

  /// Rings and slots in one region, and the regions beside it, each of a page unless said otherwise.
  private func arena(_ others: [ArenaRegion]) throws -> GuestArena {
    try GuestArena(
      regions: [ArenaRegion(at: 0x10_0000, bytes: options().arenaBytes(), file: others.count)] + others)
  }

  @Test(
    "A request that is under way finishes on the memory it came with, whatever became of the table",
    .enabled(if: HeldDisk.isPossible, "needs /dev/fuse and the right to mount: run as root"),
    arguments: [false, true])
  func underWay(slots: Bool) throws {
    let disk = try HeldDisk(bytes: 1 << 20, way: .asynchronous)
    let daemon = try Daemon(
      ["blk", "--socket-path", "{folder}/s", "--blk-file", HeldDisk.pathInChild, "--direct"],
      descriptors: [disk.descriptor])
    let arena = try arena([ArenaRegion(at: Self.second, bytes: 1 << 20)])
    let features = ProtocolBits.replyAck | ProtocolBits.config | (slots ? ProtocolBits.configureMemSlots : 0)
    let driver = try BlockDriver(
      .connect(to: daemon.socket, waiting: .seconds(20), timeout: .seconds(30)), arena: arena,
      options(features))
    let front = driver.connection
    let data = BytePattern(seed: 4).bytes(at: 0, count: 4096)
    try driver.write(sector: 0, data)
    for round in 0..<20 {
      disk.hold(0..<4096)
      // Two that are held: one into the memory that goes, one out of it.
      var read = DiskRequest.read(sector: 0, bytes: 4096)
      read.dataAddress = Self.second
      try arena.write([UInt8](repeating: 0, count: 4096), at: Self.second)
      let slot = try driver.queues[0].submit(read)
      try disk.waitHeld(1)
      if slots {
        #expect(try front.remMemReg(arena.table[1]) == .ok)
      } else {
        #expect(try front.setMemTable([arena.table[0]], descriptors: [arena.descriptors[0]]) == .ok)
      }
      // What comes now finds no memory there, and the ring goes on.
      var late = DiskRequest.read(sector: 64, bytes: 4096)
      late.dataAddress = Self.second
      let lateSlot = try driver.queues[0].submit(late)
      #expect(try driver.read(sector: 128, bytes: 512) == [UInt8](repeating: 0, count: 512), "round \(round)")
      disk.release()
      #expect(try driver.queues[0].wait(for: slot).input == data)
      #expect(try driver.queues[0].wait(for: lateSlot).status == DiskRequest.ioError)
      if slots {
        #expect(try front.addMemReg(arena.table[1], descriptor: arena.descriptors[1]) == .ok)
      } else {
        #expect(try front.setMemTable(arena.table, descriptors: arena.descriptors) == .ok)
      }
      #expect(try driver.perform(read).input == data)
    }
    try daemon.stop()
  }

  @Test("Requests reach each of five hundred regions, which come and go while requests run")
  func slots() throws {
    let daemon = try Daemon.disk()
    let image = Image(path: daemon.folder.file("disk.img"), bytes: 8 << 20)
    let count = 500
    let arena = try arena(
      (0..<count).map {
        ArenaRegion(at: Self.second + UInt64($0) << 20, bytes: 4096, fileOffset: UInt64($0) * 4096)
      })
    let driver = try BlockDriver(
      .connect(to: daemon.socket, waiting: .seconds(20), timeout: .seconds(30)), arena: arena, options())
    #expect(driver.device.maxMemSlots ?? 0 > UInt64(count))
    func reads(_ index: Int) throws -> Bool {
      var request = DiskRequest.read(sector: UInt64(index), bytes: 1024)
      request.dataAddress = arena.regions[index].guestAddress
      return try driver.perform(request).input == image.read(sector: index, count: 1024)
    }
    for index in 1...count { #expect(try reads(index)) }
    for round in 0..<200 {
      let index = 1 + round * 7 % count
      let slot = try driver.queues[0].submit(.read(sector: 9, bytes: 4096))
      #expect(try driver.connection.remMemReg(arena.table[index]) == .ok)
      #expect(
        try driver.connection.addMemReg(arena.table[index], descriptor: arena.descriptors[index]) == .ok)
      #expect(try driver.queues[0].wait(for: slot).input == image.read(sector: 9, count: 4096))
      #expect(try reads(index))
    }
    try daemon.stop()
  }

  /// Whether there is a huge page to be had.
  private static let hasHugePages: Bool = {
    guard let arena = try? GuestArena(bytes: 2 << 20, hugePages: true) else { return false }
    let free = (try? String(contentsOfFile: "/proc/meminfo", encoding: .utf8))?.split(separator: "\n").first {
      $0.hasPrefix("HugePages_Free:")
    }?.split(separator: " ").last.flatMap { Int($0) }
    let surplus = (try? String(contentsOfFile: "/proc/sys/vm/nr_overcommit_hugepages", encoding: .utf8))?
      .trimmingCharacters(in: .whitespacesAndNewlines)
    return withExtendedLifetime(arena) { (free ?? 0) + (surplus.flatMap { Int($0) } ?? 0) >= 8 }
  }()

  @Test(
    "An image on hugetlbfs, which has no write, is written, zeroed and given back all the same",
    .enabled(if: hasHugePages, "no huge pages: sysctl vm.nr_overcommit_hugepages=16"))
  func hugeImage() throws {
    // MFD_CLOEXEC, MFD_HUGETLB, MFD_HUGE_2MB.
    let file = clx_memfd_create("huge-image", 1 | 4 | 21 << 26)
    defer { close(file) }
    #expect(file >= 0 && ftruncate(file, 8 << 20) == 0)
    let daemon = try Daemon.disk(image: "/proc/\(getpid())/fd/\(file)")
    let driver = try daemon.connect()
    for sector in [0, 7, 4095, 16000] as [UInt64] {
      let data = BytePattern(seed: sector).bytes(at: 0, count: 8192)
      try driver.write(sector: sector, data)
      #expect(try driver.read(sector: sector, bytes: 8192) == data)
      var onHost = [UInt8](repeating: 0, count: 8192)
      #expect(pread(file, &onHost, 8192, off_t(sector * 512)) == 8192 && onHost == data)
    }
    try driver.flush()
    let zeros = [UInt8](repeating: 0, count: 4096)
    try driver.writeZeroes([DiskSegment(sector: 8, sectors: 8)])
    #expect(try driver.read(sector: 8, bytes: 4096) == zeros)
    try driver.discard([DiskSegment(sector: 0, sectors: 4096)])
    #expect(try driver.read(sector: 0, bytes: 4096) == zeros)
    driver.disconnect()
    try daemon.stop()
  }

  @Test(
    "Guest memory of huge pages carries rings and data, through the page cache and past it",
    .enabled(if: hasHugePages, "no huge pages: sysctl vm.nr_overcommit_hugepages=16"),
    arguments: [[], ["--direct"]])
  func hugePages(way: [String]) throws {
    let daemon = try Daemon.disk(way)
    let image = Image(path: daemon.folder.file("disk.img"), bytes: 8 << 20)
    let arena = try GuestArena(bytes: 4 << 20, hugePages: true)
    let driver = try BlockDriver(
      .connect(to: daemon.socket, waiting: .seconds(20), timeout: .seconds(30)), arena: arena, options())
    for sector in [0, 8, 77, 8000] {
      #expect(try driver.read(sector: UInt64(sector), bytes: 8192) == image.read(sector: sector, count: 8192))
      let data = BytePattern(seed: UInt64(sector)).bytes(at: 0, count: 8192)
      try driver.write(sector: UInt64(sector), data)
      #expect(try driver.read(sector: UInt64(sector), bytes: 8192) == data)
    }
    driver.disconnect()
    try daemon.stop()
  }
}
