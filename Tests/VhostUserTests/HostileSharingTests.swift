// Memory shared in strange ways: rings in odd sizes and places, buffers where rings are, huge and scattered regions.

import CLinux
import Foundation
import Testing
import VhostFrontend

@Suite("strange sharing")
struct HostileSharingTests {
  @Test(
    "SR12 PR07 the smallest and the largest queues work", arguments: [UInt16(1), 2, 32768], [false, true])
  func sizes(size: UInt16, packed: Bool) throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    defer { front.disconnect() }
    try EchoBackend.negotiate(front, packed: packed)
    let arena = try GuestArena(bytes: 8 << 20)
    #expect(try front.setMemTable(arena.table, descriptors: arena.descriptors) == .ok)
    let queue = try EchoBackend.start(front, arena, size: size, packed: packed)
    let (from, to) = (try arena.allocate(1), try arena.allocate(4))
    for _ in 0..<200 {
      // One descriptor of the ring, whatever its size.
      _ = try queue.submit([DescriptorSpec(from, 1), DescriptorSpec(to, 4, write: true)], table: .indirect)
      #expect(try queue.wait().length == 4)
    }
  }

  @Test("SR11 two chains may share their tail")
  func sharedTail() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    let (from, to) = (try arena.allocate(2), try arena.allocate(8))
    queue.ring.withSplit { ring in
      ring.rawSetDescriptor(0, address: from, length: 1, flags: 1, next: 2)
      ring.rawSetDescriptor(1, address: from + 1, length: 1, flags: 1, next: 2)
      ring.rawSetDescriptor(2, address: to, length: 8, flags: 2)
      ring.rawSetAvailableEntry(0, head: 0)
      ring.rawSetAvailableEntry(1, head: 1)
      ring.rawSetAvailableIndex(2)
    }
    queue.kick.ring()
    try front.barrier()
    #expect(try front.getVringBase(0) == 2)
    #expect(queue.ring.withSplit { $0.rawUsedIndex } == 2)
    try backend.servesOthersLater(front)
  }

  @Test("SR16 a storm of kicks on an empty ring disturbs no other")
  func kickStorm() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    defer { front.disconnect() }
    let other = try EchoBackend.start(front, arena, size: 16, packed: false, index: 1)
    for round in 0..<50 {
      for _ in 0..<1000 { queue.kick.ring() }
      try EchoBackend.echoes(arena, other, UInt8(round))
    }
    try EchoBackend.echoes(arena, queue)
  }

  @Test("SR20 SR21 rings on top of each other harm nobody else")
  func overlapping() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    var address = queue.address(in: arena)
    address.index = 1
    #expect(try front.setVringNum(1, 64) == .ok)
    #expect(try front.setVringAddr(address) == .ok)
    #expect(try front.setVringKick(1, Doorbell()) == .ok)
    #expect(try front.setVringEnable(1, true) == .ok)
    var tangled = address
    tangled.index = 2
    tangled.available = tangled.descriptors
    tangled.used = tangled.descriptors + 64
    #expect(try front.setVringNum(2, 64) == .ok)
    #expect(try front.setVringAddr(tangled) == .ok)
    #expect(try front.setVringKick(2, Doorbell()) == .ok)
    #expect(try front.setVringEnable(2, true) == .ok)
    try front.barrier()
    try backend.servesOthersLater(front)
  }

  @Test("MM14 a device that is told to write over its own ring survives")
  func ringAsTarget() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    let from = try arena.allocate(1)
    try arena.write([0xff], at: from)
    let areas = queue.ring.areas
    _ = queue.ring.add([
      DescriptorSpec(from, 1), DescriptorSpec(areas.descriptors, 64 * 16, write: true),
      DescriptorSpec(areas.driver, 4 + 2 * 64, write: true),
    ])
    queue.publish()
    try front.barrier()
    try backend.servesOthersLater(front)
  }

  @Test("MM07 a sparse region of a tebibyte costs no memory and no time")
  func sparse() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    let file = clx_memfd_create("sparse", 1)
    defer { close(file) }
    #expect(ftruncate(file, 1 << 40) == 0)
    let region = WireRegion(guestAddress: 0, size: 1 << 40, userAddress: 1 << 44, mmapOffset: 0)
    let before = residentPages()
    let start = ContinuousClock.now
    #expect(try front.setMemTable([region], descriptors: [file]) == .ok)
    #expect(ContinuousClock.now - start < .seconds(2))
    // Other tests of this process come and go: 64 MiB is their room, and nothing beside a tebibyte.
    #expect(residentPages() - before < 16384)
    try backend.servesOthersLater(front)
  }

  private func residentPages() -> Int {
    let text = (try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8)) ?? ""
    return text.split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? 0
  }

  @Test("MM09 a buffer over two regions that are no neighbours here arrives whole")
  func acrossRegions() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    defer { front.disconnect() }
    try EchoBackend.negotiate(front, packed: false)
    let arena = try GuestArena(
      regions: [
        ArenaRegion(at: 1 << 24, bytes: 1 << 20, file: 0),
        ArenaRegion(at: (1 << 24) + (1 << 20), bytes: 1 << 20, file: 1),
      ])
    #expect(try front.setMemTable(arena.table, descriptors: arena.descriptors) == .ok)
    let queue = try EchoBackend.start(front, arena, size: 16, packed: false)
    let from = try arena.allocate(1)
    try arena.write([0x44], at: from)
    let border: UInt64 = (1 << 24) + (1 << 20)
    _ = try queue.submit([DescriptorSpec(from, 1), DescriptorSpec(border - 100, 300, write: true)])
    #expect(try queue.wait().length == 300)
    #expect(try arena.read(at: border - 100, count: 300) == [UInt8](repeating: 0x44, count: 300))
    #expect(try arena.read(at: border - 101, count: 1) == [0])
    #expect(try arena.read(at: border + 200, count: 1) == [0])
  }
}
