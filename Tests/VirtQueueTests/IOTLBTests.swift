// The table of an IOMMU's mappings: held against a table with an entry for every address.

import Testing
import VirtQueue

@Suite("IOTLB")
struct IOTLBTests {
  private struct Random {
    var state: UInt64
    mutating func below(_ limit: UInt64) -> UInt64 {
      state ^= state << 13
      state ^= state >> 7
      state ^= state << 17
      return state % limit
    }
  }

  @Test(
    "updates and removals, whole, in part and over each other, leave what each address was last told",
    arguments: [0, UInt64.max - 255])
  func model(base: UInt64) throws {
    let table = IOTLB()
    var random = Random(state: base | 0x1234_5677)
    var model: [Int: (user: UInt64, rights: AccessRights)] = [:]
    for round in 0..<600 {
      let first = random.below(256)
      let size = 1 + random.below(256 - first)
      let range = try #require(IOVARange(base + first, size: size))
      let user = 0x1000 + random.below(1 << 40)
      let rights = AccessRights(rawValue: UInt8(1 + random.below(3)))
      let isUpdate = random.below(3) > 0
      if isUpdate {
        let conflicts = (first..<first + size).contains { at in
          guard let old = model[Int(at)] else { return false }
          return old.user != user + (at - first) || !rights.isSuperset(of: old.rights)
        }
        #expect(table.conflicts(range, user: user, rights: rights) == conflicts)
        table.update(range, user: user, rights: rights)
      } else {
        table.remove(range)
      }
      for at in first..<first + size {
        model[Int(at)] = isUpdate ? (user + (at - first), rights) : nil
      }
      for at in 0..<256 {
        for access: AccessRights in [.read, .write, [.read, .write]] {
          let found = table.find(base + UInt64(at), upTo: 1 << 20, for: access)
          let known = model[at].flatMap { $0.rights.isSuperset(of: access) ? $0 : nil }
          #expect(found?.user == known?.user, "round \(round), address \(at)")
          if let found {
            // What is said to lie on from there does.
            #expect(found.count > 0 && UInt64(at) + found.count <= 256)
            for next in 0..<Int(min(found.count, 4)) {
              #expect(model[at + next]?.user == found.user + UInt64(next))
            }
          }
        }
      }
    }
  }

  @Test("a full table stays full: what nobody has looked at goes")
  func bounded() throws {
    let table = IOTLB()
    let page: UInt64 = 4096
    for i in 0..<UInt64(IOTLB.capacity) {
      table.update(try #require(IOVARange(i * page, size: page)), user: i * page + 7, rights: .read)
    }
    // The first two are used, the next ones are not.
    #expect(table.find(0, upTo: 1, for: .read) != nil && table.find(page, upTo: 1, for: .read) != nil)
    for i in UInt64(IOTLB.capacity)..<UInt64(IOTLB.capacity) + 100 {
      table.update(try #require(IOVARange(i * page, size: page)), user: 1, rights: .read)
    }
    #expect(table.count == IOTLB.capacity)
    #expect(table.find(page, upTo: 9, for: .read)?.user == page + 7)
    #expect(
      table.find(2 * page, upTo: 1, for: .read) == nil && table.find(101 * page, upTo: 1, for: .read) == nil)
    #expect(table.find(102 * page, upTo: 1, for: .read) != nil)
    // One mapping in two is one more than there was.
    table.remove(try #require(IOVARange(200 * page + 100, size: 1)))
    #expect(table.count == IOTLB.capacity)
    table.remove(.everything)
    #expect(table.count == 0)
  }

  @Test("ranges that are empty, or run past the last address, are none")
  func ranges() {
    #expect(
      IOVARange(5, size: 0) == nil && IOVARange(.max, size: 2) == nil && IOVARange(1, size: .max) != nil)
    #expect(IOVARange(2, size: .max) == nil && IOVARange(.max, size: 1)?.last == .max)
    #expect(
      IOVARange.everything.contains(.max) && IOVARange.everything.overlaps(IOVARange(first: 3, last: 3)))
  }

  @Test("what is missing of a buffer is told page by page, as far as is asked")
  func misses() throws {
    let table = IOTLB()
    table.update(try #require(IOVARange(0x2000, size: 0x1000)), user: 0x9000, rights: .read)
    let reads = table.misses(at: 0x1ff0, 0x3000, for: .read, limit: 10)
    #expect(reads.map(\.address) == [0x1ff0, 0x3000, 0x4000])
    #expect(table.misses(at: 0x2000, 0x1000, for: .write, limit: 10).map(\.address) == [0x2000])
    #expect(table.misses(at: 0x10_0000, 1 << 40, for: .read, limit: 3).count == 3)
    #expect(table.misses(at: .max - 10, 100, for: .read, limit: 3).isEmpty)
    #expect(table.misses(at: .max - 10, 11, for: .read, limit: 3).map(\.address) == [.max - 10])
  }
}
