// The report as one page that needs nothing else: a chart a suite, and every number below. The main thread.

import Foundation

struct PageWriter {
  let report: Report
  init(_ report: Report) { self.report = report }

  private static let style = """
    :root { color-scheme: light dark; --ours: #d9480f; --peer: #868e96; --text: #212529; --back: #fff; --line: #dee2e6;
      --good: #2b8a3e; --bad: #c92a2a }
    @media (prefers-color-scheme: dark) { :root { --text: #e9ecef; --back: #16181a; --line: #343a40; --good: #51cf66;
      --bad: #ff8787; --peer: #adb5bd; --ours: #ff8f4d } }
    body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 1060px;
      margin: 2em auto; padding: 0 1em }
    h1 { margin: 0 } h2 { margin: 2em 0 .3em } p { margin: .3em 0 } svg { width: 100%; height: auto; font-size: 13px }
    svg text { fill: var(--text) } .ours { fill: var(--ours) } .peer { fill: var(--peer) } .axis { stroke: var(--line) }
    table { border-collapse: collapse; width: 100%; font-size: 13px } td, th { padding: .15em .6em; text-align: right;
      border-bottom: 1px solid var(--line) } td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left }
    .good { color: var(--good) } .bad { color: var(--bad); font-weight: bold } details { margin: .5em 0 }
    .key { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 1em; vertical-align: -.1em; border-radius: 2px }
    """

  private static let titles: [String: String] = [
    "rings": "The rings alone", "null": "A disk that moves no data", "tmpfs": "A file in memory (tmpfs)",
    "cached": "A file in the page cache", "direct": "A file past the page cache (O_DIRECT)",
    "idle": "Doing nothing, and sharing", "guest": "In a guest, against QEMU's own virtio-blk",
    "net": "The network",
  ]

  var html: String {
    var parts = [
      "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
      "<title>vhost-swiftd: benchmarks</title><style>\(Self.style)</style>",
      "<h1>vhost-swiftd beside its peers</h1>",
      "<p>\(escape(report.machine)), \(escape(report.kernel)), \(escape(report.date)), load average \(escape(report.load))</p>",
      "<p>\(report.versions.map(escape).joined(separator: " · "))</p>",
      "<p>Medians of interleaved runs (ours, the peer, ours, …). \(escape(TableWriter.verdict(report))).</p>",
      "<p><span class=key style='background:var(--ours)'></span>vhost-swiftd"
        + "<span class=key style='background:var(--peer)'></span>the peer</p>",
    ]
    for missing in report.missing { parts.append("<p class=bad>Missing: \(escape(missing))</p>") }
    for suite in orderedSuites {
      let rows = report.rows.filter { $0.suite == suite }
      let peers = rows.compactMap(\.peer).reduce(into: [String]()) { if !$0.contains($1) { $0.append($1) } }
      let peer = peers.isEmpty ? "" : " · beside \(peers.joined(separator: "; "))"
      parts.append("<h2>\(escape(Self.titles[suite] ?? suite))</h2><p>\(escape(suite))\(escape(peer))</p>")
      for name in ["rate", "instructions", "processor"] { parts.append(chart(rows, name)) }
      parts.append(
        "<details\(suite == "idle" ? " open" : "")><summary>All numbers</summary>\(table(rows))</details>")
    }
    return parts.joined(separator: "\n") + "\n"
  }

  private var orderedSuites: [String] {
    var seen: [String] = []
    for row in report.rows where !seen.contains(row.suite) { seen.append(row.suite) }
    return seen
  }

  /// Bars of one measure over all rows that have it.
  private func chart(_ rows: [Row], _ name: String) -> String {
    let bars = rows.compactMap { row in row.measures.first { $0.name == name }.map { (row.name, $0) } }
    guard let unit = bars.first?.1.unit, bars.count > 1 else { return "" }
    let most = bars.flatMap { [$0.1.median, $0.1.peer.median] }.max() ?? 1
    let (left, width, step) = (360.0, 480.0, 38.0)
    var shapes: [String] = []
    for (i, bar) in bars.enumerated() {
      let top = 24 + Double(i) * step
      let measure = bar.1
      shapes.append("<text x='\(left - 10)' y='\(top + 18)' text-anchor='end'>\(escape(bar.0))</text>")
      shapes.append(
        rectangle("ours", left, top + 2, width * measure.median / most, TableWriter.number(measure.median)))
      if !measure.peer.isEmpty {
        shapes.append(
          rectangle(
            "peer", left, top + 17, width * measure.peer.median / most,
            TableWriter.number(measure.peer.median)))
      }
      if let ratio = measure.ratio {
        let reached = measure.isReached
        let style = reached.map { $0 ? " style='fill:var(--good)'" : " style='fill:var(--bad)'" } ?? ""
        let mark = reached.map { $0 ? " ✓" : " ✗" } ?? ""
        shapes.append(
          "<text x='1040' y='\(top + 18)' text-anchor='end' font-weight='bold'\(style)>"
            + "\(String(format: "%.2f", ratio)) ×\(mark)</text>")
      }
    }
    let height = 30 + Double(bars.count) * step
    let better = bars[0].1.higherIsBetter ? "more is better" : "less is better"
    return
      "<svg viewBox='0 0 1060 \(height)' role='img'><text x='\(left)' y='14'>\(escape("\(name), \(unit) (\(better))"))</text>"
      + "<line class='axis' x1='\(left)' y1='20' x2='\(left)' y2='\(height)'/>" + shapes.joined() + "</svg>"
  }

  private func rectangle(_ kind: String, _ x: Double, _ y: Double, _ width: Double, _ label: String) -> String
  {
    "<rect class='\(kind)' x='\(x)' y='\(y)' width='\(String(format: "%.1f", max(1, width)))' height='13' rx='2'/>"
      + "<text x='\(String(format: "%.1f", x + max(1, width) + 6))' y='\(y + 11)' font-size='11'>\(label)</text>"
  }

  private func table(_ rows: [Row]) -> String {
    var lines = ["<table><tr><th>what<th>measure<th>ours<th>±<th>peer<th>±<th>ratio<th>target"]
    for row in rows {
      for (i, measure) in row.measures.enumerated() {
        let reached = measure.isReached
        let style = reached.map { $0 ? " class=good" : " class=bad" } ?? ""
        let peer =
          measure.peer.isEmpty
          ? "<td><td>" : "<td>\(TableWriter.number(measure.peer.median))<td>\(percent(measure.peer.spread))"
        lines.append(
          "<tr><td>\(i == 0 ? escape(row.name) : "")<td>\(escape("\(measure.name), \(measure.unit)"))"
            + "<td>\(TableWriter.number(measure.median))<td>\(percent(measure.ours.spread))\(peer)"
            + "<td>\(measure.ratio.map { String(format: "%.2f", $0) } ?? "")<td\(style)>\(escape(TableWriter.target(measure)))"
        )
      }
    }
    return lines.joined(separator: "\n") + "</table>"
  }

  private func percent(_ share: Double) -> String { share == 0 ? "" : "\(Int((share * 100).rounded())) %" }

  private func escape(_ text: String) -> String {
    text.replacingOccurrences(of: "&", with: "&amp;").replacingOccurrences(of: "<", with: "&lt;")
      .replacingOccurrences(of: ">", with: "&gt;")
  }
}
