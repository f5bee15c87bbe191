// The dirty log, seen from a front-end: after any load, the pages that changed are among the pages that are marked.

import Foundation
import Testing
import VhostFrontend

/// Everything the guest has, and which pages of it differ from another time's.
struct MemorySnapshot {
  let regions: [(address: UInt64, bytes: [UInt8])]

  init(_ arena: GuestArena) throws {
    regions = try arena.regions.map {
      ($0.guestAddress, try arena.read(at: $0.guestAddress, count: $0.bytes))
    }
  }

  func changedPages(since old: MemorySnapshot) -> Set<UInt64> {
    var pages: Set<UInt64> = []
    for (new, old) in zip(regions, old.regions) {
      new.bytes.withUnsafeBytes { now in
        old.bytes.withUnsafeBytes { before in
          for start in stride(from: 0, to: now.count, by: 4096) {
            guard let a = now.baseAddress, let b = before.baseAddress else { return }
            if memcmp(a + start, b + start, min(4096, now.count - start)) != 0 {
              pages.insert((new.address + UInt64(start)) / 4096)
            }
          }
        }
      }
    }
    return pages
  }
}

/// A disk whose rings are held (disabled) while requests are put in, so that between two looks at guest memory the device
/// alone writes there.
struct LoggedDisk {
  static let spare = 4 << 20
  let backend: Backend
  let disk: BlockDriver
  let image: Image
  /// Two regions of one guest, side by side and apart in this process, for data at odd places.
  let places: UInt64
  var random: SeededGenerator

  init(packed: Bool, eventIndex: Bool = true, queues: Int = 2, seed: UInt64) throws {
    image = try Image()
    backend = try Backend(try image.device(), threads: 2)
    let options = DiskOptions.with {
      $0.driver.packed = packed
      $0.driver.queues = queues
      $0.driver.queueSize = 256
      if !eventIndex { $0.driver.features &= ~VirtioBits.eventIndex }
      $0.depth = 16
      $0.driver.indirectCapacity = 8
      $0.dataBytes = 8192
    }
    let rings = options.arenaBytes()
    let start: UInt64 = 0x10_0000
    let second = start + UInt64(rings)
    let arena = try GuestArena(regions: [
      ArenaRegion(at: start, bytes: rings), ArenaRegion(at: second, bytes: Self.spare / 2, file: 1),
      ArenaRegion(
        at: second + UInt64(Self.spare / 2), bytes: Self.spare / 2, file: 2, fileOffset: 4096),
    ])
    places = second
    disk = try BlockDriver(.connect(to: backend.socket), arena: arena, options)
    random = SeededGenerator(seed: seed)
  }

  func bitmap(offset: UInt64 = 0) throws -> DirtyBitmap {
    try DirtyBitmap(memoryUpTo: places + UInt64(Self.spare), offset: offset)
  }

  func hold(_ held: Bool) throws {
    for queue in disk.queues {
      try disk.connection.setVringEnable(queue.queue.index, !held).accepted(.setVringEnable)
    }
  }

  /// Shows the device a batch of requests of all kinds on every queue; what each came to is not of interest here.
  mutating func submit() throws -> [(BlockQueue, [UInt16])] {
    var batch: [(BlockQueue, [UInt16])] = []
    for queue in disk.queues {
      var slots: [UInt16] = []
      for _ in 0..<Int.random(in: 1...queue.depth, using: &random) {
        slots.append(try queue.add(request(), .classic.indirect))
      }
      queue.publish()
      batch.append((queue, slots))
    }
    return batch
  }

  private mutating func request() -> DiskRequest {
    let sector = UInt64.random(in: 0..<4000, using: &random)
    switch Int.random(in: 0..<12, using: &random) {
    case 0: return .flush
    case 1: return .getID()
    case 2: return DiskRequest(type: 99)
    case 3: return .write(sector: sector, [UInt8](repeating: UInt8(truncatingIfNeeded: sector), count: 4096))
    // Past the end of the disk: fails, with its status alone.
    case 4: return .read(sector: 1 << 20, bytes: 8192)
    default:
      let bytes = 512 * Int.random(in: 1...64, using: &random)
      var request = DiskRequest.read(sector: sector, bytes: bytes)
      // Anywhere, over the border of the two regions too, with a status in the slot's own page.
      request.dataAddress = places + UInt64.random(in: 0..<UInt64(Self.spare - bytes), using: &random)
      return request
    }
  }

