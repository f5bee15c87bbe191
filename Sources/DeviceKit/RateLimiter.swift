// The limits of one device: buckets for requests and for bytes, in all and by direction, shared by its queues. Set by the
// control side at any time; asked by queue threads.

import Synchronization

/// What a device may move. Nil: as much as it can.
public struct RateLimits: Sendable, Equatable {
  /// One measure's limits: both directions together, and each.
  public struct Measure: Sendable, Equatable {
    public var total: Rate?
    public var read: Rate?
    public var write: Rate?
    public init(total: Rate? = nil, read: Rate? = nil, write: Rate? = nil) {
      self.total = total
      self.read = read
      self.write = write
    }
  }

  public var requests: Measure
  public var bytes: Measure

  public init(requests: Measure = Measure(), bytes: Measure = Measure()) {
    self.requests = requests
    self.bytes = bytes
  }

  public var isEmpty: Bool { self == RateLimits() }
}

/// Gives every request of a device the moment at which it may go.
public final class RateLimiter: Sendable {
  /// As the guest sees it: what it reads or receives, what it writes or sends.
  public enum Direction: Sendable { case read, write }

  private struct Buckets: Sendable {
    let total = TokenBucket()
    let read = TokenBucket()
    let write = TokenBucket()

    func set(_ limits: RateLimits.Measure, at now: UInt64) {
      total.set(limits.total, at: now)
      read.set(limits.read, at: now)
      write.set(limits.write, at: now)
    }

    func reserve(_ amount: UInt64, _ direction: Direction, at now: UInt64) -> UInt64 {
      max(total.reserve(amount, at: now), (direction == .read ? read : write).reserve(amount, at: now))
    }
  }

  private let requests = Buckets()
  private let bytes = Buckets()
  private let on = Atomic<Bool>(false)
  private let changes = Atomic<UInt32>(0)

  public init() {}

  /// Other limits from now on. Requests that wait under the old ones go within 0.1 s.
  public func set(_ limits: RateLimits, at now: UInt64) {
    requests.set(limits.requests, at: now)
    bytes.set(limits.bytes, at: now)
    on.store(!limits.isEmpty, ordering: .relaxed)
    changes.add(1, ordering: .relaxed)
  }

  /// Whether there is any limit: all that a request asks where there is none.
  public var isOn: Bool { on.load(ordering: .relaxed) }

  /// Counts the changes of limits: a turn given before one need not be waited for.
  public var generation: UInt32 { changes.load(ordering: .relaxed) }

  /// Takes one request of `bytes` bytes; it may go at the returned moment, which is `now` where nothing is in its way.
  public func reserve(_ direction: Direction, requests count: UInt64 = 1, bytes: UInt64, at now: UInt64)
    -> UInt64
  {
    max(requests.reserve(count, direction, at: now), self.bytes.reserve(bytes, direction, at: now))
  }
}

/// One queue's place before its device's limits: at most one request waits in it. On the queue's thread.
public struct RateGate: Sendable {
  /// The longest sleep in one go: how soon a change of limits is felt.
  static let longestSleep: UInt64 = 100_000_000

  private let limiter: RateLimiter
  private var due: UInt64 = 0
  private var since: UInt64 = 0
  private var generation: UInt32 = 0

  public init(_ limiter: RateLimiter) { self.limiter = limiter }

  public var isOn: Bool { limiter.isOn }

  /// Takes a request's tokens; returns for how many nanoseconds to sleep before `remaining` is asked, 0: it may go.
  public mutating func admit(
    _ direction: RateLimiter.Direction, requests: UInt64 = 1, bytes: UInt64, at now: UInt64
  ) -> UInt64 {
    generation = limiter.generation
    due = limiter.reserve(direction, requests: requests, bytes: bytes, at: now)
    since = now
    return due > now ? min(due &- now, Self.longestSleep) : 0
  }

  /// For how much longer the waiting request is to sleep; 0: it may go.
  public func remaining(at now: UInt64) -> UInt64 {
    guard due > now, generation == limiter.generation else { return 0 }
    return min(due &- now, Self.longestSleep)
  }

  /// How long the waiting request has waited.
  public func waited(at now: UInt64) -> UInt64 { now > since ? now &- since : 0 }
}
