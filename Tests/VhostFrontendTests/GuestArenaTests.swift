// Guest memory: addresses, holes, shared files, guards.

import Glibc
import Testing
import VhostFrontend

@Suite("Guest arena") struct GuestArenaTests {
  static let split: [ArenaRegion] = [
    ArenaRegion(at: 0x10_0000, bytes: 0x3000),
    ArenaRegion(at: 0x10_3000, bytes: 0x1000, file: 1),
    ArenaRegion(at: 0x8000_0000, bytes: 0x2000, file: 1, fileOffset: 0x1000),
  ]

  @Test("the table names every region, with user addresses that are not guest addresses")
  func table() throws {
    let arena = try GuestArena(regions: Self.split)
    let table = arena.table
    #expect(table.map(\.guestAddress) == [0x10_0000, 0x10_3000, 0x8000_0000])
    #expect(table.map(\.size) == [0x3000, 0x1000, 0x2000])
    #expect(table.map(\.mmapOffset) == [0, 0, 0x1000])
    for region in table { #expect(region.userAddress == region.guestAddress + GuestArena.usualShift) }
    #expect(arena.descriptors.count == 3)
    #expect(arena.descriptors[1] == arena.descriptors[2])
    #expect(arena.descriptors[0] != arena.descriptors[1])
    var facts = stat()
    #expect(fstat(arena.descriptors[1], &facts) == 0)
    #expect(facts.st_size == 0x3000)
  }

  @Test("what is written shows in the file, at the region's offset")
  func file() throws {
    let arena = try GuestArena(regions: Self.split)
    try arena.write([1, 2, 3], at: 0x8000_0010)
    var bytes: [UInt8] = [0, 0, 0]
    #expect(pread(arena.descriptors[2], &bytes, 3, 0x1010) == 3)
    #expect(bytes == [1, 2, 3])
  }

  @Test("reads and writes cross adjacent regions, and stop at holes")
  func crossing() throws {
    let arena = try GuestArena(regions: Self.split)
    let data = BytePattern(seed: 1).bytes(count: 200)
    try arena.write(data, at: 0x10_3000 - 100)
    #expect(try arena.read(at: 0x10_3000 - 100, count: 200) == data)
    var inFile: [UInt8] = Array(repeating: 0, count: 100)
    #expect(pread(arena.descriptors[1], &inFile, 100, 0) == 100)
    #expect(inFile == Array(data[100...]))
    #expect(throws: FrontendError.outsideArena(guestAddress: 0x10_4000 - 1, bytes: 2)) {
      try arena.read(at: 0x10_4000 - 1, count: 2)
    }
    #expect(throws: FrontendError.outsideArena(guestAddress: 0x10_3000 - 100, bytes: 200)) {
      try arena.pointer(to: 0x10_3000 - 100, bytes: 200)
    }
    #expect(throws: FrontendError.outsideArena(guestAddress: 0, bytes: 1)) { try arena.read(at: 0, count: 1) }
    #expect(throws: FrontendError.outsideArena(guestAddress: .max, bytes: 2)) {
      try arena.write([1, 2], at: .max)
    }
  }

  @Test("neighbours in guest memory are not neighbours here")
  func notAdjacent() throws {
    let arena = try GuestArena(regions: Self.split)
    let end = try arena.pointer(to: 0x10_0000, bytes: 0x3000) + 0x3000
    #expect(try arena.pointer(to: 0x10_3000, bytes: 1) != end)
  }

  @Test("an odd offset in the file is kept, and must fit the guest address")
  func oddOffset() throws {
    let arena = try GuestArena(regions: [
      ArenaRegion(at: 0x20_0230, bytes: 0x1235, fileOffset: 0x1230),
      ArenaRegion(at: 0x40_0000, bytes: 0x1000),
    ])
    try arena.write([9], at: 0x20_0230)
    var byte: UInt8 = 0
    #expect(pread(arena.descriptors[0], &byte, 1, 0x1230) == 1)
    #expect(byte == 9)
    #expect(try UInt(bitPattern: arena.pointer(to: arena.allocate(16), bytes: 16)) % 16 == 0)
    #expect(throws: FrontendError.self) {
      try GuestArena(regions: [ArenaRegion(at: 0x20_0000, bytes: 0x1000, fileOffset: 8)])
    }
  }

  @Test("with process addresses both addresses are this process's")
  func processAddressing() throws {
    let arena = try GuestArena(
      regions: [ArenaRegion(at: 0, bytes: 0x2000), ArenaRegion(at: 0, bytes: 0x1000, file: 1)],
      addressing: .process)
    for region in arena.table {
      #expect(region.guestAddress == region.userAddress)
      let here = try arena.pointer(to: region.guestAddress, bytes: Int(region.size))
      #expect(UInt64(UInt(bitPattern: here)) == region.guestAddress)
    }
  }

  @Test("allocations are aligned, apart, inside, and end when the region does")
  func allocation() throws {
    let arena = try GuestArena(regions: Self.split)
    let first = try arena.allocate(3, alignment: 1)
    let second = try arena.allocate(100, alignment: 256)
    #expect(first == 0x10_0000)
    #expect(second == 0x10_0100)
    #expect(try arena.allocate(0x2000, alignment: 4096, region: 2) == 0x8000_0000)
    #expect(throws: FrontendError.arenaFull(bytes: 1)) { try arena.allocate(1, alignment: 1, region: 2) }
    #expect(throws: FrontendError.arenaFull(bytes: 0x3000)) { try arena.allocate(0x3000) }
    #expect(throws: FrontendError.arenaFull(bytes: 1)) { try arena.allocate(1, region: 3) }
    #expect(arena.bytesLeft() == 0x3000 - 0x164)
  }

  @Test("a guard shows the first byte somebody wrote, before and behind")
  func guards() throws {
    let arena = try GuestArena(bytes: 0x4000)
    let buffer = try arena.allocateGuarded(100, alignment: 16)
    try arena.write([UInt8](repeating: 0xff, count: 100), at: buffer)
    #expect(try arena.damagedGuards() == [])
    let old = try arena.read(at: buffer + 102, count: 1)[0]
    try arena.write([~old], at: buffer + 102)
    let damage = try #require(try arena.damagedGuards().first)
    #expect(damage.address == buffer + 102)
    #expect(damage.expected == old)
    #expect(damage.found == ~old)
    let before = try arena.read(at: buffer - 1, count: 1)[0]
    try arena.write([before &+ 1], at: buffer - 1)
    #expect(try arena.damagedGuards().map(\.address) == [buffer - 1, buffer + 102])
  }

  @Test("a region may be far larger than the machine, and may not be nothing")
  func sizes() throws {
    let arena = try GuestArena(bytes: 1 << 40)
    let end = arena.table[0].guestAddress + 1 << 40
    try arena.write([1], at: end - 1)
    #expect(try arena.read(at: end - 2, count: 2) == [0, 1])
    for bytes in [0, -1, .max] {
      #expect(throws: FrontendError.self) { try GuestArena(bytes: bytes) }
    }
  }

  @Test("seals are set once the file has its length")
  func seals() throws {
    // F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, as QEMU does.
    let arena = try GuestArena(regions: [ArenaRegion(at: 0x1000, bytes: 0x2000)], seals: 7)
    #expect(ftruncate(arena.descriptors[0], 0x1000) != 0)
    #expect(errno == EPERM)
  }

  @Test("mappings and descriptors go with the arena")
  func cleanup() throws {
    var facts = stat()
    let raw: Int32
    do {
      let arena = try GuestArena(bytes: 1 << 20)
      raw = arena.descriptors[0]
      #expect(fstat(raw, &facts) == 0)
    }
    let inode = facts.st_ino
    // The number may have been given out again, to another file.
    #expect(fstat(raw, &facts) != 0 || facts.st_ino != inode)
  }
}
