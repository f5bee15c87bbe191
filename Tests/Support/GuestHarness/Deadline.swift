// Time limits of everything the harness waits for. Used on any thread.

import Foundation

/// A moment on the monotonic clock after which waiting is a failure.
public struct Deadline: Sendable {
  private let end: ContinuousClock.Instant

  /// `seconds` from now. Be generous: a guest boots in 3 s on an idle machine and in 30 s on a busy one.
  public init(seconds: Double) {
    end = ContinuousClock.now + .seconds(seconds)
  }

  /// Seconds left; 0 when it has passed.
  public var remaining: Double {
    let left = ContinuousClock.now.duration(to: end)
    return max(0, Double(left.components.seconds) + Double(left.components.attoseconds) / 1e18)
  }

  public var hasPassed: Bool { remaining == 0 }

  /// What is left for poll(2), at most `slice` seconds: long waits are cut to look at other things meanwhile.
  func pollTimeout(slice: Double) -> Int32 {
    Int32((min(remaining, slice) * 1000).rounded(.up))
  }
}
