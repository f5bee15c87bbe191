// Times by size: 32 steps in each power of two, so that a percentile is right within 3 %. One thread.

struct Histogram {
  private static let steps: UInt64 = 32
  private var counts = [UInt64](repeating: 0, count: 32 * 40)
  private(set) var total: UInt64 = 0

  mutating func add(_ nanoseconds: UInt64) {
    counts[Self.place(nanoseconds)] &+= 1
    total &+= 1
  }

  private static func place(_ value: UInt64) -> Int {
    if value < steps { return Int(value) }
    let shift = 58 - value.leadingZeroBitCount
    return min(32 * 40 - 1, (shift + 1) * 32 + Int(truncatingIfNeeded: (value >> UInt64(shift)) & 31))
  }

  /// The time that `share` of all stay below or at; 0 where there are none.
  func percentile(_ share: Double) -> Double {
    let wanted = UInt64((Double(total) * share).rounded(.up))
    var seen: UInt64 = 0
    for (place, count) in counts.enumerated() where count > 0 {
      seen += count
      if seen >= wanted { return Self.value(place) }
    }
    return 0
  }

  /// The middle of a step.
  private static func value(_ place: Int) -> Double {
    if place < 32 { return Double(place) }
    let shift = place / 32 - 1
    return (Double(32 + place % 32) + 0.5) * Double(UInt64(1) << UInt64(shift))
  }
}
