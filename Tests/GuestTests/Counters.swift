// What a back-end process counts, asked while it serves. Used on GuestThread.

import Foundation
import GuestHarness

extension ChildProcess {
  /// The counters of vhost-swiftd's first device, a dictionary a queue; SIGUSR1 brings them to standard output.
  func queueCounters() throws -> [[String: Int]] {
    let before = counterLines.count
    signal(SIGUSR1)
    try wait(until: "its counters", within: 30) { counterLines.count > before }
    let object = try JSONSerialization.jsonObject(with: Data(counterLines[before].utf8)) as? [String: Any]
    return object?["queues"] as? [[String: Int]] ?? []
  }

  /// A counter's sum over the queues, or one queue's.
  func counter(_ name: String, queue: Int? = nil) throws -> Int {
    try queueCounters().filter { queue == nil || $0["index"] == queue }.reduce(0) { $0 + ($1[name] ?? 0) }
  }

  /// A counter's sum over the queues of a device of this name, one of several in the process.
  func counter(_ name: String, of device: String) throws -> Int {
    _ = try queueCounters()
    let line = try counterLines.last { $0.hasPrefix("{\"device\":\"\(device)\"") }
      .map { try JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: Any] }
    guard let queues = line??["queues"] as? [[String: Int]] else {
      throw HarnessError("no counters of '\(device)'", logs: [("vhost-swiftd", log)])
    }
    return queues.reduce(0) { $0 + ($1[name] ?? 0) }
  }

  private var counterLines: [String] {
    let log = log
    guard let end = log.lastIndex(of: "\n") else { return [] }
    return log[..<end].split(separator: "\n").filter { $0.hasPrefix("{") }.map(String.init)
  }
}

extension NetCard {
  /// A counter's sum over the queues, or one queue's.
  func counter(_ name: String, queue: Int? = nil) throws -> Int { try process.counter(name, queue: queue) }
}
