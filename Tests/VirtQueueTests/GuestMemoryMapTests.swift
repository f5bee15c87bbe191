// Translation of guest and front-end addresses, and which tables of regions are refused.

import Glibc
import Testing
import VirtQueue

@Suite("Guest memory map")
struct GuestMemoryMapTests {
  /// A region whose bytes nobody touches.
  private func region(
    _ guest: UInt64, _ size: UInt64, user: UInt64? = nil, host: UInt = 0x10_0000_0000
  ) -> GuestRegion {
    GuestRegion(
      guestAddress: guest, size: size, userAddress: user ?? guest,
      host: UnsafeMutableRawPointer(bitPattern: host)!,
      owner: RegionOwner())
  }

  private func refusal(_ regions: [GuestRegion]) -> MemoryMapError? {
    do throws(MemoryMapError) {
      _ = try GuestMemoryMap(generation: 1, regions: regions)
      return nil
    } catch {
      return error
    }
  }

  @Test("MM01: an empty region is refused")
  func empty() {
    #expect(refusal([region(0x1000, 0)]) == .emptyRegion(guestAddress: 0x1000))
    #expect(refusal([region(0, 1), region(0x1000, 0)]) == .emptyRegion(guestAddress: 0x1000))
  }

  @Test(
    "MM01: a region past the end of either address space is refused",
    arguments: [
      (UInt64.max, UInt64(1), UInt64(0)), (.max - 0xfff, 0x1000, 0), (.max - 0xfff, .max, 0), (1, .max, 0),
      (0, 1, .max), (0, 0x1000, .max - 0xfff), (0, .max, 1), (.max, .max, .max),
    ])
  func overflow(guest: UInt64, size: UInt64, user: UInt64) {
    #expect(
      refusal([region(guest, size, user: user)])
        == .addressOverflow(guestAddress: guest, userAddress: user, size: size))
  }

  @Test("MM01: a region may end one byte below 2^64, and may be as large as that")
  func largest() throws {
    #expect(refusal([region(.max - 0x1000, 0x1000)]) == nil)
    #expect(refusal([region(0, .max)]) == nil)
    let map = try GuestMemoryMap(
      generation: 1, regions: [region(.max - 0x1000, 0x1000, user: 0, host: 0x5000)])
    var hint = 0
    let last = map.guestView.piece(at: .max - 1, upTo: 100, hint: &hint)
    #expect(last?.count == 1)
    #expect(last.map { UInt(bitPattern: $0.start) } == 0x5fff)
    #expect(map.guestView.piece(at: .max, upTo: 1, hint: &hint) == nil)
  }

  @Test(
    "MM02: regions that share guest addresses are refused, in any order",
    arguments: [
      (UInt64(0x2000), UInt64(0x1000)), (0x1fff, 1), (0x2fff, 1), (0x2000, 1), (0x1000, 0x3000),
      (0, 0x1001 + 0x1000),
      (0x2fff, 0x10_0000), (0, .max),
    ])
  func guestOverlap(start: UInt64, size: UInt64) {
    let first = region(0x1000, 0x2000, user: 0x1_0000_0000)
    // Elsewhere in the front-end's space, except where no elsewhere is left.
    let second = region(start, size, user: size == .max ? 0 : 0x2_0000_0000)
    let low = min(start, 0x1000)
    let high = max(start, 0x1000)
    for regions in [[first, second], [second, first]] {
      guard case .overlap(let guest, let other)? = refusal(regions) else {
        Issue.record("not refused: \(start) + \(size)")
        continue
      }
      #expect(Set([guest, other]) == Set([low, high]))
    }
  }

  @Test("MM02: regions that share front-end addresses are refused; neighbours are not")
  func userOverlap() {
    let first = region(0x1000, 0x2000, user: 0x8000)
    #expect(
      refusal([first, region(0x1_0000, 0x1000, user: 0x9fff)])
        == .overlap(guestAddress: 0x1_0000, with: 0x1000))
    #expect(
      refusal([region(0x1_0000, 0x1001, user: 0x7000), first])
        == .overlap(guestAddress: 0x1000, with: 0x1_0000))
    #expect(refusal([first, region(0x1_0000, 0x1000, user: 0x8000)]) != nil)
    #expect(refusal([first, region(0x3000, 0x1000, user: 0xa000), region(0, 0x1000, user: 0x7000)]) == nil)
  }

  @Test("MM02: an overlap is found among many regions")
  func overlapAmongMany() {
    let many = (0..<64).map { region(UInt64(63 - $0) * 0x2000, 0x2000, user: UInt64($0) * 0x2000) }
    #expect(refusal(many) == nil)
    for i in 0..<64 {
      var broken = many
      broken.append(region(UInt64(i) * 0x2000 + 0x1fff, 1, user: 0x100_0000))
      #expect(refusal(broken) != nil)
    }
  }

  @Test("A map of no regions is a map in which everything is a hole")
  func none() throws {
    let map = try GuestMemoryMap(generation: 7, regions: [])
    var hint = 0
    #expect(map.generation == 7)
    #expect(map.guestView.piece(at: 0, upTo: 1, hint: &hint) == nil)
    #expect(map.userView.piece(at: .max, upTo: .max, hint: &hint) == nil)
    #expect(map.ringArea(at: 0, length: 0, alignment: 1) == nil)
  }

  @Test("Every address of every region is found, from either space, whatever the hint; no other is")
  func everyAddress() throws {
    let memory = try TestMemory([(0x9000, 7), (0x1000, 0x10), (0x1010, 0x20), (0x5000, 1), (0x1030, 3)])
    for hint in [0, 1, 4, 5, 1_000_000, Int.max, -1, Int.min] {
      for view in [0, 1] {
        var used = hint
        for region in memory.regions {
          let start = view == 0 ? region.guest : region.user
          let map = view == 0 ? memory.map.guestView : memory.map.userView
          for offset in 0..<region.size {
            let piece = map.piece(at: start + UInt64(offset), upTo: 1 << 40, hint: &used)
            #expect(piece.map { $0.start } == region.host + offset)
            #expect(piece?.count == UInt64(region.size - offset))
            if hint != 0 { used = hint }
          }
        }
        let outside: [UInt64] =
          view == 0
          ? [0, 0xfff, 0x1033, 0x4fff, 0x5001, 0x8fff, 0x9007, .max]
          : memory.regions.flatMap { [$0.user - 1, $0.user + UInt64($0.size)] }
        for address in outside {
          let map = view == 0 ? memory.map.guestView : memory.map.userView
          #expect(map.piece(at: address, upTo: 1, hint: &used) == nil, "\(address)")
          if hint != 0 { used = hint }
        }
      }
    }
  }

  @Test("A piece is as long as asked, or as the region goes on")
  func lengths() throws {
    let memory = try TestMemory([(0x1000, 0x100), (0x1100, 0x100)])
    let view = memory.map.guestView
    var hint = 0
    #expect(view.piece(at: 0x1000, upTo: 0, hint: &hint)?.count == 0)
    #expect(view.piece(at: 0x1000, upTo: 0x100, hint: &hint)?.count == 0x100)
    #expect(view.piece(at: 0x1000, upTo: 0x101, hint: &hint)?.count == 0x100)
    #expect(view.piece(at: 0x10ff, upTo: .max, hint: &hint)?.count == 1)
    #expect(hint == 0)
    #expect(view.piece(at: 0x1100, upTo: 5, hint: &hint)?.count == 5)
    #expect(hint == 1, "the hint follows the hits")
    #expect(view.piece(at: 0x1200, upTo: 5, hint: &hint) == nil)
    #expect(hint == 1, "and stays at the last one")
    #expect(view.piece(at: 0x1001, upTo: 5, hint: &hint)?.start == memory.host(0x1001))
    #expect(hint == 0)
  }

  @Test("A ring area lies in one region, aligned there and here")
  func ringAreas() throws {
    let memory = try TestMemory([(0x1000, 0x1000), (0x2000, 0x1000)])
    let map = memory.map
    let low = memory.user(0x1000)
    #expect(map.ringArea(at: low, length: 0x1000, alignment: 4096) == memory.host(0x1000))
    #expect(
      map.ringArea(at: low, length: 0x1001, alignment: 16) == nil, "neighbours in guest addresses are not one"
    )
    #expect(map.ringArea(at: low + 0xff0, length: 16, alignment: 16) == memory.host(0x1ff0))
    #expect(map.ringArea(at: low + 0xff0, length: 17, alignment: 16) == nil)
    #expect(map.ringArea(at: low + 0xfff, length: 1, alignment: 1) == memory.host(0x1fff))
    #expect(map.ringArea(at: low + 0x1000, length: 1, alignment: 1) == nil)
    #expect(map.ringArea(at: low - 1, length: 1, alignment: 1) == nil)
    #expect(map.ringArea(at: .max, length: .max, alignment: 1) == nil)
    #expect(map.ringArea(at: low + 16, length: .max, alignment: 16) == nil)
    #expect(
      map.ringArea(at: 0x1000, length: 16, alignment: 16) == nil, "a guest address is none of the front-end's"
    )
    for alignment: UInt64 in [2, 4, 16] {
      for offset in 0..<alignment {
        let area = map.ringArea(at: low + offset, length: 64, alignment: alignment)
        #expect((area != nil) == (offset == 0))
      }
    }
  }

  @Test("A ring area must be aligned in this process too")
  func hostAlignment() throws {
    let memory = try TestMemory([(0, 0x1000)])
    let skewed = GuestRegion(
      guestAddress: 0, size: 0x800, userAddress: 0x7000, host: memory.regions[0].host + 2,
      owner: RegionOwner())
    let map = try GuestMemoryMap(generation: 1, regions: [skewed])
    #expect(map.ringArea(at: 0x7000, length: 16, alignment: 2) == memory.regions[0].host + 2)
    #expect(map.ringArea(at: 0x7000, length: 16, alignment: 4) == nil)
    #expect(map.ringArea(at: 0x7002, length: 16, alignment: 4) == nil)
    #expect(map.ringArea(at: 0x7000, length: 16, alignment: 16) == nil)
  }

  @Test("A map keeps its regions' owners as long as it lives, and no longer")
  func owners() throws {
    let memory = try TestMemory([(0, 0x1000)])
    var (map, released): (GuestMemoryMap?, Flag) = try memory.newMap(generation: 2)
    #expect(map?.regions.count == 1)
    #expect(!released.isSet)
    map = nil
    #expect(released.isSet)
  }

  @Test("What was refused lets go of the owners it was given")
  func refusedOwners() throws {
    let released = Flag()
    do {
      let owner = RegionOwner(released)
      let host = UnsafeMutableRawPointer(bitPattern: 0x1000)!
      let twice = (0..<2).map { _ in
        GuestRegion(guestAddress: 0, size: 1, userAddress: 0, host: host, owner: owner)
      }
      #expect(throws: MemoryMapError.self) { try GuestMemoryMap(generation: 1, regions: twice) }
    }
    #expect(released.isSet)
  }
}
