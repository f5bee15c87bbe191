// A disk behind an IOMMU: no address in a ring or a descriptor is one of the guest's memory, and mappings come, are missing,
// allow less, and go.

import Foundation
import Testing
import VhostFrontend

@Suite("IOMMU journeys")
struct IOMMUJourneys {
  @Test(
    "data of every size arrives, through mappings that are asked for once", arguments: [false, true],
    [FrontendIOMMU.Manner.plain, .wordless])
  func roundTrip(packed: Bool, manner: FrontendIOMMU.Manner) throws {
    let rig = try IOMMUDisk(packed: packed, manner: manner)
    var random = SeededGenerator(seed: packed ? 11 : 12)
    var model = [UInt8](repeating: 0, count: 256 * 512)
    for sector in 0..<256 { for i in 0..<512 { model[sector * 512 + i] = UInt8(truncatingIfNeeded: sector) } }
    let framings: [Framing] = [.classic, .classic.indirect, .dataPieces(20)]
    var missesBefore: UInt64 = 0
    for round in 0..<120 {
      if round == 60 { missesBefore = rig.iommu.misses }
      let sector = Int.random(in: 0..<200, using: &random)
      let bytes = 512 * Int.random(in: 1...(round % 3 == 2 ? 8 : 56), using: &random)
      let queue = round % 2
      let framing = framings[round % framings.count]
      // In the slot's own buffer, or over pages that lie apart in the guest.
      let place: UInt64? = round % 4 < 2 ? nil : rig.data + UInt64(Int.random(in: 0..<8000, using: &random))
      if round % 2 == round / 2 % 2 {
        var request = DiskRequest.write(
          sector: UInt64(sector), BytePattern(seed: UInt64(round)).bytes(at: 0, count: bytes))
        request.dataAddress = place
        #expect(try rig.disk.perform(request, framing, queue: queue).status == 0)
        model.replaceSubrange(sector * 512..<sector * 512 + bytes, with: request.output)
      } else {
        var request = DiskRequest.read(sector: UInt64(sector), bytes: bytes)
        request.dataAddress = place
        let result = try rig.disk.perform(request, framing, queue: queue)
        #expect(result.status == 0 && !result.overrun)
        #expect(result.input == Array(model[sector * 512..<sector * 512 + bytes]), "round \(round)")
      }
    }
    #expect(missesBefore > 20)
    #expect(rig.iommu.misses - missesBefore < missesBefore, "what is mapped is not asked for again")
    #expect(rig.backend.counter("iotlbMisses") > 0)
    #expect(rig.backend.counter("iotlbMisses") <= rig.iommu.misses)
    #expect(rig.iommu.refused == 0)
    // Down and up again: mappings are asked for anew.
    let misses = rig.iommu.misses
    _ = try rig.disk.stop()
    try rig.disk.resume()
    #expect(try rig.disk.read(sector: 10, bytes: 4096) == Array(model[5120..<5120 + 4096]))
    #expect(rig.iommu.misses > misses)
    #expect(try rig.disk.arena.damagedGuards().isEmpty)
  }

  @Test(
    "a page gives what its mapping allows: the device reads where it may read, writes where it may write",
    arguments: [false, true])
  func permissions(packed: Bool) throws {
    let rig = try IOMMUDisk(packed: packed, queues: 1)
    // The data's second page is the one in question: the request fails as a whole.
    let place = rig.data + 4096
    let old = [UInt8](repeating: 0xa5, count: 8192)
    for (rights, mayRead, mayWrite): (UInt8, Bool, Bool) in [
      (3, true, true), (1, true, false), (2, false, true), (0, false, false), (3, true, true),
    ] {
      try rig.iommu.protect(place + 4096, 4096, rights: rights)
      var write = DiskRequest.write(sector: 64, [UInt8](repeating: 0x11, count: 8192))
      write.dataAddress = place
      #expect(try rig.disk.perform(write).status == (mayRead ? 0 : 1), "rights \(rights)")
      try rig.disk.arena.write(old, at: place)
      var read = DiskRequest.read(sector: 8, bytes: 8192)
      read.dataAddress = place
      #expect(try rig.disk.perform(read).status == (mayWrite ? 0 : 1), "rights \(rights)")
      let second = try rig.disk.arena.read(at: place + 4096, count: 4096)
      #expect((second == Array(old[4096...])) == !mayWrite)
    }
    #expect(rig.iommu.refused > 0)
  }

