// Measurements that bring their own peer, ours and the peer in turn: A B A B. Each prints a line a measure, or JSON as `bench` reads it.
// Servers are on the first processor, this client is on the last one.
//
//   pair-bench switch|neighbours [--json] [MILLISECONDS] [ROUNDS]      a run's length, and how many of them

import Foundation
import GuestHarness

@main
struct PairBench {
  static func main() {
    do {
      let words = CommandLine.arguments.dropFirst()
      let numbers = words.compactMap { Int($0) }
      let last = ProcessInfo.processInfo.activeProcessorCount - 1
      try Tool.run("taskset", ["-cp", "\(last)", "\(getpid())"])
      let pace = Pace(milliseconds: numbers.first ?? 400, rounds: numbers.dropFirst().first ?? 5)
      let findings =
        switch words.first(where: { !$0.hasPrefix("-") }) {
        case "switch": try SwitchPairs.measure(pace)
        case "neighbours": try NeighbourPairs.measure(pace)
        default: throw HarnessError("pair-bench switch|neighbours [--json] [MILLISECONDS] [ROUNDS]")
        }
      if words.contains("--json") {
        print(String(decoding: try JSONEncoder().encode(findings), as: UTF8.self))
      } else {
        for finding in findings { print(finding.text) }
      }
    } catch {
      FileHandle.standardError.write(Data("pair-bench: \(error)\n".utf8))
      exit(1)
    }
  }
}

/// How long a run is, and how many there are.
struct Pace {
  let milliseconds: Int
  let rounds: Int
}

/// What was measured: `ours[i]` and `peer[i]` one right after the other.
struct Finding: Codable {
  let name: String
  let measure: String
  let unit: String
  let higherIsBetter: Bool
  var ours: [Double] = []
  var peer: [Double] = []

  init(_ name: String, _ measure: String, _ unit: String, higherIsBetter: Bool) {
    (self.name, self.measure, self.unit, self.higherIsBetter) = (name, measure, unit, higherIsBetter)
  }

  var text: String {
    func median(_ values: [Double]) -> Double { values.sorted()[values.count / 2] }
    return "\(name): \(Int(median(ours))) \(unit), the peer \(Int(median(peer))); "
      + String(format: "%.2f ×", median(zip(ours, peer).map { $0 / $1 }))
  }
}
