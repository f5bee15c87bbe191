// Memory that a front-end may share, and what must come of it: the MM lines of the hostile cases.

import CLinux
import Foundation
import HostIO
import Testing
import VhostFrontend

@Suite("hostile memory")
struct HostileMemoryTests {
  /// One region of 1 MiB, changed as asked, in a memfd of 2 MiB with the given seals.
  private func table(
    _ front: FrontendConnection, seals: Int32 = 0, descriptor: Int32? = nil,
    _ change: (inout WireRegion) -> Void
  ) throws -> Ack {
    let file = clx_memfd_create("hostile", UInt32(3))
    defer { close(file) }
    ftruncate(file, 2 << 20)
    if seals != 0 { #expect(clx_fcntl_int(file, 1033, Int(seals)) == 0) }
    var region = WireRegion(guestAddress: 1 << 20, size: 1 << 20, userAddress: 1 << 40, mmapOffset: 0)
    change(&region)
    return try front.setMemTable([region], descriptors: [descriptor ?? file])
  }

  @Test("MM01 sizes of 0 and sums past 2^64 are refused")
  func overflow() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    #expect(try table(front) { _ in } == .ok)
    #expect(try table(front) { $0.size = 0 }.isNack)
    #expect(try table(front) { $0.size = .max }.isNack)
    #expect(try table(front) { $0.guestAddress = .max - 100 }.isNack)
    #expect(try table(front) { $0.userAddress = .max - 100 }.isNack)
    #expect(try table(front) { $0.mmapOffset = .max - 100 }.isNack)
    try backend.servesOthersLater(front)
  }

