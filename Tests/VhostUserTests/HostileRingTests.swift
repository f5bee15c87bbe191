// What a driver may write into its rings, and what must come of it: the SR and PR lines of the hostile cases, over a real
// session, so that the front-end's side of it is seen too.

import DeviceKit
import Testing
import VhostFrontend

@Suite("hostile drivers")
struct HostileRingTests {
  static let next: UInt16 = 1
  static let write: UInt16 = 2
  static let indirect: UInt16 = 4

  /// One descriptor at an index of the table.
  struct Raw: Sendable {
    var at: UInt16 = 0
    /// Offset of the buffer in `data`, or an absolute address.
    var address: UInt64?
    var length: UInt32 = 16
    var flags: UInt16 = 0
    var next: UInt16 = 0
  }

  /// A thing that breaks a split ring: descriptors, entries of an indirect table, the head, how far the index jumps.
  struct Break: CustomStringConvertible, Sendable {
    var description: String
    var descriptors: [Raw] = []
    var table: [Raw] = []
    /// The length of the indirect table in descriptor 0; nil: none.
    var tableLength: UInt32?
    var head: UInt16 = 0
    var jump: UInt16 = 1
  }

  static let splitBreaks: [Break] = [
    Break(description: "SR01 a chain that is its own next", descriptors: [Raw(flags: next, next: 0)]),
    Break(
      description: "SR01 a loop of two",
      descriptors: [Raw(flags: next, next: 1), Raw(at: 1, flags: next, next: 0)]),
    Break(
      description: "SR01 a loop over the whole table",
      descriptors: (0..<64).map { Raw(at: $0, flags: next, next: ($0 + 1) % 64) }),
    Break(description: "SR02 a next past the queue", descriptors: [Raw(flags: next, next: 64)]),
    Break(description: "SR02 a next far past the queue", descriptors: [Raw(flags: next, next: 0xffff)]),
    Break(description: "SR03 a head past the queue", head: 64),
    Break(description: "SR03 a head far past the queue", head: 0xffff),
    Break(description: "SR04 an index one too far", jump: 65),
    Break(description: "SR04 an index that goes back", jump: 0xffff),
    Break(description: "SR04 an index half way round", jump: 0x8000),
    Break(description: "SR05 an indirect table of no length", tableLength: 0),
    Break(description: "SR05 an indirect table of 17 bytes", tableLength: 17),
    Break(description: "SR05 an indirect table of more than 32768 entries", tableLength: 16 * 32769),
    Break(
      description: "SR05 an indirect table that is not in memory",
      descriptors: [Raw(address: 1 << 50, length: 16, flags: indirect)]),
    Break(
      description: "SR06 an indirect table in an indirect table", table: [Raw(flags: indirect)],
      tableLength: 16),
    Break(
      description: "SR06 an indirect descriptor with a next",
      descriptors: [Raw(length: 16, flags: indirect | next, next: 1), Raw(at: 1)]),
    Break(
      description: "SR07 a loop in an indirect table", table: [Raw(flags: next, next: 0)], tableLength: 16),
    Break(
      description: "SR07 a next past the indirect table", table: [Raw(flags: next, next: 1)], tableLength: 16),
    Break(
      description: "SR08 more than 2^32 bytes in a chain",
      descriptors: [
        Raw(length: 0xffff_ffff, flags: next | write, next: 1), Raw(at: 1, length: 0xffff_ffff, flags: write),
      ]),
    Break(
      description: "SR10 a readable buffer after a writable one",
      descriptors: [Raw(flags: next | write, next: 1), Raw(at: 1)]),
  ]