  @Test(
    "mappings that cut a buffer anywhere, and are given before they are asked for", arguments: [false, true])
  func cut(packed: Bool) throws {
    let rig = try IOMMUDisk(packed: packed, queues: 1)
    let pages = try #require(rig.disk.arena.pages)
    var at = rig.data
    let end = rig.data + 32768
    var step: UInt64 = 0
    while at < end {
      step = (step + 37) % 900
      let left = min(step + 1, end - at, 4096 - at % 4096)
      let user = try #require(pages.userAddress(of: at))
      #expect(try rig.iommu.map(at, left, user: user) == .ok)
      at += left
    }
    #expect(at == end)
    _ = try rig.disk.getID()
    let misses = rig.iommu.misses
    var write = DiskRequest.write(sector: 300, BytePattern(seed: 5).bytes(at: 0, count: 32768))
    write.dataAddress = rig.data
    #expect(try rig.disk.perform(write).status == 0)
    var read = DiskRequest.read(sector: 300, bytes: 32768)
    read.dataAddress = rig.data
    #expect(try rig.disk.perform(read).input == write.output)
    #expect(rig.iommu.misses <= misses + 1, "header and status alone may have been missing")
  }

  @Test(
    "when a mapping's end is answered no request reaches into it any more, whatever was under way",
    arguments: [false, true])
  func revoked(packed: Bool) throws {
    // So slow that a request is certain to be under way, held back with its memory.
    let rig = try IOMMUDisk(packed: packed, queues: 1, rate: 40)
    let queue = rig.disk.queues[0]
    for round in 0..<6 {
      let place = rig.data + UInt64(round) * 8192
      try rig.iommu.protect(place, 8192, rights: 3)
      var slots: [UInt16] = []
      let held = rig.backend.counter("throttles")
      for i in 0..<4 {
        var read = DiskRequest.read(sector: UInt64(1 + i), bytes: 8192)
        read.dataAddress = place
        slots.append(try queue.submit(read))
      }
      try rig.wait("no request is held back") { rig.backend.counter("throttles") > held }
      try rig.iommu.protect(place, 8192, rights: 0)
      let pattern = BytePattern(seed: UInt64(round)).bytes(at: place, count: 8192)
      try rig.disk.arena.write(pattern, at: place)
      var statuses: [UInt8] = []
      for slot in slots { statuses.append(try queue.wait(for: slot).status) }
      #expect(statuses.first == 0 && statuses.last == 1, "\(statuses)")
      #expect(try rig.disk.arena.read(at: place, count: 8192) == pattern, "written after the answer")
    }
  }

  @Test(
    "everything taken away under load, the rings with it: all goes on, nothing is lost",
    arguments: [false, true])
  func everything(packed: Bool) throws {
    let rig = try IOMMUDisk(packed: packed)
    var random = SeededGenerator(seed: 77)
    for round in 0..<60 {
      var batch: [(BlockQueue, UInt16, UInt64)] = []
      for queue in rig.disk.queues {
        for _ in 0..<8 {
          let sector = UInt64.random(in: 0..<200, using: &random)
          let slot = try queue.submit(.read(sector: sector, bytes: 4096), .classic.indirect)
          batch.append((queue, slot, sector))
        }
      }
      switch round % 3 {
      case 0: #expect(try rig.iommu.invalidate(0, 0) == .ok)
      case 1: #expect(try rig.iommu.invalidate(0, .max) == .ok)
      default:
        // The rings of one queue alone.
        let areas = rig.disk.queues[0].queue.ring.areas
        #expect(try rig.iommu.invalidate(areas.device, 4) == .ok)
        #expect(try rig.iommu.invalidate(areas.descriptors, 16) == .ok)
      }
      for (queue, slot, sector) in batch {
        let result = try queue.wait(for: slot)
        #expect(result.status == 0)
        let bytes = (0..<8).flatMap {
          [UInt8](repeating: UInt8(truncatingIfNeeded: Int(sector) + $0), count: 512)
        }
        #expect(result.input == bytes)
      }
    }
    #expect(rig.backend.counter("faults") == 0)
  }

  @Test(
    "a front-end that never answers a miss stops its rings as ever, and goes on later",
    arguments: [false, true])
  func silent(packed: Bool) throws {
    let rig = try IOMMUDisk(packed: packed, queues: 1, manner: .silent)
    // The ring itself is not translated: it stops where it was to start.
    try rig.wait("nobody asked for the ring") { rig.iommu.misses > 0 }
    let start = rig.disk.device.bases
    #expect(try rig.disk.stop() == start)
    try rig.disk.resume()
    try rig.iommu.change(to: .plain)
    #expect(try rig.disk.read(sector: 3, bytes: 512) == [UInt8](repeating: 3, count: 512))
    // A chain whose memory is not translated stays in the ring.
    try rig.iommu.change(to: .silent)
    let before = rig.iommu.misses
    var read = DiskRequest.read(sector: 9, bytes: 8192)
    read.dataAddress = rig.data
    let queue = rig.disk.queues[0]
    let slot = try queue.submit(read)
    try rig.wait("nobody asked for the buffer") { rig.iommu.misses > before }
    let completed = rig.backend.counter("completed")
    let base = try rig.disk.stop()
    #expect(rig.backend.counter("completed") == completed)
    #expect(base == [queue.queue.ring.baseOfUsed], "taken back into the ring")
    try rig.iommu.change(to: .plain)
    try rig.disk.resume()
    #expect(try queue.wait(for: slot).status == 0)
    #expect(rig.backend.counter("completed") == completed + 1)
    // And leaves without a word, while another miss is open.
    try rig.iommu.change(to: .silent)
    read.dataAddress = rig.data + 65536
    _ = try queue.submit(read)
    rig.disk.disconnect()
    let next = try BlockDriver(path: rig.backend.socket)
    #expect(try next.getID() == "journey")
  }

