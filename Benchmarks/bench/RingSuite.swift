// The rings alone: time and instructions a request, device side. Instructions are counted by callgrind and are the same on every
// machine. The main thread.

import Foundation
import GuestHarness

enum RingSuite {
  /// The most instructions a request of three descriptors may take (docs/PERFORMANCE.md).
  static let limit = 220.0

  static func run(quick: Bool, missing: inout [String]) throws -> [Row] {
    Progress.note("rings")
    let program = try Environment.program("ring-bench")
    let rounds = quick ? "2000" : "20000"
    let output = try Tool.run(
      "taskset", ["-c", Processors.here.server, program, "--json", rounds], timeout: 300)
    let kinds = try JSONDecoder().decode([Kind].self, from: Data(output.utf8))
    let counts = counting(program, kinds, &missing)
    return kinds.map { kind in
      var measures = [
        Measure(name: "time", unit: "ns a request", higherIsBetter: false, ours: kind.runs)
      ]
      if let count = counts[kind.name] {
        measures.append(
          Measure(
            name: "instructions", unit: "a request", higherIsBetter: false, ours: [count],
            target: kind.name.contains("indirect") ? nil : .atMost(limit)))
      }
      return Row(suite: "rings", name: kind.name, measures: measures)
    }
  }

  private struct Kind: Codable {
    let name: String
    let runs: [Double]
  }

  private static func counting(_ program: String, _ kinds: [Kind], _ missing: inout [String]) -> [String:
    Double]
  {
    guard (try? Tool.run("valgrind", ["--version"])) != nil else {
      missing.append("instructions of the rings: valgrind is not here (apt-get install valgrind)")
      return [:]
    }
    var counts: [String: Double] = [:]
    for kind in kinds {
      Progress.note("rings: instructions, \(kind.name)")
      if let count = try? Callgrind.ring(program, kind.name) { counts[kind.name] = count }
    }
    return counts
  }
}

/// Counts the instructions of the device's part of a ring.
enum Callgrind {
  private static let requests = 100 * 32

  static func ring(_ program: String, _ kind: String) throws -> Double {
    let folder = try TemporaryFolder()
    // Valgrind 3.19 does not get through the compiler's debugging information.
    let bare = folder.file("program")
    try Tool.run("objcopy", ["--strip-debug", program, bare])
    let output = try Tool.run(
      "valgrind",
      [
        "--tool=callgrind", "--callgrind-out-file=\(folder.file("out"))", "--toggle-collect=*devicePart*",
        bare, "--only", kind, "--runs", "1", "100",
      ], timeout: 300)
    // ==123== Collected : 456
    let line = output.split(separator: "\n").first { $0.contains("Collected :") }
    guard let count = line?.split(separator: " ").last.flatMap({ Double($0) }), count > 0 else {
      throw HarnessError("callgrind did not count", logs: [("callgrind", output)])
    }
    return count / Double(requests)
  }
}
