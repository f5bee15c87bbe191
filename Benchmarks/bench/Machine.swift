// What the figures were taken on. The main thread.

import Foundation
import GuestHarness

enum Machine {
  static var name: String {
    let model = lines("/proc/cpuinfo").first { $0.hasPrefix("model name") } ?? "model name: unknown"
    let text = model.split(separator: ":").last.map { $0.trimmingCharacters(in: .whitespaces) } ?? ""
    let memory = lines("/proc/meminfo").first { $0.hasPrefix("MemTotal") }?.split(separator: " ").dropFirst()
      .first
    let mebibytes = memory.flatMap { Int($0) }.map { $0 >> 20 } ?? 0
    return "\(ProcessInfo.processInfo.activeProcessorCount) × \(text), \(mebibytes) GiB"
  }

  static var kernel: String { "Linux " + (lines("/proc/sys/kernel/osrelease").first.map(String.init) ?? "") }

  /// The load average at the time: a busy machine makes rates low; ratios less so, counts not at all.
  static var load: String { lines("/proc/loadavg").first.map(String.init) ?? "" }

  static var versions: [String] {
    [
      first("swift", ["--version"]), first("qemu-storage-daemon", ["--version"]),
      first("qemu-system-x86_64", ["--version"]), first("valgrind", ["--version"]),
      first("pkg-config", ["--modversion", "libdpdk"]).map { "DPDK \($0)" },
    ].compactMap { $0 }
  }

  static func has(_ program: String) -> Bool { (try? Tool.run("which", [program])) != nil }

  private static func first(_ program: String, _ arguments: [String]) -> String? {
    guard let text = try? Tool.run(program, arguments, timeout: 60) else { return nil }
    return text.split(separator: "\n").first { !$0.isEmpty && !$0.hasPrefix("swift-driver") }.map(String.init)
  }

  private static func lines(_ path: String) -> [Substring] {
    String(decoding: FileManager.default.contents(atPath: path) ?? Data(), as: UTF8.self).split(
      separator: "\n")
  }
}
