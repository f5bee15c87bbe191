// Limits as arithmetic: exact by a clock that the test moves.

import DeviceKit
import Foundation
import Testing

@Suite("token buckets")
struct TokenBucketTests {
  private static let second: UInt64 = 1_000_000_000

  /// Takes `amount` again and again, as a queue does that sleeps until its turn and wakes late; how many went in `time`.
  private func run(
    _ bucket: TokenBucket, amount: UInt64 = 1, late: UInt64, for time: UInt64, limit: UInt64 = .max
  ) -> UInt64 {
    var now: UInt64 = 1_000_000_000_000_000
    let end = now + time
    var count: UInt64 = 0
    while count < limit {
      let due = bucket.reserve(amount, at: now)
      if due > now { now = due + late }
      if now >= end { break }
      count += 1
    }
    return count
  }

  @Test(
    "RS05 a rate holds within 5 % from ten a second to millions, however late the sleeper wakes",
    arguments: [10, 333, 1000, 99_999, 1_000_000, 7_000_001] as [UInt64], [0, 50_000, 1_000_000])
  func accuracy(rate: UInt64, late: UInt64) {
    let bucket = TokenBucket(Rate(perSecond: rate))
    // A bucket that holds what 0.1 s brings, and 200 requests; or a smaller one, where that would be millions of requests.
    let size = min(max(1, rate / 10), max(rate / 250, 1000))
    bucket.set(Rate(perSecond: rate, burst: size), at: 0)
    let time = rate > 1000 ? Self.second * (size * 4) / rate : 20 * Self.second
    let count = Double(run(bucket, late: late, for: time))
    let burst = Double(size)
    let expected = Double(rate) * Double(time) / 1e9
    #expect(count <= expected * 1.001 + burst)
    #expect(count >= expected * 0.95)
  }

  @Test("RS05 bytes: amounts of any size share a rate exactly")
  func bytes() {
    for rate in [1 << 20, 100_000_000, 12_000_000_000] as [UInt64] {
      let bucket = TokenBucket(Rate(perSecond: rate))
      var now: UInt64 = 5 * Self.second
      let start = now
      var moved: UInt64 = 0
      var amount: UInt64 = 512
      while moved < rate * 3 {
        now = max(now, bucket.reserve(amount, at: now))
        moved += amount
        amount = amount >= 1 << 20 ? 512 : amount * 3 / 512 * 512 + 512
      }
      let seconds = Double(now - start) / 1e9
      let allowed = Double(rate) * seconds + Double(rate) / 10
      #expect(Double(moved) <= allowed + 2 * Double(1 << 20))
      #expect(Double(moved) >= Double(rate) * seconds * 0.999)
    }
  }

  @Test(
    "RS05 a burst is exact: that many go at once, the next one waits",
    arguments: [1, 2, 100, 5000] as [UInt64])
  func burst(size: UInt64) {
    for rate in [10, 1000, 1_000_000] as [UInt64] {
      let bucket = TokenBucket(Rate(perSecond: rate, burst: size))
      let now = 77 * Self.second
      #expect((0..<size).allSatisfy { _ in bucket.reserve(1, at: now) == now })
      let next = bucket.reserve(1, at: now)
      #expect(next == now + Self.second / rate)
      // Full again after as long as the burst takes to come in, and no fuller than that.
      let later = next + size * (Self.second / rate) * 10
      #expect((0..<size).allSatisfy { _ in bucket.reserve(1, at: later) == later })
      #expect(bucket.reserve(1, at: later) > later)
    }
  }

  @Test(
    "RS05 sixty-four queues on many threads share one bucket: every turn is given once",
    arguments: [1, 8, 64])
  func shared(queues: Int) {
    let each = 500
    let bucket = TokenBucket(Rate(perSecond: 1_000_000, burst: 10))
    let now = 9 * Self.second
    let places = TurnList(count: queues * each)
    DispatchQueue.concurrentPerform(iterations: queues) { queue in
      for i in 0..<each { places.set(queue * each + i, bucket.reserve(1, at: now)) }
    }
    let turns = places.sorted
    #expect(turns[..<10].allSatisfy { $0 == now })
    for (i, turn) in turns.enumerated().dropFirst(10) where turn != now + UInt64(i - 9) * 1000 {
      Issue.record("turn \(i) is at \(turn - now)")
      return
    }
  }

  @Test("An amount above the bucket's size goes when the bucket is full, and is paid for by those after it")
  func large() {
    let bucket = TokenBucket(Rate(perSecond: 1000, burst: 10))
    #expect(bucket.reserve(1, at: Self.second) == Self.second)
    #expect(bucket.reserve(5000, at: Self.second) == Self.second + 1_000_000)
    // Five seconds and one token's time later the bucket is full; a token of it was there 9 tokens earlier.
    #expect(bucket.reserve(1, at: Self.second) == 6 * Self.second + 2_000_000 - 10_000_000)
  }

  @Test("Another rate forgives what was owed under the old one, and fills no bucket")
  func change() {
    let bucket = TokenBucket(Rate(perSecond: 1))
    #expect(bucket.reserve(1_000_000, at: 100) == 100)
    #expect(bucket.reserve(1, at: 100) > 1000 * Self.second)
    bucket.set(Rate(perSecond: 1000, burst: 100), at: 200)
    #expect(bucket.reserve(1, at: 200) == 200 + 1_000_000)
    bucket.set(nil, at: 300)
    #expect(bucket.reserve(.max, at: 300) == 300)
    bucket.set(Rate(perSecond: 1000, burst: 100), at: Self.second * 1000)
    for _ in 0..<100 { #expect(bucket.reserve(1, at: Self.second * 1000) == Self.second * 1000) }
    #expect(bucket.reserve(1, at: Self.second * 1000) > Self.second * 1000)
  }

  @Test("Numbers of any size are taken")
  func extremes() {
    for rate in [1, 2, .max / 2, .max] as [UInt64] {
      for burst in [1, .max] as [UInt64] {
        let bucket = TokenBucket(Rate(perSecond: rate, burst: burst))
        for amount in [1, 1 << 32, .max, .max] as [UInt64] {
          #expect(bucket.reserve(amount, at: 1) >= 1)
          #expect(bucket.reserve(amount, at: 36 * 365 * 86_400 * Self.second) >= 1)
        }
      }
    }
  }

  @Test("A limiter without limits is off; total and direction hold together")
  func limiter() {
    let limiter = RateLimiter()
    #expect(!limiter.isOn)
    limiter.set(
      RateLimits(
        requests: .init(total: Rate(perSecond: 10, burst: 3), write: Rate(perSecond: 5, burst: 1)),
        bytes: .init(read: Rate(perSecond: 1000, burst: 1000))), at: 0)
    #expect(limiter.isOn)
    let now = Self.second
    #expect(limiter.reserve(.write, bytes: 1 << 20, at: now) == now)
    #expect(limiter.reserve(.write, bytes: 0, at: now) == now + Self.second / 5)
    #expect(limiter.reserve(.read, bytes: 1000, at: now) == now)
    #expect(limiter.reserve(.read, bytes: 2000, at: now) == now + Self.second)
    limiter.set(RateLimits(), at: now)
    #expect(!limiter.isOn)
  }
}

/// Moments that several threads note, each in places of its own.
private final class TurnList: @unchecked Sendable {
  private let places: UnsafeMutableBufferPointer<UInt64>
  init(count: Int) {
    places = .allocate(capacity: count)
    places.initialize(repeating: 0)
  }
  deinit { places.deallocate() }
  func set(_ index: Int, _ value: UInt64) { places[index] = value }
  var sorted: [UInt64] { places.sorted() }
}
