// Ours and the peer in turn under the same load: A B A B, so that a machine that changes its mood changes it for both. The main
// thread.

import Foundation
import GuestHarness

/// What the load generator is to do; see `disk-bench --help`.
struct Workload {
  var depth = 32
  var queues = 1
  var size = 4096
  var operation = "read"
  var client = "poll"
  var order = "random"
  var packed = false
  var idle = false

  static func with(_ change: (inout Self) -> Void) -> Self {
    var workload = Self()
    change(&workload)
    return workload
  }

  var name: String {
    let bytes = size >= 1 << 20 ? "\(size >> 20) MiB" : size >= 1024 ? "\(size >> 10) KiB" : "\(size) B"
    var words = ["\(bytes) \(operation)", "depth \(depth)"]
    if order == "sequential" { words[0] += ", sequential" }
    if queues > 1 { words.append("\(queues) queues") }
    if packed { words.append("packed") }
    words.append(client == "poll" ? "client polls" : "client sleeps")
    return words.joined(separator: ", ")
  }

  func arguments(socket: String, server: Int32, seconds: Double, warmup: Double) -> [String] {
    var words = [socket, "--server", "\(server)", "--seconds", "\(seconds)", "--warmup", "\(warmup)"]
    words += ["--depth", "\(depth)", "--queues", "\(queues)", "--size", "\(size)", "--op", operation]
    words += ["--client", client, "--order", order]
    if packed { words.append("--packed") }
    if idle { words.append("--idle") }
    return words
  }
}

/// One run's numbers, by the names that `disk-bench` gives them.
typealias Run = [String: Double]

struct Contest {
  let ours: DiskServer
  let peer: DiskServer?
  let pace: Pace

  /// Runs in turn; the runs of each.
  func hold(_ workload: Workload) throws -> (ours: [Run], peer: [Run]) {
    var result: (ours: [Run], peer: [Run]) = ([], [])
    for _ in 0..<pace.rounds {
      result.ours.append(try Self.run(workload, on: ours, pace))
      if let peer { result.peer.append(try Self.run(workload, on: peer, pace)) }
    }
    return result
  }

  /// System calls a request, ours and the peer's, each in a run of its own that is not timed.
  func calls(_ workload: Workload) throws -> (ours: Double, peer: Double?) {
    (try Self.calls(workload, on: ours, pace), try peer.map { try Self.calls(workload, on: $0, pace) })
  }

  static func run(_ workload: Workload, on server: DiskServer, _ pace: Pace) throws -> Run {
    let words = workload.arguments(
      socket: server.socket, server: server.pid, seconds: pace.seconds, warmup: pace.warmup)
    return parse(try Tool.run("taskset", try ["-c", Processors.here.client, load()] + words, timeout: 120))
  }

  private static func calls(_ workload: Workload, on server: DiskServer, _ pace: Pace) throws -> Double {
    let folder = try TemporaryFolder()
    let words = workload.arguments(
      socket: server.socket, server: server.pid, seconds: pace.seconds, warmup: 0)
    let client = try ["taskset", "-c", Processors.here.client, load()] + words
    if Counting.hasPerf {
      let counts = folder.file("counts")
      let counter = [
        "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-o", counts, "-p", "\(server.pid)", "--",
      ]
      let run = parse(try Tool.run("perf", counter + client, timeout: 120))
      let text = String(decoding: FileManager.default.contents(atPath: counts) ?? Data(), as: UTF8.self)
      let line = text.split(separator: "\n").first { $0.contains("sys_enter") }
      let count = line?.split(separator: ",").first.flatMap { Double($0) } ?? 0
      return count / max(1, run["requests"] ?? 1)
    }
    let counts = folder.file("counts")
    let tracer = try ChildProcess(
      "strace", ["-f", "-c", "-o", counts, "-p", "\(server.pid)"], log: folder.file("log"))
    try tracer.wait(until: "it is attached", within: 30) { tracer.log.contains("attached") }
    let run = parse(try Tool.run(client[0], Array(client.dropFirst()), timeout: 120))
    tracer.signal(SIGINT)
    try tracer.waitExit(within: 30)
    return Counting.total(ofStrace: counts) / max(1, run["requests"] ?? 1)
  }

  private static func load() throws -> String { try Environment.program("disk-bench") }

  private static func parse(_ text: String) -> Run {
    let object = try? JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any]
    return (object ?? [:]).compactMapValues { ($0 as? NSNumber)?.doubleValue }
  }
}

/// How long and how often.
struct Pace {
  var rounds = 5
  var seconds = 0.4
  var warmup = 0.1

  static let full = Pace()
  static let quick = Pace(rounds: 3, seconds: 0.15, warmup: 0.05)
}

/// System calls of another process: perf counts without slowing it; strace does the same job more slowly.
enum Counting {
  static let hasPerf: Bool =
    (try? Tool.run("perf", ["stat", "-e", "raw_syscalls:sys_enter", "true"], timeout: 20)) != nil

  /// The `total` line of `strace -c`: … calls …
  static func total(ofStrace path: String) -> Double {
    let text = String(decoding: FileManager.default.contents(atPath: path) ?? Data(), as: UTF8.self)
    guard let line = text.split(separator: "\n").last(where: { $0.hasSuffix("total") }) else { return 0 }
    let words = line.split(separator: " ")
    return words.count > 3 ? Double(words[3]) ?? 0 : 0
  }
}
