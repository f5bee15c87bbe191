// A front-end that cuts its shared memory off while we work in it: that queue ends, and tells; nothing else does.

import CLinux
import Foundation
import Testing
import VhostFrontend

/// Whether so many free huge pages of 2 MiB are there.
private func hasHugePages(_ count: Int) -> Bool {
  let free =
    (try? String(contentsOfFile: "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", encoding: .utf8))
  return (free.flatMap { Int($0.trimmingCharacters(in: .whitespacesAndNewlines)) } ?? 0) >= count
}

@Suite("memory that a front-end takes away")
struct TruncationTests {
  /// Rings in one file, buffers in another; neither can be sealed any more.
  private func arena(huge: Bool = false) throws -> GuestArena {
    try GuestArena(
      regions: [
        ArenaRegion(at: 0x10_0000, bytes: 2 << 20, file: 0),
        ArenaRegion(at: 0x80_0000, bytes: 2 << 20, file: 1),
      ], hugePages: huge, seals: Int32(CLX_F_SEAL_SEAL))
  }

  private func cut(_ arena: GuestArena, file: Int) throws {
    #expect(ftruncate(try #require(arena.files[file]).raw, 0) == 0)
  }

  /// One session and another one of the same process, both at work; `harm` breaks the first one's queue.
  private func survives(
    packed: Bool, huge: Bool = false, inflight: Bool = false,
    _ harm: (_ arena: GuestArena, _ queue: QueueDriver, _ log: Int32) throws -> Void
  ) throws {
    let (backend, neighbour) = (try EchoBackend(), try EchoBackend())
    let others = try neighbour.running(packed: packed)
    let memory = try arena(huge: huge)
    let log = clx_memfd_create("log", UInt32(CLX_MFD_CLOEXEC))
    defer { close(log) }
    #expect(ftruncate(log, 65536) == 0)
    let (front, arena, queue) = try backend.running(packed: packed, in: memory) {
      (front: FrontendConnection) throws in
      guard inflight else { return }
      let description = WireInflight(mmapSize: 65536, queueCount: 4, queueSize: 64)
      #expect(try front.setInflightFD(description, descriptor: log) == .ok)
    }
    defer { front.disconnect() }
    try EchoBackend.echoes(arena, queue)
    try harm(arena, queue, log)
    try queue.expectError(timeout: .seconds(20))
    // The session lives, and so does everybody else.
    try front.barrier()
    _ = try front.getVringBase(0)
    try EchoBackend.echoes(others.arena, others.queue)
    // With memory that is there, the front-end's next ring works.
    let fresh = try GuestArena(bytes: 2 << 20)
    #expect(try front.setMemTable(fresh.table, descriptors: fresh.descriptors) == .ok)
    if inflight { #expect(try front.resetDevice() == .ok) }
    let next = try EchoBackend.start(front, fresh, packed: packed)
    try EchoBackend.echoes(fresh, next)
    others.front.disconnect()
  }

  @Test("a ring that is cut off ends its queue alone", arguments: [false, true])
  func ring(packed: Bool) throws {
    try survives(packed: packed) { arena, queue, _ in
      try cut(arena, file: 0)
      queue.kick.ring()
    }
  }

  @Test("a buffer that is cut off ends the queue that touched it", arguments: [false, true])
  func buffer(packed: Bool) throws {
    try survives(packed: packed) { arena, queue, _ in
      let (from, to) = (try arena.allocate(1, region: 1), try arena.allocate(4, region: 1))
      try cut(arena, file: 1)
      _ = try queue.submit([DescriptorSpec(from, 1), DescriptorSpec(to, 4, write: true)])
    }
  }

  @Test("an indirect table that is cut off ends the queue", arguments: [false, true])
  func table(packed: Bool) throws {
    try survives(packed: packed) { arena, queue, _ in
      let table = try arena.allocate(64, region: 1)
      try cut(arena, file: 1)
      if packed {
        queue.ring.withPacked { ring in
          let (slot, wrap) = ring.rawPosition
          let flags = PackedDriverRing.availableBits(wrap: wrap) | 4
          ring.rawSetDescriptor(slot, address: table, length: 32, id: 1, flags: flags)
        }
      } else {
        queue.ring.withSplit { ring in
          ring.rawSetDescriptor(40, address: table, length: 32, flags: 4, next: 0)
          ring.rawSetAvailableEntry(1, head: 40)
          ring.rawSetAvailableIndex(2)
        }
      }
      queue.kick.ring()
    }
  }

  @Test("an inflight region that is cut off ends the queues that log there", arguments: [false, true])
  func inflight(packed: Bool) throws {
    try survives(packed: packed, inflight: true) { arena, queue, log in
      #expect(ftruncate(log, 0) == 0)
      let (from, to) = (try arena.allocate(1), try arena.allocate(4))
      _ = try queue.submit([DescriptorSpec(from, 1), DescriptorSpec(to, 4, write: true)])
    }
  }

  @Test(
    "the same in huge pages", .enabled(if: hasHugePages(2), "no huge pages are set aside"),
    arguments: [false, true])
  func huge(packed: Bool) throws {
    try survives(packed: packed, huge: true) { arena, queue, _ in
      try cut(arena, file: 0)
      queue.kick.ring()
    }
  }

  @Test("a dirty log that is cut off ends the queue that marks there", arguments: [false, true])
  func dirtyLog(packed: Bool) throws {
    let backend = try EchoBackend()
    let log = clx_memfd_create("log", UInt32(CLX_MFD_CLOEXEC))
    defer { close(log) }
    #expect(ftruncate(log, 65536) == 0)
    let (front, arena, queue) = try backend.running(packed: packed)
    defer { front.disconnect() }
    try front.setLogBase(WireLog(size: 65536, offset: 0), descriptor: log)
    let wanted = packed ? VirtioBits.driven | VirtioBits.packed : VirtioBits.driven & ~VirtioBits.packed
    #expect(try front.setFeatures(front.getFeatures() & wanted | VirtioBits.logAll) == .ok)
    try EchoBackend.echoes(arena, queue)
    #expect(ftruncate(log, 0) == 0)
    let (from, to) = (try arena.allocate(1), try arena.allocate(4))
    _ = try queue.submit([DescriptorSpec(from, 1), DescriptorSpec(to, 4, write: true)])
    try queue.expectError(timeout: .seconds(20))
    try front.barrier()
  }

  @Test("an inflight region that its file does not hold is refused")
  func shortInflight() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    defer { front.disconnect() }
    let log = clx_memfd_create("log", UInt32(CLX_MFD_CLOEXEC))
    defer { close(log) }
    #expect(ftruncate(log, 100) == 0)
    let description = WireInflight(mmapSize: 65536, queueCount: 4, queueSize: 64)
    #expect(try front.setInflightFD(description, descriptor: log).isNack)
    try front.barrier()
  }

  @Test("memory that can still be sealed cannot be cut off any more, and is no other than it was")
  func sealed() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    defer { front.disconnect() }
    let file = try #require(arena.files[0]).raw
    #expect(clx_fcntl_int(file, Int32(CLX_F_GET_SEALS), 0) & Int32(CLX_F_SEAL_SHRINK) != 0)
    #expect(ftruncate(file, 0) == -1 && errno == EPERM)
    try EchoBackend.echoes(arena, queue)
  }
}
