// The queue threads of one device, or of several that share them. On the main thread.

import DeviceKit
import HostIO

/// Started by the first device that starts, ended with the last one.
final class SharedThreads {
  let threads: [QueueThread]
  private var users = 0
  private var isRunning = false

  init(_ threads: [QueueThread]) { self.threads = threads }

  /// Another device is going to use them.
  func join() { users += 1 }

  /// Whether the rings could be restricted, if that was asked for; and a warning for each thread whose processors cannot be
  /// had. The second device finds them running.
  func start(restricted: Bool) throws(HostError) -> (whole: Bool, warnings: [HostError]) {
    guard !isRunning else { return (true, []) }
    isRunning = true
    var whole = true
    var warnings: [HostError] = []
    for thread in threads {
      if restricted, try !thread.restrict() { whole = false }
      if let warning = try thread.start() { warnings.append(warning) }
    }
    return (whole, warnings)
  }

  /// A device has ended, its queues have stopped.
  func leave() {
    users -= 1
    if users == 0 { for thread in threads { thread.finish() } }
  }
}