  @Test("MM02 regions that overlap are refused, in either address space")
  func overlap() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    let arena = try GuestArena(
      regions: [ArenaRegion(at: 1 << 24, bytes: 1 << 20), ArenaRegion(at: 1 << 25, bytes: 1 << 20, file: 1)])
    var regions = arena.table
    regions[1].guestAddress = regions[0].guestAddress + regions[0].size - 1
    #expect(try front.setMemTable(regions, descriptors: arena.descriptors).isNack)
    regions = arena.table
    regions[1].userAddress = regions[0].userAddress
    #expect(try front.setMemTable(regions, descriptors: arena.descriptors).isNack)
    #expect(try front.setMemTable(arena.table, descriptors: arena.descriptors) == .ok)
    regions[0].userAddress += 4096
    regions[0].guestAddress = 1 << 30
    #expect(try front.addMemReg(regions[0], descriptor: arena.descriptors[0]).isNack)
    try backend.servesOthersLater(front)
  }

  @Test("MM03 a region past its file's end is refused")
  func pastTheFile() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    #expect(try table(front) { $0.mmapOffset = 2 << 20 }.isNack)
    #expect(try table(front) { $0.size = (2 << 20) + 1 }.isNack)
    #expect(try table(front) { $0.mmapOffset = (1 << 20) + 1 }.isNack)
    #expect(try table(front) { $0.mmapOffset = 1 << 20 } == .ok)
  }

  @Test("MM04 MM05 MM06 only files that we may write are memory")
  func kinds() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    #expect(try table(front, seals: 8) { _ in }.isNack)
    #expect(try table(front, seals: 16) { _ in }.isNack)
    let path = NSTemporaryDirectory() + "region-" + UUID().uuidString
    try Data(count: 2 << 20).write(to: URL(fileURLWithPath: path))
    defer { try? FileManager.default.removeItem(atPath: path) }
    var ends: [Int32] = [0, 0]
    pipe(&ends)
    let others = [
      open(path, O_RDONLY), open("/dev/zero", O_RDWR), open("/dev/null", O_RDWR), open("/tmp", O_RDONLY),
      ends[0],
      socket(AF_UNIX, 1, 0),
    ]
    for other in others {
      #expect(try table(front, descriptor: other) { _ in }.isNack)
      close(other)
    }
    close(ends[1])
    try backend.servesOthersLater(front)
  }

  @Test("FT05: a refused table leaves the one in use as it was")
  func keepsTheOld() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    #expect(try table(front) { $0.size = 0 }.isNack)
    try EchoBackend.echoes(arena, queue)
    // A table without the running ring is refused too.
    #expect(try table(front) { $0.guestAddress = 1 << 50 }.isNack)
    try EchoBackend.echoes(arena, queue)
    #expect(try front.setMemTable(arena.table, descriptors: arena.descriptors) == .ok)
    try EchoBackend.echoes(arena, queue)
  }

  @Test("MM08 as many regions as were promised, and not one more")
  func slots() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    let limit = try front.getMaxMemSlots()
    #expect(limit >= 8)
    let file = clx_memfd_create("slots", 1)
    defer { close(file) }
    ftruncate(file, Int(limit + 1) * 4096)
    func region(_ i: UInt64) -> WireRegion {
      WireRegion(guestAddress: i << 20, size: 4096, userAddress: 1 << 45 | i << 20, mmapOffset: i * 4096)
    }
    for i in 0..<limit { #expect(try front.addMemReg(region(i), descriptor: file) == .ok) }
    #expect(try front.addMemReg(region(limit), descriptor: file).isNack)
    // The very same one again changes nothing; one taken out makes room.
    #expect(try front.addMemReg(region(0), descriptor: file) == .ok)
    #expect(try front.remMemReg(region(0)) == .ok)
    #expect(try front.addMemReg(region(limit), descriptor: file) == .ok)
    try backend.servesOthersLater(front)
  }

  @Test("MM10 a buffer that runs into a hole is no reason to touch anything else")
  func hole() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    defer { front.disconnect() }
    let end = arena.table[0].guestAddress + arena.table[0].size
    _ = try queue.submit([DescriptorSpec(end - 4, 1), DescriptorSpec(end - 2, 64, write: true)])
    #expect(try queue.wait().length == 0)
    try EchoBackend.echoes(arena, queue)
  }

  @Test("MM11 a region that is not there cannot be removed; one that was just removed can")
  func remove() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    let arena = try GuestArena(bytes: 1 << 20)
    #expect(try front.remMemReg(arena.table[0]).isNack)
    #expect(try front.addMemReg(arena.table[0], descriptor: arena.descriptors[0]) == .ok)
    #expect(try front.addMemReg(arena.table[0], descriptor: arena.descriptors[0]) == .ok)
    #expect(try front.remMemReg(arena.table[0]) == .ok)
    #expect(try front.remMemReg(arena.table[0]) == .ok)
    try backend.servesOthersLater(front)
  }

  @Test("MM13 guest memory stays out of core dumps")
  func dumps() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    let file = clx_memfd_create("dump-me-not", 1)
    defer { close(file) }
    ftruncate(file, 1 << 20)
    let region = WireRegion(guestAddress: 0, size: 1 << 20, userAddress: 1 << 40, mmapOffset: 0)
    #expect(try front.setMemTable([region], descriptors: [file]) == .ok)
    let bytes = try FileHandle(forReadingFrom: URL(fileURLWithPath: "/proc/self/smaps")).readToEnd() ?? Data()
    let maps = String(decoding: bytes, as: UTF8.self)
    let part = try #require(maps.range(of: "dump-me-not")).upperBound
    let flags = try #require(maps[part...].range(of: "VmFlags:")).upperBound
    let line = maps[flags...].prefix { $0 != "\n" }
    #expect(line.split(separator: " ").contains("dd"))
  }

  @Test("a region may begin within a page of its file (libblkio)")
  func unaligned() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    let file = clx_memfd_create("unaligned", 1)
    defer { close(file) }
    ftruncate(file, 1 << 20)
    let region = WireRegion(
      guestAddress: 0x7000_1234, size: 5000, userAddress: 0x7000_1234, mmapOffset: 0x1234)
    #expect(try front.addMemReg(region, descriptor: file) == .ok)
    try backend.servesOthersLater(front)
  }
}
