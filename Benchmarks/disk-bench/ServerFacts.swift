// What a server's process has used so far, from /proc: the difference of two is what a run cost it. Any thread.

import Foundation

struct ServerFacts {
  /// Time on a processor, of all threads the process has, and context switches of its own will and against it.
  var processor: UInt64 = 0
  var voluntary: UInt64 = 0
  var forced: UInt64 = 0
  /// Resident bytes now, shared memory (the guest's) aside.
  var memory: UInt64 = 0

  init(of process: Int32?) {
    guard let process else { return }
    for line in Self.lines("/proc/\(process)/status")
    where line.hasPrefix("RssAnon") || line.hasPrefix("RssFile") {
      memory += (line.split(separator: " ").dropLast().last.flatMap { UInt64($0) } ?? 0) * 1024
    }
    let folder = "/proc/\(process)/task"
    for task in (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? [] {
      // Nanoseconds: utime and stime count in hundredths of a second.
      let times = (try? String(contentsOfFile: "\(folder)/\(task)/schedstat", encoding: .utf8)) ?? ""
      processor += times.split(separator: " ").first.flatMap { UInt64($0) } ?? 0
      for line in Self.lines("\(folder)/\(task)/status") {
        let number = line.split(whereSeparator: { " \t".contains($0) }).last.flatMap { UInt64($0) } ?? 0
        if line.hasPrefix("voluntary_ctxt_switches") { voluntary += number }
        if line.hasPrefix("nonvoluntary_ctxt_switches") { forced += number }
      }
    }
  }

  private static func lines(_ path: String) -> [Substring] {
    ((try? String(contentsOfFile: path, encoding: .utf8)) ?? "").split(separator: "\n")
  }

  /// What came since. A thread that has ended meanwhile is missing, never counted backwards.
  func since(_ before: Self) -> Self {
    var difference = self
    difference.processor = processor >= before.processor ? processor - before.processor : 0
    difference.voluntary = voluntary >= before.voluntary ? voluntary - before.voluntary : 0
    difference.forced = forced >= before.forced ? forced - before.forced : 0
    return difference
  }
}
