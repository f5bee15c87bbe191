// A rate as arithmetic on one word: what a limit is made of. Called by every queue thread of a device at once, without a lock.

import Synchronization

/// A rate limit, and how much may go at once after a pause.
public struct Rate: Sendable, Equatable {
  /// Tokens (requests, bytes) a second, at least 1.
  public let perSecond: UInt64
  /// The bucket's size in tokens, at least 1: what goes at once when it is full.
  public let burst: UInt64

  /// Without a burst the bucket holds what 0.1 s brings, so that late wake-ups of a sleeping queue lose nothing.
  public init(perSecond: UInt64, burst: UInt64? = nil) {
    self.perSecond = max(1, perSecond)
    self.burst = max(1, burst ?? self.perSecond / 10)
  }
}

/// A token bucket that gives turns: whoever asks gets the moment at which it may go, at once or later, and keeps it.
///
/// The state is one moment, when the bucket will be full again; each amount moves it by what the amount takes to come
/// in. Those who wait are thereby in line, in the order they asked, and nobody asks twice. An amount above the bucket's size
/// goes when the bucket is full. All moments are nanoseconds of one clock, the caller's.
public final class TokenBucket: Sendable {
  /// Inside, time is counted in sixteenths of a nanosecond: fine enough for tens of millions a second, and good for 36
  /// years of the clock.
  private static let ticks: UInt64 = 16
  /// No amount takes longer than this to come in: two years.
  private static let longest: UInt64 = 1 << 60

  private let fullAt = Atomic<UInt64>(0)
  /// Zero: no limit.
  private let perSecond = Atomic<UInt64>(0)
  /// How long an empty bucket takes to fill.
  private let fillTime = Atomic<UInt64>(0)

  public init(_ rate: Rate? = nil) { set(rate, at: 0) }

  /// Another rate from now on, or none. The bucket keeps what is in it, and forgives what was owed.
  public func set(_ rate: Rate?, at now: UInt64) {
    let time = rate.map { Self.time($0.burst, at: $0.perSecond) } ?? 0
    fillTime.store(time, ordering: .relaxed)
    perSecond.store(rate?.perSecond ?? 0, ordering: .relaxed)
    let empty = now &* Self.ticks &+ time
    if fullAt.load(ordering: .relaxed) > empty { fullAt.store(empty, ordering: .relaxed) }
  }

  /// Takes `amount` tokens for the caller, who is to wait until the returned moment: `now` or before it means at once.
  public func reserve(_ amount: UInt64, at now: UInt64) -> UInt64 {
    let rate = perSecond.load(ordering: .relaxed)
    guard rate > 0, amount > 0 else { return now }
    let cost = Self.time(amount, at: rate)
    let moment = now &* Self.ticks
    var before = fullAt.load(ordering: .relaxed)
    while true {
      let start = max(before, moment)
      // Sums of a clock's moment and two bounded times do not wrap.
      let (taken, current) = fullAt.weakCompareExchange(
        expected: before, desired: min(start &+ cost, moment &+ Self.longest), ordering: .relaxed)
      if taken {
        let credit = fillTime.load(ordering: .relaxed)
        let due = credit > cost ? start &- min(start, credit &- cost) : start
        // Rounded up: early by a part of a nanosecond would be a token too many.
        return max(now, (due &+ Self.ticks &- 1) / Self.ticks)
      }
      before = current
    }
  }

  /// Takes `amount` tokens if they are there now; nobody waits for them.
  public func take(_ amount: UInt64, at now: UInt64) -> Bool {
    let rate = perSecond.load(ordering: .relaxed)
    guard rate > 0, amount > 0 else { return true }
    let cost = Self.time(amount, at: rate)
    let moment = now &* Self.ticks
    let latest = moment &+ max(cost, fillTime.load(ordering: .relaxed))
    var before = fullAt.load(ordering: .relaxed)
    while true {
      let after = max(before, moment) &+ cost
      guard after <= latest else { return false }
      let (taken, current) = fullAt.weakCompareExchange(
        expected: before, desired: after, ordering: .relaxed)
      if taken { return true }
      before = current
    }
  }

  /// How long `amount` tokens take to come in, in ticks, to the nearest.
  private static func time(_ amount: UInt64, at rate: UInt64) -> UInt64 {
    let product = amount.multipliedFullWidth(by: 1_000_000_000 * ticks)
    let (low, carry) = product.low.addingReportingOverflow(rate / 2)
    let high = product.high &+ (carry ? 1 : 0)
    // The quotient has 64 bits only where the rate is above the product's upper half.
    guard high < rate else { return longest }
    return min(longest, rate.dividingFullWidth((high, low)).quotient)
  }
}