  /// Puts a break into the ring and makes it available.
  private func commit(_ fault: Break, _ arena: GuestArena, _ queue: QueueDriver) throws {
    let data = try arena.allocate(4096, alignment: 16)
    let table = try arena.allocate(4096, alignment: 16)
    for (i, entry) in fault.table.enumerated() {
      var bytes = withUnsafeBytes(of: entry.address ?? data) { Array($0) }
      bytes += withUnsafeBytes(of: entry.length) { Array($0) }
      bytes += withUnsafeBytes(of: entry.flags) { Array($0) } + withUnsafeBytes(of: entry.next) { Array($0) }
      try arena.write(bytes, at: table + UInt64(16 * i))
    }
    queue.ring.withSplit { ring in
      let start = ring.rawAvailableIndex
      for raw in fault.descriptors {
        ring.rawSetDescriptor(
          raw.at, address: raw.address ?? data, length: raw.length, flags: raw.flags, next: raw.next)
      }
      if let length = fault.tableLength {
        ring.rawSetDescriptor(0, address: table, length: length, flags: Self.indirect)
      }
      ring.rawSetAvailableEntry(start, head: fault.head)
      ring.rawSetAvailableIndex(start &+ fault.jump)
    }
    queue.kick.ring()
  }

  @Test(
    "a broken ring ends, its front-end is told, others go on, and a new set-up works", arguments: splitBreaks)
  func breaks(_ fault: Break) throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    // A second ring beside it.
    let other = try QueueDriver(
      index: 1, DriverRingOptions(size: 16, eventIndex: true), packed: false, in: arena)
    func start(_ ring: QueueDriver, _ size: UInt32) throws {
      let index = UInt32(ring.index)
      #expect(try front.setVringNum(index, size) == .ok)
      #expect(try front.setVringBase(index, 0) == .ok)
      #expect(try front.setVringAddr(ring.address(in: arena)) == .ok)
      #expect(try front.setVringCall(index, ring.call) == .ok)
      #expect(try front.setVringErr(index, ring.error) == .ok)
      #expect(try front.setVringKick(index, ring.kick) == .ok)
      #expect(try front.setVringEnable(index, true) == .ok)
    }
    try start(other, 16)
    try EchoBackend.echoes(arena, queue)
    try EchoBackend.echoes(arena, other)
    queue.collectCalls()
    let calls = queue.callsReceived
    try commit(fault, arena, queue)
    try queue.expectError()
    queue.collectCalls()
    #expect(queue.callsReceived == calls, "the driver is not called for a broken ring")
    try EchoBackend.echoes(arena, other, 0x77)
    #expect(try front.getVringBase(0) == 1)
    let fresh = try QueueDriver(
      index: 0, DriverRingOptions(size: 32, eventIndex: true), packed: false, in: arena)
    try start(fresh, 32)
    try EchoBackend.echoes(arena, fresh)
    front.disconnect()
  }

  @Test("SR09 buffers of no length are passed over, wherever they point")
  func empty() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    defer { front.disconnect() }
    let (from, to) = (try arena.allocate(1), try arena.allocate(4))
    try arena.write([0x33], at: from)
    _ = try queue.submit([
      DescriptorSpec(0xffff_ffff_ffff_0000, 0), DescriptorSpec(from, 1),
      DescriptorSpec(1 << 60, 0, write: true),
      DescriptorSpec(to, 4, write: true), DescriptorSpec(to, 0, write: true),
    ])
    #expect(try queue.wait().length == 4)
    #expect(try arena.read(at: to, count: 4) == [0x33, 0x33, 0x33, 0x33])
  }

  @Test("SR13 indices wrap, in both rings, with every batch offset", arguments: [false, true])
  func wrap(packed: Bool) throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running(packed: packed)
    defer { front.disconnect() }
    let (from, to) = (try arena.allocate(1), try arena.allocate(4))
    var sent = 0
    var batch = 0
    while sent < 70_000 {
      batch = batch % 31 + 1
      for _ in 0..<batch {
        _ = queue.ring.add([DescriptorSpec(from, 1), DescriptorSpec(to, 1, write: true)])
      }
      queue.publish()
      for _ in 0..<batch { #expect(try queue.wait().length == 1) }
      sent += batch
    }
    #expect(queue.ring.fault == nil)
    #expect(backend.host.counters[0].value(.chains) == UInt64(sent))
  }

  @Test("SR15 an event index that is poison costs calls at most, never progress")
  func poisonedEvent() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    defer { front.disconnect() }
    for event in [0, 1, 0x7fff, 0x8000, 0xffff] as [UInt16] {
      queue.ring.withSplit { $0.rawSetUsedEvent(event) }
      for _ in 0..<100 { try EchoBackend.echoes(arena, queue) }
    }
  }

  @Test(
    "SR17 what was made available before the ring started is served without a kick", arguments: [false, true])
  func availableBefore(packed: Bool) throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running(packed: packed)
    defer { front.disconnect() }
    try EchoBackend.echoes(arena, queue)
    let base = try front.getVringBase(0)
    let (from, to) = (try arena.allocate(1), try arena.allocate(4))
    _ = queue.ring.add([DescriptorSpec(from, 1), DescriptorSpec(to, 4, write: true)])
    queue.ring.publish()
    #expect(try front.setVringBase(0, base) == .ok)
    #expect(try front.setVringKick(0, queue.kick) == .ok)
    #expect(try queue.wait().length == 4)
  }

  @Test("SR19 flags of the available ring that mean nothing are passed over")
  func availableFlags() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running()
    defer { front.disconnect() }
    queue.ring.withSplit { $0.rawSetAvailableFlags(0xfffe) }
    try EchoBackend.echoes(arena, queue)
  }

  /// Descriptors of a packed ring from its position on: {length, id, flags without the marks}.
  static let packedBreaks: [(String, [(length: UInt32, id: UInt16, flags: UInt16)])] = [
    ("PR01 an indirect descriptor with a next", [(16, 0, indirect | next), (16, 0, 0)]),
    ("PR02 an indirect table of no length", [(0, 0, indirect)]),
    ("PR02 an indirect table of 17 bytes", [(17, 0, indirect)]),
    ("PR03 a chain that never ends", Array(repeating: (16, 0, next), count: 64)),
    ("PR04 a buffer id past the queue", [(16, 64, 0)]),
    ("PR04 a buffer id far past the queue", [(16, 0xffff, 0)]),
    ("a readable buffer after a writable one", [(16, 0, write | next), (16, 0, 0)]),
    ("an indirect descriptor after a direct one", [(16, 0, next), (16, 0, indirect)]),
  ]

  @Test("a broken packed ring ends, and its front-end is told", arguments: 0..<packedBreaks.count)
  func breaksPacked(_ number: Int) throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running(packed: true)
    defer { front.disconnect() }
    let data = try arena.allocate(4096, alignment: 16)
    queue.ring.withPacked { ring in
      for (i, descriptor) in Self.packedBreaks[number].1.enumerated().reversed() {
        ring.rawSetDescriptor(
          UInt16(i), address: data, length: descriptor.length, id: descriptor.id,
          flags: descriptor.flags | PackedDriverRing.availableBits(wrap: true))
      }
    }
    queue.kick.ring()
    try queue.expectError()
    #expect(try front.getVringBase(0) == 0x8000_8000)
  }

  @Test("PR05 PR06 marks that do not say available are not taken", arguments: [UInt16(0), 0x8080, 0x8000])
  func marks(_ flags: UInt16) throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running(packed: true)
    defer { front.disconnect() }
    let data = try arena.allocate(16)
    queue.ring.withPacked { $0.rawSetDescriptor(0, address: data, length: 16, id: 0, flags: flags) }
    queue.kick.ring()
    try front.barrier()
    #expect(try front.getVringBase(0) == 0x8000_8000)
    #expect(backend.host.counters[0].value(.chains) == 0)
  }

  @Test("PR08 driver events that cannot be cost calls at most, never progress")
  func driverEvents() throws {
    let backend = try EchoBackend()
    let (front, arena, queue) = try backend.running(packed: true)
    defer { front.disconnect() }
    queue.waiting = .spin
    for (offset, flags) in [(0, 3), (63, 2), (64, 2), (0x7fff, 2), (0xffff, 2), (0x8000, 2), (0, 0)]
      as [(UInt16, UInt16)]
    {
      queue.ring.withPacked { $0.rawSetDriverEvent(offsetWrap: offset, flags: flags) }
      for _ in 0..<70 { try EchoBackend.echoes(arena, queue) }
    }
  }
}