  /// Waits until the whole batch is used, without writing a byte of guest memory.
  func waitUsed(_ batch: [(BlockQueue, [UInt16])]) throws {
    let deadline = ContinuousClock.now + .seconds(60)
    let wanted = batch.reduce(0) { $0 + $1.1.count }
    while backend.counter("completed") < completedBefore.value + UInt64(wanted) {
      try #require(ContinuousClock.now < deadline, "requests are still out after a minute")
      // A call may come, or none that is asked for: to ask would write to guest memory.
      for (queue, _) in batch where queue.queue.call.wait(timeout: .milliseconds(1)) {
        queue.queue.call.take()
      }
    }
    completedBefore.value += UInt64(wanted)
  }
  private final class Count { var value: UInt64 = 0 }
  private let completedBefore = Count()

  /// Takes the batch back.
  func collect(_ batch: [(BlockQueue, [UInt16])]) throws {
    for (queue, slots) in batch { for slot in slots { _ = try queue.wait(for: slot) } }
  }
}

/// The same numbers for the same seed.
struct SeededGenerator: RandomNumberGenerator {
  var state: UInt64
  init(seed: UInt64) { state = seed }
  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }
}

@Suite("dirty log journeys")
struct LogJourneys {
  @Test(
    "LC04: no page that changed is unmarked, and at most twice as many are marked",
    arguments: [false, true], [false, true])
  func sound(packed: Bool, eventIndex: Bool) throws {
    var logged = try LoggedDisk(packed: packed, eventIndex: eventIndex, seed: packed ? 1 : 2)
    let bitmap = try logged.bitmap(offset: 4096 + 40)
    try logged.hold(true)
    try logged.disk.device.startLogging(in: bitmap)
    for _ in 0..<6 {
      let batch = try logged.submit()
      _ = bitmap.take()
      let before = try MemorySnapshot(logged.disk.arena)
      try logged.hold(false)
      try logged.waitUsed(batch)
      // Behind the enabling of the rings, and the notifications that go with it, too.
      try logged.hold(true)
      try logged.disk.connection.barrier()
      let changed = try MemorySnapshot(logged.disk.arena).changedPages(since: before)
      let marked = bitmap.take()
      #expect(changed.subtracting(marked).isEmpty, "changed and not marked")
      #expect(changed.count > 0 && marked.count <= 2 * changed.count, "\(marked.count) of \(changed.count)")
      try logged.collect(batch)
    }
    try logged.disk.device.stopLogging()
    #expect(try logged.disk.arena.damagedGuards().isEmpty)
  }

  @Test(
    "LC06: logging switched under load, and logs changed under load, lose nothing", arguments: [false, true])
  func switched(packed: Bool) throws {
    var logged = try LoggedDisk(packed: packed, seed: packed ? 3 : 4)
    let device = logged.disk.device
    for round in 0..<6 {
      try logged.hold(true)
      let batch = try logged.submit()
      try logged.hold(false)
      // On, with requests under way; from here on everything counts.
      let first = try logged.bitmap()
      try device.startLogging(in: first)
      let before = try MemorySnapshot(logged.disk.arena)
      // Changed twice; what a log has when it is left, it has for good.
      let second = try logged.bitmap(offset: 16)
      try device.changeLog(to: second)
      var marked = first.take()
      if round % 2 == 0 { try device.setLogging(rings: true) }
      let third = try logged.bitmap()
      try device.changeLog(to: third)
      marked.formUnion(second.take())
      try logged.waitUsed(batch)
      try device.connection.barrier()
      let changed = try MemorySnapshot(logged.disk.arena).changedPages(since: before)
      try device.stopLogging()
      #expect(first.take().isEmpty && second.take().isEmpty, "a log that was left is marked no more")
      marked.formUnion(third.take())
      #expect(changed.subtracting(marked).isEmpty, "changed and not marked")
      try logged.collect(batch)
      // Off: nothing is marked, whatever is done.
      let quiet = try logged.submit()
      try logged.waitUsed(quiet)
      try logged.collect(quiet)
      #expect(third.take().isEmpty, "marked with logging off")
    }
  }

  @Test("each part is logged by its own switch", arguments: [false, true])
  func parts(packed: Bool) throws {
    var logged = try LoggedDisk(packed: packed, queues: 1, seed: 5)
    let device = logged.disk.device
    let bitmap = try logged.bitmap()
    try device.startLogging(in: bitmap)
    let ring = device.queues[0].ring.areas
    let ringPages = Set([ring.descriptors, ring.device].map { $0 / 4096 })
    for (buffers, rings) in [(true, false), (false, true), (false, false)] {
      try device.setLogging(buffers: buffers, rings: rings)
      _ = bitmap.take()
      let batch = try logged.submit()
      try logged.waitUsed(batch)
      try device.connection.barrier()
      try logged.collect(batch)
      let marked = bitmap.take()
      #expect(marked.isDisjoint(with: ringPages) == !rings)
      #expect(marked.subtracting(ringPages).isEmpty != buffers || rings)
    }
  }

