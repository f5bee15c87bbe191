// Keeps a hostile peer from filling the log: so many lines a second, then a count of what was left out. One thread.

import Logging

/// A logger for what a peer can cause as often as it likes.
struct LogLimiter {
  private static let perSecond = 8
  private let log: Logger
  private var windowStart = ContinuousClock.now
  private var written = 0
  private var leftOut = 0

  init(_ log: Logger) { self.log = log }

  mutating func warning(_ text: @autoclosure () -> String) {
    let now = ContinuousClock.now
    if now - windowStart >= .seconds(1) {
      if leftOut > 0 { log.warning("\(leftOut) more messages of this session were left out") }
      windowStart = now
      written = 0
      leftOut = 0
    }
    guard written < Self.perSecond else {
      leftOut += 1
      return
    }
    written += 1
    log.warning("\(text())")
  }
}
