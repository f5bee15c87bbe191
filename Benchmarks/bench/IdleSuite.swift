// What a connected device costs while nothing is asked of it, after load as well as before, and what memory it takes; and how two
// threads share two queues. Ours beside qemu-storage-daemon. The main thread.

import Foundation
import GuestHarness

enum IdleSuite {
  static func run(_ pace: Pace, quick: Bool) throws -> [Row] {
    let storage = Storage(kind: .null, bytes: 1 << 30)
    let ours = try DiskServer.ours(storage)
    let peer = try DiskServer.peer(storage)
    defer {
      ours.stop()
      peer.stop()
    }
    Progress.note("idle: two seconds of nothing, after some load")
    let idle = Workload.with { $0.idle = true }
    let quiet = Pace(rounds: 2, seconds: 2, warmup: pace.warmup)
    let runs = try Contest(ours: ours, peer: peer, pace: quiet).hold(idle)
    func measure(_ key: String, _ name: String, _ unit: String, _ scale: Double, _ target: Target) -> Measure
    {
      Measure(
        name: name, unit: unit, higherIsBetter: false, ours: runs.ours.map { ($0[key] ?? 0) * scale },
        peer: runs.peer.map { ($0[key] ?? 0) * scale }, target: target)
    }
    let measures = [
      measure("busy", "server's load", "% of a processor", 100, .below(0.5)),
      measure("memory", "resident memory, guest's aside", "MiB", 1.0 / 1_048_576, .below(16)),
    ]
    return [
      Row(
        suite: "idle", name: "connected and idle, after load", peer: DiskServer.peerName, measures: measures)
    ] + (try sharing(pace)) + (try neighbours.rows(quick: quick))
  }

  /// What a quiet queue waits beside one that floods.
  private static let neighbours = BenchProgram(
    name: "pair-bench", suite: "idle", peer: "the quiet queue alone", arguments: ["neighbours"],
    quick: ["neighbours", "150", "3"], targets: [:])

  /// Two queues on two threads: each does about half.
  private static func sharing(_ pace: Pace) throws -> [Row] {
    let ours = try DiskServer.ours(Storage(kind: .null, bytes: 1 << 30), queues: 2, threads: 2)
    defer { ours.stop() }
    Progress.note("idle: two queues on two threads")
    let workload = Workload.with { ($0.queues, $0.client) = (2, "sleep") }
    let runs = try Contest(ours: ours, peer: nil, pace: pace).hold(workload).ours
    let balance = Measure(
      name: "requests of the lesser queue over the other's", unit: "", higherIsBetter: true,
      ours: runs.map { $0["balance"] ?? 0 }, target: .atLeast(0.8))
    let rate = Measure(
      name: "rate", unit: "requests/s", higherIsBetter: true, ours: runs.map { $0["rate"] ?? 0 })
    return [Row(suite: "idle", name: "two queues on two threads, null disk", measures: [balance, rate])]
  }
}
