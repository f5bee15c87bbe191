// A guest that moves from one QEMU to another on this machine, running all the while. Used on GuestThread.

import Foundation

/// What QEMU says of a move that is complete.
public struct Migration {
  /// How long nobody ran the guest, in milliseconds.
  public let downtime: Int
  /// Pages that the destination asked for after the guest had moved (postcopy).
  public let requestedPages: Int
}

extension Guest {
  /// How the memory goes over.
  public enum MoveMode {
    /// Before the guest does.
    case precopy
    /// Most of it after the guest, when it is touched or comes along.
    case postcopy
  }

  /// Moves this guest to a new QEMU, and ends the old one. Throws QEMU's own words where it does not work. `beforeEnd`: the new
  /// machine runs the guest, the old one stands still and is still there.
  public func migrate(
    to configuration: GuestConfiguration, _ mode: MoveMode = .precopy, within seconds: Double = 120,
    beforeEnd: (Guest) throws -> Void = { _ in }
  ) throws -> (guest: Guest, Migration) {
    let deadline = Deadline(seconds: seconds)
    let destination = try Guest.awaiting(configuration)
    let capabilities = ["events"] + (mode == .postcopy ? ["postcopy-ram"] : [])
    for monitor in [destination.monitor, monitor] {
      try monitor.execute(
        "migrate-set-capabilities",
        ["capabilities": capabilities.map { ["capability": $0, "state": true] as [String: Any] }])
    }
    let uri = "unix:\(destination.moveSocket)"
    try destination.monitor.execute("migrate-incoming", ["uri": uri])
    // Half a second is what the last round may take; bandwidth is no limit between two processes. After a switch to postcopy
    // what is left would be over before the guest touches it: there it is one.
    try monitor.execute(
      "migrate-set-parameters",
      mode == .postcopy
        ? ["max-bandwidth": 4 << 20, "max-postcopy-bandwidth": 16 << 20]
        : ["max-bandwidth": 1 << 30, "downtime-limit": 500])
    try monitor.execute("migrate", ["uri": uri])
    if mode == .postcopy {
      try awaitStatus("active", by: deadline, destination)
      try monitor.execute("migrate-start-postcopy")
    }
    try awaitStatus("completed", by: deadline, destination)
    try destination.monitor.waitEvent("RESUME", within: deadline.remaining)
    guard let facts = try monitor.execute("query-migrate") as? [String: Any],
      let downtime = facts["downtime"] as? Int
    else { throw HarnessError("QEMU does not say how the move went") }
    try beforeEnd(destination)
    try monitor.execute("quit")
    try process.waitExit(within: 60)
    let memory = facts["ram"] as? [String: Any] ?? [:]
    return (
      destination,
      Migration(downtime: downtime, requestedPages: memory["postcopy-requests"] as? Int ?? 0)
    )
  }

  /// Waits for a status of the move that goes out of here.
  private func awaitStatus(_ wanted: String, by deadline: Deadline, _ destination: Guest) throws {
    while true {
      let event = try monitor.waitEvent("MIGRATION", within: deadline.remaining)
      let status = event["status"] as? String ?? ""
      if status == wanted { return }
      if status == "failed" || status == "completed" {
        let facts = try monitor.execute("query-migrate") as? [String: Any] ?? [:]
        throw HarnessError(
          "the move is \(status): \(facts["error-desc"] ?? "no reason given")",
          logs: [("source", process.log), ("destination", destination.process.log)])
      }
    }
  }
}
