// An input as a row of choices. Every target reads its input through this, so any bytes are a play of legal and illegal
// moves, and a changed byte is another move: that is what makes the targets find deep states without knowing formats.

/// Reads choices one after another; past the end every choice is the first one.
struct Feed {
  private let bytes: [UInt8]
  private var at = 0

  init(_ bytes: [UInt8]) { self.bytes = bytes }

  var isEmpty: Bool { at >= bytes.count }
  /// What nobody has read yet.
  var rest: ArraySlice<UInt8> { bytes[min(at, bytes.count)...] }

  mutating func u8() -> UInt8 {
    guard at < bytes.count else { return 0 }
    defer { at += 1 }
    return bytes[at]
  }
  mutating func u16() -> UInt16 { UInt16(u8()) | UInt16(u8()) << 8 }
  mutating func u32() -> UInt32 { UInt32(u16()) | UInt32(u16()) << 16 }
  mutating func u64() -> UInt64 { UInt64(u32()) | UInt64(u32()) << 32 }
  mutating func flag() -> Bool { u8() & 1 == 1 }

  /// A number from 0 up to `limit`, which is not reached; at most 65536.
  mutating func below(_ limit: Int) -> Int {
    guard limit > 1 else { return 0 }
    return limit <= 256 ? Int(u8()) % limit : Int(u16()) % limit
  }
  mutating func pick<T>(_ values: [T]) -> T { values[below(values.count)] }

  mutating func take(_ count: Int) -> [UInt8] { (0..<count).map { _ in u8() } }
}

/// Bytes to try without libFuzzer: the same for the same seed.
public struct InputMaker {
  private var state: UInt64
  public init(seed: UInt64) { state = seed &* 0x9e37_79b9_7f4a_7c15 | 1 }

  private mutating func next() -> UInt64 {
    state ^= state << 13
    state ^= state >> 7
    state ^= state << 17
    return state
  }

  /// An input of its own, or one that differs from `seed` in a few places.
  public mutating func input(longest: Int, from seed: [UInt8]? = nil) -> [UInt8] {
    guard var bytes = seed, !bytes.isEmpty else {
      return (0..<Int(next() % UInt64(longest))).map { _ in
        // Small numbers are the meaningful ones: moves, indices, flags.
        let value = next()
        return UInt8(truncatingIfNeeded: value & 3 == 0 ? value >> 8 : (value >> 8) & 15)
      }
    }
    for _ in 0...(next() % 6) {
      let place = Int(next() % UInt64(bytes.count))
      switch next() % 4 {
      case 0: bytes[place] = UInt8(truncatingIfNeeded: next())
      case 1: bytes[place] ^= 1 << UInt8(next() % 8)
      case 2: bytes.insert(UInt8(truncatingIfNeeded: next()), at: place)
      default: if bytes.count > 1 { bytes.remove(at: place) }
      }
    }
    return Array(bytes.prefix(longest))
  }
}
