// Network cards. Packets that go round between dpdk-testpmd as the driver and ours, or dpdk-testpmd as the back-end; and what a
// frame through a tap costs beside bare system calls. The main thread.

import Foundation
import GuestHarness

enum NetSuite {
  private static let peer = "dpdk-testpmd's vhost"

  static func run(_ pace: Pace, quick: Bool, missing: inout [String]) throws -> [Row] {
    var rows: [Row] = []
    if Machine.has("dpdk-testpmd") {
      for packed in [false, true] { rows += try loop(pace, packed: packed) }
    } else {
      missing.append("net: dpdk-testpmd is not here (apt-get install \(Testpmd.packages))")
    }
    for program in programs {
      if program.needsRoot, geteuid() != 0 {
        missing.append("net: \(program.name) makes taps and was left out: run as root")
      } else {
        rows += try program.rows(quick: quick)
      }
    }
    return rows
  }

  /// Programs that measure by themselves, ours and the peer in turn.
  private static let programs = [
    BenchProgram(
      name: "net-bench", suite: "net", peer: "bare readv and writev", needsRoot: true,
      arguments: ["20000"], quick: ["5000"],
      targets: [
        "tap, guest sends 64 KiB": .ratioAtMost(1.15), "tap, guest receives 64 KiB": .ratioAtMost(1.15),
      ]),
    BenchProgram(
      name: "pair-bench", suite: "net", peer: "two taps and a bridge", needsRoot: true,
      arguments: ["switch"], quick: ["switch", "150", "3"],
      targets: ["guest to guest, 64 B": .ratio(4), "guest to guest, 1518 B": .ratio(4)]),
  ]

  // MARK: Packets that go round

  /// A back-end and the driver at it, which stand still while the others have their turn: both poll all the time.
  private struct Pair {
    let server: ChildProcess
    let driver: Testpmd

    func run(_ pace: Pace) throws -> Double {
      for process in [server, driver.process] { process.signal(SIGCONT) }
      defer { halt() }
      usleep(UInt32(pace.warmup * 1e6))
      return try driver.rate(seconds: pace.seconds)
    }

    func halt() { for process in [driver.process, server] { process.signal(SIGSTOP) } }

    /// Killed: one that stands still does not end otherwise.
    func stop() { for process in [driver.process, server] { process.kill() } }
  }

  private static func loop(_ pace: Pace, packed: Bool) throws -> [Row] {
    let ring = packed ? "packed" : "split"
    Progress.note("net: two drivers start, \(ring) ring")
    let here = Processors.here
    let folder = try TemporaryFolder()
    let ours = try BackendProcess.vhostSwiftd([
      "net", "--socket-path", "{socket}", "--backend", "loop", "--cpus", here.server,
    ])
    let path = folder.file("peer")
    let theirs = try Testpmd.backend(at: path, processor: here.server)
    let pairs = [
      Pair(
        server: ours.process,
        driver: try Testpmd.card(at: ours.socketPath, packed: packed, processor: here.client)),
      Pair(
        server: theirs.process,
        driver: try Testpmd.card(at: path, packed: packed, processor: here.client)),
    ]
    defer { for pair in pairs { pair.stop() } }
    var rows: [Row] = []
    for bytes in [64, 1518] {
      Progress.note("net: \(bytes) B, \(ring)")
      for pair in pairs {
        for process in [pair.server, pair.driver.process] { process.signal(SIGCONT) }
        try pair.driver.send(bytes: bytes, isFirst: rows.isEmpty)
        pair.halt()
      }
      var rate = Measure(
        name: "rate", unit: "packets/s each way", higherIsBetter: true, ours: [], target: .ratio(1.0))
      for _ in 0..<pace.rounds {
        rate.ours.append(try pairs[0].run(pace))
        rate.peer.append(try pairs[1].run(pace))
      }
      rows.append(Row(suite: "net", name: "loop, \(bytes) B, \(ring)", peer: peer, measures: [rate]))
    }
    return rows
  }
}

/// A benchmark that is a program of its own. It prints, as JSON, an array of what it measured:
/// `{"name", "measure", "unit", "higherIsBetter", "ours": […], "peer": […]}`, where `ours[i]` and `peer[i]` were taken one right
/// after the other.
struct BenchProgram {
  let name: String
  let suite: String
  /// Whom it compares ours with.
  let peer: String
  var needsRoot = false
  /// For a full run, and for a quick one.
  let arguments: [String]
  let quick: [String]
  /// By what the program calls its rows.
  let targets: [String: Target]

  private struct Found: Codable {
    let name: String
    let measure: String
    let unit: String
    let higherIsBetter: Bool
    let ours: [Double]
    let peer: [Double]
  }

  func rows(quick isQuick: Bool) throws -> [Row] {
    Progress.note("\(suite): \(name)")
    let command = [try Environment.program(name), "--json"] + (isQuick ? quick : arguments)
    // What serves in it pins itself to the other processor.
    let output = try Tool.run("taskset", ["-c", Processors.here.client] + command, timeout: 180)
    let found = try JSONDecoder().decode([Found].self, from: Data(output.utf8))
    guard Set(targets.keys).isSubset(of: found.map(\.name)) else {
      throw HarnessError("\(name) did not measure all that has a target", logs: [(name, output)])
    }
    return found.map { found in
      Row(
        suite: suite, name: found.name, peer: peer,
        measures: [
          Measure(
            name: found.measure, unit: found.unit, higherIsBetter: found.higherIsBetter, ours: found.ours,
            peer: found.peer, target: targets[found.name])
        ])
    }
  }
}
