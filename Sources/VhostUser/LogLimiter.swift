// Keeps a hostile peer from filling the log: so many lines in any second, whatever it does and how often it comes back, then a
// count of what was left out. One a server; any thread.

import Logging
import Synchronization

/// A logger for what a peer can cause as often as it likes.
final class LogLimiter: Sendable {
  private static let perSecond = 8

  private struct State: ~Copyable {
    /// When the last lines were written, the oldest first.
    var times: [ContinuousClock.Instant] = []
    var leftOut = 0
  }
  private let log: Logger
  private let state = Mutex(State())

  init(_ log: Logger) { self.log = log }

  func debug(_ text: @autoclosure () -> String) { write(.debug, text) }
  func info(_ text: @autoclosure () -> String) { write(.info, text) }
  func warning(_ text: @autoclosure () -> String) { write(.warning, text) }

  private func write(_ level: Logger.Level, _ text: () -> String) {
    guard level >= log.logLevel else { return }
    let leftOut = state.withLock { state -> Int? in
      let now = ContinuousClock.now
      state.times.removeAll { now - $0 >= .seconds(1) }
      // The line about what was left out is one more.
      let lines = state.leftOut > 0 ? 2 : 1
      guard state.times.count + lines <= Self.perSecond else {
        state.leftOut += 1
        return nil
      }
      for _ in 0..<lines { state.times.append(now) }
      defer { state.leftOut = 0 }
      return state.leftOut
    }
    guard let leftOut else { return }
    if leftOut > 0 { log.log(level: level, "\(leftOut) more messages were left out") }
    log.log(level: level, "\(text())")
  }
}