  @Test("however many requests waited before, the next one waits too", arguments: [false, true])
  func rounds(packed: Bool) throws {
    let rig = try IOMMUDisk(packed: packed, queues: 1)
    for round in 0..<300 {
      #expect(try rig.iommu.invalidate(0, 0) == .ok)
      let result = try rig.disk.perform(.read(sector: 7, bytes: 512), .classic.indirect)
      try #require(result.status == 0 && result.input.first == 7, "round \(round)")
    }
    #expect(rig.backend.counter("iotlbMisses") > 600)
  }

  @Test("without a channel to ask over there is nothing to translate", arguments: [false, true])
  func withoutChannel(packed: Bool) throws {
    let backend = try Backend(try Image().device())
    let disk = try BlockDriver(
      path: backend.socket,
      .with {
        $0.driver.packed = packed
        $0.driver.features |= VirtioBits.accessPlatform
        $0.driver.protocolFeatures = ProtocolBits.replyAck | ProtocolBits.config | ProtocolBits.mq
      })
    #expect(disk.features & VirtioBits.accessPlatform != 0)
    #expect(try disk.read(sector: 5, bytes: 512) == [UInt8](repeating: 5, count: 512))
  }

  @Test("no page that changed is unmarked, and marks name the guest's pages", arguments: [false, true])
  func logged(packed: Bool) throws {
    let rig = try IOMMUDisk(packed: packed)
    let arena = rig.disk.arena
    let pages = try #require(arena.pages)
    let bitmap = try DirtyBitmap(memoryUpTo: pages.guestEnd)
    func hold(_ held: Bool) throws {
      for queue in rig.disk.queues {
        try rig.disk.connection.setVringEnable(queue.queue.index, !held).accepted(.setVringEnable)
      }
    }
    var random = SeededGenerator(seed: packed ? 21 : 22)
    try hold(true)
    try rig.disk.device.startLogging(in: bitmap)
    for _ in 0..<4 {
      var batch: [(BlockQueue, UInt16)] = []
      for queue in rig.disk.queues {
        for _ in 0..<8 {
          var read = DiskRequest.read(sector: 11, bytes: 512 * Int.random(in: 1...40, using: &random))
          read.dataAddress = rig.data + UInt64(Int.random(in: 0..<400_000, using: &random))
          batch.append((queue, try queue.add(read)))
        }
        queue.publish()
      }
      let completed = rig.backend.counter("completed")
      _ = bitmap.take()
      let before = try MemorySnapshot(arena)
      try hold(false)
      try rig.wait("requests are still out") {
        rig.backend.counter("completed") == completed + UInt64(batch.count)
      }
      try hold(true)
      try rig.disk.connection.barrier()
      let changed = Set(
        try MemorySnapshot(arena).changedPages(since: before).compactMap {
          pages.guestAddress(of: $0 * 4096).map { $0 / 4096 }
        })
      let marked = bitmap.take()
      #expect(!changed.isEmpty && changed.subtracting(marked).isEmpty, "changed and not marked")
      #expect(marked.count <= 2 * changed.count, "\(marked.count) of \(changed.count)")
      for (queue, slot) in batch { #expect(try queue.wait(for: slot).status == 0) }
    }
  }

  @Test("memory that is shared anew behind an IOMMU is found again, rings and all", arguments: [false, true])
  func otherMemory(packed: Bool) throws {
    let rig = try IOMMUDisk(packed: packed)
    let arena = rig.disk.arena
    for round in 0..<20 {
      let slot = try rig.disk.queues[0].submit(.read(sector: UInt64(round), bytes: 4096))
      #expect(try rig.disk.connection.setMemTable(arena.table, descriptors: arena.descriptors) == .ok)
      #expect(try rig.disk.queues[0].wait(for: slot).input.first == UInt8(round))
      if round % 5 == 0 { #expect(try rig.iommu.invalidate(0, 0) == .ok) }
    }
  }
}
