// Guest memory for ring targets: regions at odd guest addresses, each between pages that nobody may touch, so that a step
// too far ends the run. Made once a process; one thread.

import CLinux
import Glibc
import VirtQueue

final class FuzzMemory {
  private final class Keeper: Sendable {}

  struct Region {
    let guest: UInt64
    let size: Int
    let user: UInt64
    let host: UnsafeMutableRawPointer
  }

  /// Where the ring lies.
  static let ring: UInt64 = 0x4000_0000
  static let ringBytes = 0x4000
  /// Two neighbours, for buffers and for indirect tables alike.
  static let data: UInt64 = 0x10_0000
  static let border: UInt64 = data + 0x2000
  static let dataEnd: UInt64 = border + 0x2000
  /// The highest region: it ends a page below 2^64.
  static let top: UInt64 = 0xffff_ffff_ffff_d000
  static let topEnd: UInt64 = top + 0x2000

  let regions: [Region]
  let map: GuestMemoryMap
  /// The same memory without its lower data region.
  let smallerMap: GuestMemoryMap

  init() throws {
    var user: UInt64 = 0x7f80_0000_0000
    var made: [Region] = []
    for (guest, size) in [
      (Self.ring, Self.ringBytes), (Self.border, 0x2000), (Self.data, 0x2000), (Self.top, 0x2000),
    ] {
      let base = mmap(nil, size + 2 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
      guard let base, base != MAP_FAILED, mprotect(base + 4096, size, PROT_READ | PROT_WRITE) == 0 else {
        throw Defect("no memory to play in")
      }
      user -= 0x10_0000
      made.append(Region(guest: guest, size: size, user: user, host: base + 4096))
    }
    regions = made
    func makeMap(_ regions: [Region]) throws -> GuestMemoryMap {
      try GuestMemoryMap(
        generation: 1,
        regions: regions.map {
          GuestRegion(
            guestAddress: $0.guest, size: UInt64($0.size), userAddress: $0.user, host: $0.host,
            owner: Keeper())
        })
    }
    map = try makeMap(made)
    smallerMap = try makeMap(made.filter { $0.guest != Self.data })
  }

  /// All bytes 0.
  func clear() { for region in regions { memset(region.host, 0, region.size) } }

  /// Where the ring's byte `offset` is, modulo the region.
  func ring(_ offset: Int) -> UnsafeMutableRawPointer { regions[0].host + offset % (Self.ringBytes - 8) }
  var ringUser: UInt64 { regions[0].user }

  /// Two words of a table entry in the lower data region.
  func setEntry(_ index: Int, _ first: UInt64, _ second: UInt64) {
    let place = regions[2].host + 16 * (index % 512)
    clx_store_relaxed_u64(place, first)
    clx_store_relaxed_u64(place + 8, second)
  }

  func holds(_ start: UnsafeRawPointer, _ count: Int) -> Bool {
    regions.contains {
      start >= UnsafeRawPointer($0.host) && start + count <= UnsafeRawPointer($0.host + $0.size)
    }
  }

  // MARK: Choices

  static func address(_ feed: inout Feed) -> UInt64 {
    let near = UInt64(feed.u8())
    return feed.pick([
      data + near, data + 16 * near, border - near, border + near, dataEnd - near, top + near, topEnd - near,
      ring + 16 * near, 0x3000_0000 + near, .max - near, 0, feed.isEmpty ? 0 : data &+ (near << 56),
    ])
  }

  static func length(_ feed: inout Feed) -> UInt32 {
    feed.pick([
      16, 1, 0, 32, 64, 48, 512, 513, 0x1000, 0x2000, 0x2001, 0x4000, 0x7fff_ffff, 0xffff_ffff,
      UInt32(feed.u8()), UInt32(feed.u8()) << 4,
    ])
  }
}
