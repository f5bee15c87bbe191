// Guest memory made by hand: regions in anonymous memory, each on its own between canaries and pages that may not be
// touched, at guest addresses that are neither its host addresses nor the front-end's. For every test here; any thread.

import CLinux
import Glibc
import Synchronization
import VirtQueue

/// Set once.
final class Flag: Sendable {
  private let value = Atomic<Bool>(false)
  var isSet: Bool { value.load(ordering: .acquiring) }
  func set() { value.store(true, ordering: .releasing) }
}

/// What a map holds for a region: tells when it is let go.
final class RegionOwner: Sendable {
  let released: Flag
  init(_ released: Flag = Flag()) { self.released = released }
  deinit { released.set() }
}

/// Several regions. Their user addresses run against the order in which they were asked for.
final class TestMemory: @unchecked Sendable {
  struct Region: Sendable {
    let guest: UInt64
    let size: Int
    let user: UInt64
    nonisolated(unsafe) let host: UnsafeMutableRawPointer
  }
  private static let page = 4096
  private static let canary: UInt8 = 0xc5

  let regions: [Region]
  let map: GuestMemoryMap

  init(_ asked: [(guest: UInt64, size: Int)], generation: UInt32 = 1) throws {
    var user: UInt64 = 0x7f80_0000_0000
    var made: [Region] = []
    for (guest, size) in asked {
      let length = Self.span(size)
      let base = mmap(nil, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
      guard let base, base != MAP_FAILED,
        mprotect(base + Self.page, length - 2 * Self.page, PROT_READ | PROT_WRITE) == 0
      else { throw POSIXCode(errno) }
      let host = base + 2 * Self.page
      memset(base + Self.page, Int32(Self.canary), Self.page)
      memset(host + size, Int32(Self.canary), length - 3 * Self.page - size)
      user -= UInt64(length)
      made.append(Region(guest: guest, size: size, user: user, host: host))
    }
    regions = made
    map = try Self.makeMap(made, generation: generation, owner: RegionOwner())
  }

  struct POSIXCode: Error {
    let code: Int32
    init(_ code: Int32) { self.code = code }
  }

  /// Forbidden page, canary page, region, canary of at least a page, forbidden page.
  private static func span(_ size: Int) -> Int { (size + page - 1) / page * page + 4 * page }

  deinit {
    for region in regions { munmap(region.host - 2 * Self.page, Self.span(region.size)) }
  }

  private static func makeMap(
    _ regions: [Region], generation: UInt32, owner: RegionOwner
  ) throws(MemoryMapError) -> GuestMemoryMap {
    try GuestMemoryMap(
      generation: generation,
      regions: regions.map {
        GuestRegion(
          guestAddress: $0.guest, size: UInt64($0.size), userAddress: $0.user, host: $0.host, owner: owner)
      })
  }

  /// Another map of the same memory, and a flag that is set when its last owner has let go of it.
  func newMap(generation: UInt32, without guest: UInt64? = nil) throws -> (
    map: GuestMemoryMap, released: Flag
  ) {
    let released = Flag()
    let kept = regions.filter { $0.guest != guest }
    return (try Self.makeMap(kept, generation: generation, owner: RegionOwner(released)), released)
  }

  /// Whether nothing was written beside the regions.
  var canariesIntact: Bool {
    regions.allSatisfy { region in
      let below = UnsafeRawBufferPointer(start: region.host - Self.page, count: Self.page)
      let above = UnsafeRawBufferPointer(
        start: region.host + region.size, count: Self.span(region.size) - 3 * Self.page - region.size)
      return below.allSatisfy { $0 == Self.canary } && above.allSatisfy { $0 == Self.canary }
    }
  }

  /// Whether host bytes lie wholly in one region.
  func holds(_ start: UnsafeRawPointer, _ count: Int) -> Bool {
    regions.contains {
      start >= UnsafeRawPointer($0.host) && start + count <= UnsafeRawPointer($0.host + $0.size)
    }
  }

  // MARK: The driver's view

  func region(of guest: UInt64) -> Region? {
    for region in regions where guest >= region.guest && guest - region.guest < UInt64(region.size) {
      return region
    }
    return nil
  }

  /// A guest address of one of the regions; anything else is a defect of the test.
  func host(_ guest: UInt64) -> UnsafeMutableRawPointer {
    guard let region = region(of: guest) else { fatalError("\(guest) is not in the test's memory") }
    return region.host + Int(guest - region.guest)
  }

  func user(_ guest: UInt64) -> UInt64 {
    guard let region = region(of: guest) else { fatalError("\(guest) is not in the test's memory") }
    return region.user + (guest - region.guest)
  }

  func bytes(at guest: UInt64, _ count: Int) -> [UInt8] {
    (0..<count).map { host(guest + UInt64($0)).load(as: UInt8.self) }
  }

  func write(_ bytes: [UInt8], at guest: UInt64) {
    for (i, byte) in bytes.enumerated() { host(guest + UInt64(i)).storeBytes(of: byte, as: UInt8.self) }
  }

  /// Two words of a descriptor, which may begin anywhere and lie over a border.
  func store(_ first: UInt64, _ second: UInt64, at guest: UInt64) {
    if let region = region(of: guest), guest - region.guest <= UInt64(region.size - 16) {
      let place = region.host + Int(guest - region.guest)
      place.storeBytes(of: first, as: UInt64.self)
      place.storeBytes(of: second, toByteOffset: 8, as: UInt64.self)
    } else {
      write(withUnsafeBytes(of: (first, second)) { Array($0) }, at: guest)
    }
  }

  /// The byte that a test finds where nobody wrote.
  static func pattern(_ guest: UInt64) -> UInt8 {
    UInt8(truncatingIfNeeded: (guest &* 0x9e37_79b9_7f4a_7c15) >> 56)
  }

  static func pattern(at guest: UInt64, _ count: Int) -> [UInt8] {
    (0..<UInt64(count)).map { pattern(guest &+ $0) }
  }

}

/// Where the ring tests keep things. Two neighbouring regions each for what devices read and write.
enum Place {
  static let read: UInt64 = 0x10_0000
  /// The border between the two regions that are read from.
  static let readBorder: UInt64 = read + 0x1_0000
  /// The first address after them: a hole.
  static let readEnd: UInt64 = readBorder + 0x1_0000
  static let write: UInt64 = 0x20_0000
  static let writeBorder: UInt64 = write + 0x1_0000
  static let writeEnd: UInt64 = writeBorder + 0x1_0000
  static let hole: UInt64 = 0x3000_0000
  static let ring: UInt64 = 0x4000_0000
  /// Two neighbouring regions for indirect tables.
  static let tables: UInt64 = 0x5000_0000
  static let tablesBorder: UInt64 = tables + 0x10_0000
  static let tablesEnd: UInt64 = tablesBorder + 0x10_0000
  /// The highest region: it ends 4096 bytes below 2^64.
  static let top: UInt64 = 0xffff_ffff_ffff_0000
  static let topEnd: UInt64 = top + 0xf000

  private static let pattern = TestMemory.pattern(at: read, 0x2_0000)

  /// All of them, with the pattern where devices read.
  static func memory() throws -> TestMemory {
    let memory = try TestMemory([
      (ring, 0x20_0000), (tables, 0x10_0000), (read, 0x1_0000), (write, 0x1_0000), (top, 0xf000),
      (readBorder, 0x1_0000), (writeBorder, 0x1_0000), (tablesBorder, 0x10_0000),
    ])
    for start in [read, readBorder] {
      let from = Int(start - read)
      pattern.withUnsafeBytes {
        memory.host(start).copyMemory(from: $0.baseAddress! + from, byteCount: 0x1_0000)
      }
    }
    return memory
  }
}
