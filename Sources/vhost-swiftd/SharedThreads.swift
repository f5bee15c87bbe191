// The queue threads of one device, or of several that share them, and with them what they serve beside front-ends. On the main
// thread.

import DeviceKit
import HostIO

/// Started by the first device that starts, ended with the last one.
final class SharedThreads {
  let threads: [QueueThread]
  /// A device without a front-end, of one queue: a switch's uplink. It serves from the first `open` on.
  private let resident: DeviceHost?
  private var users = 0
  private var joined = 0
  private var isRunning = false
  private var isOpen = false

  init(_ threads: [QueueThread], resident: DeviceHost? = nil) {
    self.threads = threads
    self.resident = resident
  }

  /// Another device is going to use them; its number among those that do.
  func join() -> Int {
    users += 1
    joined += 1
    return joined
  }

  var sandboxNeeds: SandboxNeeds { resident?.device.sandboxNeeds ?? SandboxNeeds() }

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

  /// The sandbox is closed: the resident serves.
  func open() throws(Failure) {
    guard !isOpen, let resident else { return }
    isOpen = true
    if let failure = resident.startAlone(0) { throw Failure.run("the uplink does not start: \(failure)") }
  }

  /// A device has ended, its queues have stopped.
  func leave() {
    users -= 1
    guard users == 0 else { return }
    if let resident { _ = resident.stop([0]) }
    for thread in threads { thread.finish() }
  }

  /// What was made for the resident goes.
  func retire() { resident?.device.retire() }

  /// The resident's counters, told behind those of the last device.
  func json(after number: Int) -> [String] {
    guard let resident, number == joined else { return [] }
    return [Statistics.json(device: resident.device.identity.name, host: resident, threads: threads)]
  }
}