  @Test("LC05: a log that cannot be one is refused, and the session goes on")
  func refused() throws {
    let image = try Image()
    let backend = try Backend(try image.device())
    let disk = try BlockDriver(path: backend.socket)
    let good = try DirtyBitmap(memoryUpTo: 1 << 30)
    func answer(_ size: UInt64, _ offset: UInt64, _ descriptor: Int32) throws -> Ack {
      try disk.connection.set(
        .setLogBase, payload: WireLog(size: size, offset: offset).bytes, descriptors: [descriptor], ack: true)
    }
    let size = good.description.size
    let raw = good.descriptor.raw
    // Smaller than the guest, nothing at all, past the end of the file, overflows.
    for (size, offset): (UInt64, UInt64) in [
      (1, 0), (0, 0), (size, 8192), (size + 4096, 0), (UInt64.max, 1), (1, UInt64.max),
      (UInt64.max - 1, 4096),
    ] {
      #expect(try answer(size, offset, raw).isNack, "\(size) at \(offset)")
    }
    let bell = try Doorbell()
    let null = FrontendDescriptor(adopting: open("/dev/null", O_RDWR | O_CLOEXEC))
    let readOnly = FrontendDescriptor(adopting: open(image.path, O_RDONLY | O_CLOEXEC))
    for descriptor in [bell.raw, null.raw, disk.connection.socket.raw, readOnly.raw] {
      #expect(try answer(size, 0, descriptor).isNack)
    }
    #expect(try disk.connection.setLogFD(null.raw).isNack)
    // The session is as good as ever, and takes a log that is one.
    try disk.device.startLogging(in: good)
    #expect(try disk.getID() == "journey")
    #expect(!good.take().isEmpty)
  }

  @Test("without NEED_REPLY a refusal closes the connection: the echo would say yes")
  func closed() throws {
    let backend = try Backend(try Image().device())
    let disk = try BlockDriver(path: backend.socket)
    let bell = try Doorbell()
    try disk.connection.send(
      .setLogBase, payload: WireLog(size: 4096, offset: 0).bytes, descriptors: [bell.raw])
    try disk.connection.expectClosed()
  }

  @Test("the log's eventfd is signalled when something was marked")
  func signalled() throws {
    let backend = try Backend(try Image().device())
    let disk = try BlockDriver(path: backend.socket)
    let bitmap = try DirtyBitmap(memoryUpTo: 1 << 30)
    let bell = try Doorbell()
    try disk.connection.setLogFD(bell.raw).accepted(.setLogFD)
    #expect(try disk.getID() == "journey")
    #expect(bell.take() == 0)
    try disk.device.startLogging(in: bitmap)
    #expect(try disk.getID() == "journey")
    #expect(bell.wait())
  }

  @Test(
    "LC07: empty descriptors while logging mark nothing that is not there", arguments: [false, true])
  func empty(packed: Bool) throws {
    let backend = try Backend(try Image().device())
    let disk = try BlockDriver(
      path: backend.socket, .with { $0.driver.packed = packed })
    let bitmap = try DirtyBitmap(memoryUpTo: 1 << 30)
    try disk.device.startLogging(in: bitmap)
    let arena = disk.arena
    let header = try arena.allocate(64)
    let data = try arena.allocate(4096, alignment: 4096)
    let queue = disk.device.queues[0]
    try arena.write(DiskRequest.read(sector: 3, bytes: 512).header, at: header)
    // Empty ones in every place, at addresses that wrap, that lie nowhere, and that lie at 0.
    let chain: [DescriptorSpec] = [
      DescriptorSpec(UInt64.max, 0), DescriptorSpec(header, 16), DescriptorSpec(0, 0, write: true),
      DescriptorSpec(data, 512, write: true), DescriptorSpec(UInt64.max, 0, write: true),
      DescriptorSpec(header + 32, 1, write: true), DescriptorSpec(1 << 50, 0, write: true),
    ]
    _ = try queue.submit(chain)
    #expect(try queue.wait().length == 513)
    try disk.connection.barrier()
    let marked = bitmap.take()
    #expect(marked.contains(data / 4096) && marked.contains(header / 4096))
    #expect(!marked.contains(0))
  }
}
