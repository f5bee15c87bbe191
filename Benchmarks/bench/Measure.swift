// What a benchmark found: rows of measures, each with the runs of ours and of the peer beside it. Made by the suites, read by the
// writers. The main thread.

import Foundation

/// A limit to be reached.
struct Target: Codable {
  enum Kind: String, Codable { case ratioAtLeast, ratioAtMost, atMost, atLeast, below }
  var kind: Kind
  var limit: Double

  static func ratio(_ limit: Double) -> Self { Self(kind: .ratioAtLeast, limit: limit) }
  static func ratioAtMost(_ limit: Double) -> Self { Self(kind: .ratioAtMost, limit: limit) }
  static func atMost(_ limit: Double) -> Self { Self(kind: .atMost, limit: limit) }
  static func atLeast(_ limit: Double) -> Self { Self(kind: .atLeast, limit: limit) }
  static func below(_ limit: Double) -> Self { Self(kind: .below, limit: limit) }
}

/// One quantity, in runs: `ours[i]` and `peer[i]` were taken one right after the other.
struct Measure: Codable {
  var name: String
  var unit: String
  var higherIsBetter: Bool
  var ours: [Double]
  var peer: [Double] = []
  var target: Target?

  var median: Double { ours.median }
  /// Ours over the peer's, pair by pair; nil without a peer.
  var ratio: Double? {
    let pairs = zip(ours, peer).filter { $0.1 != 0 }
    return pairs.isEmpty ? nil : pairs.map { $0.0 / $0.1 }.median
  }

  /// Whether the target is reached; nil where there is none, or nothing to compare with.
  var isReached: Bool? {
    guard let target else { return nil }
    switch target.kind {
    case .ratioAtLeast: return ratio.map { $0 >= target.limit }
    case .ratioAtMost: return ratio.map { $0 <= target.limit }
    case .atMost: return median <= target.limit
    case .below: return median < target.limit
    case .atLeast: return median >= target.limit
    }
  }
}

/// One thing that was done, and what was measured of it.
struct Row: Codable {
  var suite: String
  var name: String
  /// Whom ours is compared with; nil: nobody.
  var peer: String?
  var measures: [Measure]
}

/// Everything of one call of the program.
struct Report: Codable {
  var date: String
  var machine: String
  var kernel: String
  var load: String
  var versions: [String]
  var seconds: Double
  var rows: [Row]
  /// What could not be run, and what would bring it.
  var missing: [String]
}

extension [Double] {
  var median: Double {
    guard !isEmpty else { return 0 }
    let sorted = sorted()
    return count % 2 == 1 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2
  }

  /// Half the distance between the extremes, over the median.
  var spread: Double {
    guard let low = self.min(), let high = self.max(), median != 0 else { return 0 }
    return (high - low) / 2 / abs(median)
  }
}
