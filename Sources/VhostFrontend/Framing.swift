// How a disk request is cut into descriptors. Under VERSION_1 any cut of the two byte streams, readable and
// writable, is good (virtio 1.3 §2.7.4); drivers differ, and a back-end must not care. Used by BlockQueue;
// any thread.

public struct Framing: Equatable, Sendable {
  /// The header's descriptors are this long, the last one aside.
  public var headerBytes = 16
  /// Output follows the header in the header's last descriptor.
  public var joinsHeader = false
  /// The status is the last byte of the last input descriptor.
  public var joinsStatus = false
  /// Lengths of the first data descriptors; what is left makes one more, or `pieces` equal ones.
  public var cuts: [Int] = []
  public var pieces = 1
  public var table: DescriptorTable = .direct

  public init() {}

  /// header | data | status, each in one descriptor.
  public static let classic = Self()
  /// The header in descriptors of `bytes`.
  public static func headerSplit(_ bytes: Int) -> Self { with { $0.headerBytes = bytes } }
  /// Header and output in one descriptor.
  public static let headerWithData = with { $0.joinsHeader = true }
  /// Input and status in one descriptor.
  public static let statusWithData = with { $0.joinsStatus = true }
  /// Both: as few descriptors as it goes.
  public static let joined = with { ($0.joinsHeader, $0.joinsStatus) = (true, true) }
  /// Data in `count` descriptors of about equal lengths.
  public static func dataPieces(_ count: Int) -> Self { with { $0.pieces = count } }
  /// Data cut at odd places.
  public static func dataCuts(_ lengths: [Int]) -> Self { with { $0.cuts = lengths } }
  /// One byte a descriptor for the header, and data in odd pieces.
  public static let crumbs = with { ($0.headerBytes, $0.cuts) = (1, [1, 3, 511, 1]) }

  /// The same in one indirect table.
  public var indirect: Self {
    var copy = self
    copy.table = .indirect
    return copy
  }

  /// The same with the first `direct` descriptors in the ring and the rest in a table behind them.
  public func mixed(direct: Int) -> Self {
    var copy = self
    copy.table = .mixed(direct: direct)
    return copy
  }

  public static func with(_ change: (inout Self) -> Void) -> Self {
    var framing = Self()
    change(&framing)
    return framing
  }

  /// Where a request's parts lie.
  struct Parts {
    var header: UInt64
    var data: UInt64
    var outputBytes: Int
    var inputBytes: Int
    var status: UInt64
  }

  /// The chain. Joins need parts that lie side by side; nil where they do not.
  func chain(_ parts: Parts) -> [DescriptorSpec]? {
    var chain: [DescriptorSpec] = []
    Self.append(&chain, parts.header, cut(16, [], headerBytes), write: false)
    if parts.outputBytes > 0 {
      var lengths = data(parts.outputBytes)
      if joinsHeader {
        guard parts.header + 16 == parts.data, let last = chain.popLast() else { return nil }
        chain.append(DescriptorSpec(last.address, last.length + lengths.removeFirst()))
      }
      let first = parts.data + UInt64(parts.outputBytes) - lengths.reduce(0) { $0 + UInt64($1) }
      Self.append(&chain, first, lengths, write: false)
    }
    // Input goes where the output went, or right behind it.
    let input = parts.data + UInt64(parts.outputBytes)
    if parts.inputBytes > 0 { Self.append(&chain, input, data(parts.inputBytes), write: true) }
    if joinsStatus, parts.inputBytes > 0 {
      guard input + UInt64(parts.inputBytes) == parts.status, let last = chain.popLast() else { return nil }
      chain.append(DescriptorSpec(last.address, last.length + 1, write: true))
    } else {
      chain.append(DescriptorSpec(parts.status, 1, write: true))
    }
    return chain
  }

  private static func append(
    _ chain: inout [DescriptorSpec], _ address: UInt64, _ lengths: [UInt32], write: Bool
  ) {
    var address = address
    for length in lengths {
      chain.append(DescriptorSpec(address, length, write: write))
      address += UInt64(length)
    }
  }

  private func data(_ bytes: Int) -> [UInt32] {
    let left = bytes - min(bytes, cuts.reduce(0, +))
    let count = max(1, pieces)
    return cut(bytes, cuts, max(1, (left + count - 1) / count))
  }

  /// Lengths that make up `bytes`: the given ones first, as far as they go, then equal ones.
  private func cut(_ bytes: Int, _ first: [Int], _ each: Int) -> [UInt32] {
    var left = bytes
    var lengths: [UInt32] = []
    for length in first where length > 0 && left > 0 {
      lengths.append(UInt32(truncatingIfNeeded: min(length, left)))
      left -= min(length, left)
    }
    while left > 0 {
      let length = min(max(1, each), left)
      lengths.append(UInt32(truncatingIfNeeded: length))
      left -= length
    }
    return lengths
  }
}
