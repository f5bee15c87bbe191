// What real front-ends do that a reader of the specification would not expect, each with what must come of it.

import CLinux
import Foundation
import Testing
import VhostFrontend

@Suite("front-ends as they are")
struct FrontendQuirkTests {
  @Test("nothing is offered that QEMU would take for granted and not serve, nor the status by default")
  func protocolBits() throws {
    let backend = try EchoBackend()
    let front = try backend.connect(acks: false)
    let offered = try front.getProtocolFeatures()
    // Cross-endian, crypto, host notifiers, in-band notifications, status, Xen mappings: QEMU acknowledges what it knows
    // the number of.
    for bit in [6, 7, 11, 14, 16, 17] as [UInt64] { #expect(offered & 1 << bit == 0, "bit \(bit)") }
    try backend.servesOthersLater(front)
  }

  @Test(
    "rings may be enabled and disabled before anything else is known, and again, and those never used too")
  func earlyEnable() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    for _ in 0..<3 {
      for ring in 0..<4 as Range<UInt32> { #expect(try front.setVringEnable(ring, ring == 0) == .ok) }
    }
    front.disconnect()
    try backend.servesOthers()
  }

  @Test("the same region once for each queue pair is one region, and so is its removal")
  func sameRegion() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    let more = try GuestArena(regions: [ArenaRegion(at: 1 << 32, bytes: 1 << 20)])
    for _ in 0..<3 { #expect(try front.addMemReg(more.table[0], descriptor: more.descriptors[0]) == .ok) }
    try EchoBackend.echoes(arena, queue)
    for _ in 0..<3 { #expect(try front.remMemReg(more.table[0]) == .ok) }
    try EchoBackend.echoes(arena, queue)
    front.disconnect()
  }

  @Test("each size of configuration that a front-end asks for is answered with just that size")
  func configSizes() throws {
    let backend = try EchoBackend()
    let front = try backend.connect()
    for size in [8, 36, 48, 57, 60, 96, 256] as [UInt32] {
      #expect(try front.getConfig(size: size).count == Int(size))
    }
    for flags in [0, 1] as [UInt32] { #expect(try front.setConfig(offset: 4, [1], flags: flags) == .ok) }
  }

  @Test(
    "a call descriptor swapped under a running ring is signalled, and from then on it alone",
    arguments: [false, true])
  func swappedCall(packed: Bool) throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running(packed: packed)
    try EchoBackend.echoes(arena, queue)
    var old = queue.call
    for round in 0..<20 {
      let bell = try Doorbell()
      // What was completed before could not be called for any more.
      #expect(try front.setVringCall(0, bell) == .ok)
      #expect(bell.wait(timeout: .seconds(20)), "once, at the change")
      bell.take()
      old.take()
      let (from, to) = (try arena.allocate(1), try arena.allocate(4))
      _ = queue.ring.arm()
      _ = try queue.submit([DescriptorSpec(from, 1), DescriptorSpec(to, 4, write: true)])
      #expect(bell.wait(timeout: .seconds(20)), "round \(round)")
      #expect(queue.ring.poll() != nil)
      #expect(!old.wait(timeout: .zero))
      old = bell
    }
    front.disconnect()
  }

  @Test(
    "FT09 a call descriptor that is full holds nobody up, and neither does one that is gone",
    arguments: [false, true])
  func fullCall(gone: Bool) throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    let other = try backend.ring(front, arena, 1)
    if gone {
      #expect(try front.setVringCall(0, nil) == .ok)
    } else {
      // One more would be the most that an eventfd can hold: a write would wait.
      var count = UInt64.max - 1
      queue.call.take()
      #expect(write(queue.call.raw, &count, 8) == 8)
    }
    queue.waiting = .spin
    for byte in 0..<100 {
      try EchoBackend.echoes(arena, queue, UInt8(byte))
      try EchoBackend.echoes(arena, other, UInt8(byte))
    }
    if !gone {
      queue.call.take()
      queue.waiting = .interrupt
      for byte in 0..<100 { try EchoBackend.echoes(arena, queue, UInt8(byte)) }
    }
    #expect(try front.getVringBase(0) == (gone ? 100 : 200))
    front.disconnect()
  }

  @Test(
    "one ring is reset, with another size at another place, while the others run", arguments: [false, true])
  func ringReset(packed: Bool) throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running(packed: packed)
    let other = try backend.ring(front, arena, 1, packed: packed)
    var current = queue
    for size in [16, 4, 128, 64] as [UInt16] {
      try EchoBackend.echoes(arena, current)
      // RING_RESET as QEMU has it: the base is asked for and thrown away, and everything is set up anew.
      _ = try front.getVringBase(0)
      try EchoBackend.echoes(arena, other)
      current = try backend.ring(front, arena, 0, size: size, packed: packed)
      for byte in 0..<40 { try EchoBackend.echoes(arena, current, UInt8(byte)) }
      try EchoBackend.echoes(arena, other)
    }
    front.disconnect()
  }

