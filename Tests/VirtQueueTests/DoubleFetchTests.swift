// Memory that is another the moment it was read: each word of a ring turns into ones right after the device's instruction
// that read it. A device that looks at a word twice, to check it and then to use it, sees two values; here always.

import TestSupport
import Testing
import VirtQueue

/// Which words there are, and how often each was read. A read changes its word for good.
private final class ChangingWords {
  struct Word: Hashable {
    let piece: Int
    let offset: Int
    let size: Int
  }
  private var words: [Word] = []
  private(set) var reads: [Word: Int] = [:]
  private(set) var strays: [Access] = []
  let pieces: [UnsafeMutableRawBufferPointer]

  init(_ pieces: [UnsafeMutableRawBufferPointer]) { self.pieces = pieces }

  func add(_ piece: Int, _ offsets: some Sequence<Int>, size: Int) {
    for offset in offsets { words.append(Word(piece: piece, offset: offset, size: size)) }
  }

  func touched(_ access: Access) {
    if access.isWrite { return }
    guard
      let word = words.first(where: {
        $0.piece == access.piece && access.offset >= $0.offset && access.offset < $0.offset + $0.size
      })
    else {
      strays.append(access)
      return
    }
    reads[word, default: 0] += 1
    for i in 0..<word.size { pieces[word.piece][word.offset + i] = 0xff }
  }

  func count(_ piece: Int, _ offset: Int) -> Int {
    reads.reduce(0) { $1.key.piece == piece && $1.key.offset == offset ? $0 + $1.value : $0 }
  }
}

@Suite("words that change once they are read", .enabled(if: Trap.isSupported, "needs an x86-64 processor"))
struct DoubleFetchTests {
  private static let size = 8

  /// The ring, and the first page of indirect tables, word by word.
  private func words(_ format: Format, _ memory: TestMemory, _ layout: RingLayout) -> ChangingWords {
    let words = ChangingWords([
      UnsafeMutableRawBufferPointer(start: memory.host(Place.ring), count: 4096),
      UnsafeMutableRawBufferPointer(start: memory.host(Place.tables), count: 4096 * 4),
    ])
    words.add(0, stride(from: 0, to: 16 * Self.size, by: 8), size: 8)
    words.add(1, stride(from: 0, to: 4096 * 4, by: 8), size: 8)
    let driver = Int(layout.driverArea - layout.descriptorArea)
    if format == .split {
      words.add(0, stride(from: driver, to: driver + 6 + 2 * Self.size, by: 2), size: 2)
    } else {
      words.add(0, [driver], size: 4)
    }
    return words
  }

  private static let shapes: [(Shape, Int)] = [
    (.direct, 1), (.direct, 3), (.direct, 8), (.indirect, 1), (.indirect, 5), (.mixed(direct: 2), 4),
  ]

  @Test("a chain is what its words said when they were read, each of them once", arguments: Format.allCases)
  func chains(format: Format) throws {
    for (shape, count) in Self.shapes where format == .split || shape != .mixed(direct: 2) {
      let rig = try Rig(format, size: Self.size)
      let pieces = (0..<count).map { i in
        i < (count + 1) / 2
          ? Piece.read(Place.read + UInt64(32 * i), 16 + i) : Piece.write(Place.write + UInt64(32 * i), 8 + i)
      }
      let token = try #require(rig.driver.add(pieces, shape))
      let words = words(format, rig.memory, rig.driver.layout)
      let given = Trap.watch(words.pieces, after: words.touched) { try? rig.ring.chain() }
      let chain = try #require(given, "\(shape): \(String(describing: rig.ring.fault))")
      #expect(chain.head == token)
      #expect(chain.readable.contents == expected(pieces))
      #expect(chain.writable.byteCount == pieces.filter(\.writable).reduce(0) { $0 + $1.length })
      #expect(words.reads.values.allSatisfy { $0 == 1 }, "\(shape): \(words.reads)")
      #expect(words.strays.isEmpty, "\(words.strays)")
      // Two words a descriptor, and what leads to the first: a split ring's index and entry.
      let table = shape == .direct ? 0 : count - (shape == .mixed(direct: 2) ? 2 : 0)
      let descriptors = shape.ringDescriptors(count) + table
      #expect(words.reads.count == 2 * descriptors + (format == .split ? 2 : 0))
      rig.ring.complete(chain, written: 0)
    }
  }

  @Test("what the driver wants to hear of is read once a batch", arguments: Format.allCases, [false, true])
  func wishes(format: Format, eventIndex: Bool) throws {
    let rig = try Rig(format, size: Self.size, eventIndex: eventIndex)
    _ = try #require(rig.driver.add([.read(Place.read, 8)], .direct))
    let chain = try rig.ring.chain()
    let words = words(format, rig.memory, rig.driver.layout)
    Trap.watch(words.pieces, after: words.touched) {
      rig.ring.complete(chain, written: 0)
      _ = rig.ring.publish()
    }
    #expect(words.reads.count == 1 && words.reads.values.allSatisfy { $0 == 1 }, "\(words.reads)")
    #expect(words.strays.isEmpty, "\(words.strays)")
  }

  @Test("before sleeping, the ring is looked at once", arguments: Format.allCases)
  func parking(format: Format) throws {
    let rig = try Rig(format, size: Self.size)
    let words = words(format, rig.memory, rig.driver.layout)
    let arrived = Trap.watch(words.pieces, after: words.touched) { rig.ring.park() }
    #expect(!arrived)
    #expect(words.reads.values.reduce(0, +) == 1, "\(words.reads)")
    #expect(words.strays.isEmpty, "\(words.strays)")
  }

  @Test("the watch itself notices a word that is read twice")
  func notices() throws {
    let rig = try Rig(.split, size: Self.size)
    let words = words(.split, rig.memory, rig.driver.layout)
    let place = rig.memory.host(Place.ring + 16)
    place.storeBytes(of: 5, as: UInt64.self)
    let (first, second) = Trap.watch(words.pieces, after: words.touched) {
      (plainLoad(place), plainLoad(place))
    }
    #expect(first == 5)
    #expect(second == .max)
    #expect(words.count(0, 16) == 2)
  }
}

/// A load that stays one.
@inline(never) private func plainLoad(_ place: UnsafeMutableRawPointer) -> UInt64 {
  place.load(as: UInt64.self)
}
