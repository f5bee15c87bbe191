// The report as text, one line a measure. The main thread.

import Foundation

enum TableWriter {
  /// Everything but what only the JSON keeps.
  static let shown: Set<String> = [
    "rate", "processor", "latency, median", "latency, 99 %", "system calls", "time", "instructions",
    "throughput",
    "client's sleeps", "context switches",
  ]

  static func text(_ report: Report) -> String {
    var lines = [
      "\(report.machine), \(report.kernel), \(report.date), load \(report.load)",
      report.versions.joined(separator: "; "),
      "medians of interleaved runs; ± is half the distance of the extremes; ratio: ours over the peer's, pair by pair",
    ]
    var heading = ""
    for row in report.rows {
      let title = "\(row.suite)\(row.peer.map { ", beside \($0)" } ?? "")"
      if title != heading {
        heading = title
        lines.append("")
        lines.append(
          pad(title, 58) + right("ours", 12) + right("±", 6)
            + right("peer", 12) + right("±", 6) + right("ratio", 8) + "  target")
      }
      for measure in row.measures where isShown(measure) { lines.append(line(row, measure)) }
    }
    lines.append("")
    lines += report.missing.map { "missing: \($0)" }
    lines.append("\(report.rows.count) rows in \(Int(report.seconds)) s; \(Self.verdict(report))")
    return lines.joined(separator: "\n") + "\n"
  }

  static func isShown(_ measure: Measure) -> Bool { measure.target != nil || shown.contains(measure.name) }

  static func verdict(_ report: Report) -> String {
    let judged = report.rows.flatMap(\.measures).compactMap(\.isReached)
    return "\(judged.filter { $0 }.count) of \(judged.count) targets reached"
  }

  private static func line(_ row: Row, _ measure: Measure) -> String {
    let isFirst = row.measures.first { isShown($0) }?.name == measure.name
    let title = isFirst ? row.name : ""
    let unit = measure.unit.isEmpty ? measure.name : "\(measure.name), \(measure.unit)"
    let name = measure.name == "rate" || title.isEmpty == false ? title : ""
    var text =
      name.isEmpty
      ? pad("      \(unit)", 58) : pad("  \(title)" + (measure.name == "rate" ? "" : ": \(unit)"), 58)
    text += right(number(measure.median), 12) + right(percent(measure.ours.spread), 6)
    text +=
      measure.peer.isEmpty
      ? right("", 18) : right(number(measure.peer.median), 12) + right(percent(measure.peer.spread), 6)
    text += right(measure.ratio.map { String(format: "%.2f", $0) } ?? "", 8)
    return text + "  " + target(measure)
  }

  static func target(_ measure: Measure) -> String {
    guard let target = measure.target else { return "" }
    let limit = number(target.limit)
    let text =
      switch target.kind {
      case .ratioAtLeast: "≥ \(limit) ×"
      case .ratioAtMost: "≤ \(limit) ×"
      case .atMost: "≤ \(limit)"
      case .below: "< \(limit)"
      case .atLeast: "≥ \(limit)"
      }
    return text + (measure.isReached.map { $0 ? "  reached" : "  NOT reached" } ?? "  (not compared)")
  }

  /// Three figures that say something.
  static func number(_ value: Double) -> String {
    switch abs(value) {
    case 0: "0"
    case 1e6...: String(format: "%.2f M", value / 1e6)
    case 1e4...: String(format: "%.1f k", value / 1e3)
    case 100...: String(format: "%.0f", value)
    case 10...: String(format: "%.1f", value)
    case 0.01...: String(format: "%.2f", value)
    default: String(format: "%.4f", value)
    }
  }

  private static func percent(_ share: Double) -> String {
    share == 0 ? "" : "\(Int((share * 100).rounded()))%"
  }
  private static func pad(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(1, width - text.count))
  }
  private static func right(_ text: String, _ width: Int) -> String {
    String(repeating: " ", count: max(1, width - text.count)) + text
  }
}
