// A run's figures as one line of JSON. The main thread.

import Foundation

struct LoadReport {
  let options: LoadOptions
  let figures: LoadFigures
  let server: ServerFacts

  var json: String {
    let requests = Double(max(1, figures.requests))
    let seconds = Double(max(1, figures.nanoseconds)) / 1e9
    let latency = figures.latency
    let numbers: [(String, Double)] = [
      ("requests", Double(figures.requests)), ("seconds", seconds), ("rate", requests / seconds),
      ("megabytes", requests * Double(options.bytes) / seconds / 1e6),
      ("p50", latency.percentile(0.5)), ("p90", latency.percentile(0.9)), ("p99", latency.percentile(0.99)),
      ("p999", latency.percentile(0.999)),
      ("cpu", Double(server.processor) / requests),
      ("busy", Double(server.processor) / Double(max(1, figures.nanoseconds))),
      ("switches", Double(server.voluntary + server.forced) / requests),
      ("memory", Double(server.memory)),
      ("balance", figures.most > 0 ? Double(figures.least) / Double(figures.most) : 0),
      ("batch", requests / Double(max(1, figures.rounds))),
      ("kicks", Double(figures.kicks) / requests), ("sleeps", Double(figures.sleeps) / requests),
    ]
    let body = numbers.map { "\"\($0.0)\":\(Self.text($0.1))" }.joined(separator: ",")
    return
      "{\"depth\":\(options.depth),\"queues\":\(options.queues),\"size\":\(options.bytes),"
      + "\"op\":\"\(options.operation.rawValue)\",\"client\":\"\(options.client.rawValue)\",\(body)}"
  }

  private static func text(_ number: Double) -> String {
    number == number.rounded() && abs(number) < 1e15 ? String(Int(number)) : String(format: "%.4f", number)
  }
}
