// How much of a queue's time goes into finding out what is in the page cache, and when to leave that be. A value: it decides, and
// makes no call. On the queue's thread.

/// When a queue may look, and for how long it goes by what it found.
///
/// A look costs about what three reads save. Where few reads meet what was found, there are fewer looks. A page that was there a
/// moment ago may be gone, and the thread waits for the disk while it copies; where that happens more than now and then, memory is
/// short, or the kernel will not say what is there (of a file that belongs to somebody else): then nothing is looked at for a while.
package struct LookPace {
  /// Nanoseconds of a tick, as a shift: half a second. What was found counts for one to two of them.
  private static let tick: UInt64 = 29
  private static let looksJudged = 64
  private static let (leastPrice, firstPrice, mostPrice) = (8, 16, 1024)
  /// Pages that had to be waited for since the look before: more are no accident.
  private static let fewFaults = 2
  private static let (shortestPause, longestPause): (UInt64, UInt64) = (1_000_000_000, 64_000_000_000)

  /// Nanoseconds, when the turn began.
  private var now: UInt64 = 0
  /// The same in ticks, 1 to 127, and 1 again.
  package private(set) var time: UInt8 = 1
  /// Pages that were asked for since the last look, and how many have to be for the next.
  private var asked = 0
  package private(set) var price = firstPrice
  private var looks = 0
  private var hits = 0
  private var faults: Int?
  private var pauseEnd: UInt64 = 0
  private var pause: UInt64 = 0

  package init() {}

  package mutating func beginTurn(at now: UInt64) {
    self.now = now
    time = UInt8(truncatingIfNeeded: (now >> Self.tick) % 127) &+ 1
  }

  package var pauses: Bool { now < pauseEnd }

  /// A read of so many pages came.
  package mutating func countAsked(pages: Int) { asked &+= pages }

  /// One was served from the mapping.
  package mutating func countHit() { hits &+= 1 }

  package var affordsLook: Bool { asked >= price }

  /// Pays for a look; `faults`: how often this thread had to wait for a page, ever. False: a pause begins.
  @inline(never)
  package mutating func look(faults count: Int) -> Bool {
    asked = 0
    looks += 1
    if looks == Self.looksJudged {
      price = hits < 4 * looks ? min(price * 2, Self.mostPrice) : max(price / 2, Self.leastPrice)
      (looks, hits) = (0, 0)
    }
    defer { faults = count }
    guard count - (faults ?? count) > Self.fewFaults else { return true }
    beginPause()
    return false
  }

  private mutating func beginPause() {
    // Long after the last one, this is another matter.
    let isFirst = pause == 0 || now - pauseEnd > Self.longestPause
    pause = isFirst ? Self.shortestPause : min(pause * 2, Self.longestPause)
    pauseEnd = now + pause
  }
}