  @Test(
    "a ring that is disabled keeps what it is given, and serves it when it is enabled",
    arguments: [false, true])
  func disabled(packed: Bool) throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running(packed: packed)
    let (from, to) = (try arena.allocate(1), try arena.allocate(4))
    for _ in 0..<50 {
      #expect(try front.setVringEnable(0, false) == .ok)
      _ = try queue.submit([DescriptorSpec(from, 1), DescriptorSpec(to, 4, write: true)])
      try front.barrier()
      #expect(queue.ring.poll() == nil)
      #expect(try front.setVringEnable(0, true) == .ok)
      #expect(try queue.wait(timeout: .seconds(20)).length == 4)
    }
    front.disconnect()
  }

  @Test("MM12 a region of huge pages whose size is no multiple of theirs is mapped and unmapped whole")
  func hugePages() throws {
    // MFD_CLOEXEC, MFD_HUGETLB, MFD_HUGE_2MB. Nothing is touched, so no page has to be there.
    let file = clx_memfd_create("huge-pages-\(getpid())", 1 | 4 | 21 << 26)
    guard file >= 0 else { return }
    defer { close(file) }
    #expect(ftruncate(file, 8 << 20) == 0)
    let backend = try EchoBackend()
    let front = try backend.connect()
    /// The kernel gives the list in pieces, between which others that come and go can hide one: the most of several looks.
    func mappings() -> Int {
      (0..<5).map { _ in
        // Whole: by its path, no more than the kernel's first piece of it would be read.
        let file = try? FileHandle(forReadingFrom: URL(fileURLWithPath: "/proc/self/maps"))
        let maps = String(decoding: (try? file?.readToEnd()) ?? Data(), as: UTF8.self)
        return maps.split(separator: "\n").count { $0.contains("huge-pages-\(getpid())") }
      }.max() ?? 0
    }
    for offset in [0, 4096, 2 << 20] as [UInt64] {
      let region = WireRegion(
        guestAddress: 1 << 33, size: 3 << 20 | 4096, userAddress: 1 << 45, mmapOffset: offset)
      let ack = try front.addMemReg(region, descriptor: file)
      // Without a single huge page to reserve the kernel may refuse; then so do we.
      guard ack == .ok else { continue }
      #expect(mappings() == 1)
      #expect(try front.remMemReg(region) == .ok)
      #expect(mappings() == 0)
    }
    try backend.servesOthersLater(front)
  }

  @Test("MM15 the inflight region is no guest memory: a buffer there is a hole")
  func inflightAsBuffer() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    let (_, descriptor) = try #require(try front.getInflightFD(queueCount: 1, queueSize: 64))
    var before = [UInt8](repeating: 0, count: 4096)
    #expect(pread(descriptor.raw, &before, before.count, 0) > 0)
    // Right behind the memory, and at the addresses that its mapping could have.
    let from = try arena.allocate(1)
    for address in [arena.table[0].guestAddress + arena.table[0].size, 0x7f00_0000_0000, UInt64.max - 4096] {
      _ = try queue.submit([DescriptorSpec(from, 1), DescriptorSpec(address, 64, write: true)])
      #expect(try queue.wait().length == 0)
    }
    var after = before
    #expect(pread(descriptor.raw, &after, after.count, 0) > 0)
    #expect(after == before)
    front.disconnect()
  }
}
