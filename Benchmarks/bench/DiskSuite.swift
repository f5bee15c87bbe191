// Disks over vhost-user: ours beside qemu-storage-daemon on each kind of storage. The main thread.

import Foundation
import GuestHarness

struct DiskSuite {
  /// Its name, as `scripts/bench NAME` takes it.
  let name: String
  let storage: Storage
  /// What the storage is in, for as long as the suite runs; nil: nothing.
  var file: StorageFile?
  /// What ours is told beside the storage.
  var options: [String] = []
  let workloads: [(Workload, Targets)]
  /// Those whose system calls are counted.
  let counted: [(Workload, Target?)]

  /// Limits for a workload; nil: it is measured and no more.
  struct Targets {
    var ratio: Double?
    var rate: Double?
    var processor: Double?
    var median: Double?
    static let none = Targets()
  }

  func run(_ pace: Pace) throws -> [Row] {
    defer { withExtendedLifetime(file) {} }
    let ours = try DiskServer.ours(storage, queues: 4, options: options)
    let peer = try DiskServer.peer(storage, queues: 4)
    defer {
      ours.stop()
      peer.stop()
    }
    let contest = Contest(ours: ours, peer: peer, pace: pace)
    var rows: [Row] = []
    for (workload, targets) in workloads {
      Progress.note("\(name): \(workload.name)")
      let runs = try contest.hold(workload)
      rows.append(row(workload, targets, runs))
    }
    for (workload, target) in counted {
      Progress.note("\(name): system calls at \(workload.name)")
      let calls = try contest.calls(workload)
      let measure = Measure(
        name: "system calls", unit: "a request", higherIsBetter: false, ours: [calls.ours],
        peer: calls.peer.map { [$0] } ?? [], target: target)
      rows.append(
        Row(suite: name, name: workload.name, peer: DiskServer.peerName, measures: [measure]))
    }
    return rows
  }

  private func row(_ workload: Workload, _ targets: Targets, _ runs: (ours: [Run], peer: [Run])) -> Row {
    func measure(_ key: String, _ name: String, _ unit: String, _ scale: Double = 1, higher: Bool = false)
      -> Measure
    {
      Measure(
        name: name, unit: unit, higherIsBetter: higher, ours: runs.ours.map { ($0[key] ?? 0) * scale },
        peer: runs.peer.map { ($0[key] ?? 0) * scale })
    }
    var rate = measure("rate", "rate", "requests/s", higher: true)
    rate.target = targets.ratio.map { .ratio($0) } ?? targets.rate.map { .atLeast($0) }
    var processor = measure("cpu", "processor", "µs a request", 1e-3)
    processor.target = targets.processor.map { .atMost($0) }
    var median = measure("p50", "latency, median", "µs", 1e-3)
    median.target = targets.median.map { .atMost($0) }
    var measures = [
      rate, processor, median, measure("p90", "latency, 90 %", "µs", 1e-3),
      measure("p99", "latency, 99 %", "µs", 1e-3), measure("p999", "latency, 99.9 %", "µs", 1e-3),
      measure("switches", "context switches", "a request"), measure("sleeps", "client's sleeps", "a request"),
      measure("kicks", "kicks", "a request"), measure("busy", "server's load", "processors"),
    ]
    if workload.size >= 64 << 10 { measures.append(measure("megabytes", "throughput", "MB/s", higher: true)) }
    return Row(suite: name, name: workload.name, peer: DiskServer.peerName, measures: measures)
  }
}
