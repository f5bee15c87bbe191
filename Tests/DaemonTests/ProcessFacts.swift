// What the kernel tells of a process: time on processors, memory, descriptors, mappings. Any thread.

import Foundation
import GuestHarness

/// A look at a live process by its id.
struct ProcessFacts {
  let pid: pid_t
  init(_ process: ChildProcess) { pid = process.pid }

  /// A file of /proc, whole: it has no size, and Foundation's ways by path end with the kernel's first piece of it.
  func text(_ name: String) -> String {
    let file = try? FileHandle(forReadingFrom: URL(fileURLWithPath: "/proc/\(pid)/\(name)"))
    return String(decoding: (try? file?.readToEnd()) ?? Data(), as: UTF8.self)
  }

  /// What its main thread is called: the program's name, of 15 bytes at most.
  var name: String { text("comm").trimmingCharacters(in: .newlines) }

  /// Processor time of all threads so far, in seconds.
  var processorTime: Double {
    var clock = clockid_t()
    var time = timespec()
    guard clock_getcpuclockid(pid, &clock) == 0, clock_gettime(clock, &time) == 0 else { return .nan }
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
  }

  /// The share of one processor it uses during a time, which is measured and not only asked for.
  func load(over milliseconds: Int32) -> Double {
    let clock = ContinuousClock()
    let before = processorTime
    // A window to measure, not a wait for something.
    let window = clock.measure { _ = poll(nil, 0, milliseconds) }
    return (processorTime - before) / (window / .seconds(1))
  }

  /// Processor time of its threads, in seconds, by their names.
  var threadTimes: [String: Double] {
    let tasks = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task")) ?? []
    var times: [String: Double] = [:]
    for task in tasks {
      let name = text("task/\(task)/comm").trimmingCharacters(in: .newlines)
      let nanoseconds = text("task/\(task)/schedstat").split(separator: " ").first.flatMap { Double($0) } ?? 0
      times[name, default: 0] += nanoseconds / 1e9
    }
    return times
  }

  /// The processors that a thread may run on, as the kernel writes them: "0", "0-3".
  func processors(ofThread name: String) -> String? {
    let tasks = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task")) ?? []
    guard let task = tasks.first(where: { text("task/\($0)/comm") == name + "\n" }) else { return nil }
    let line = text("task/\(task)/status").split(separator: "\n").first { $0.hasPrefix("Cpus_allowed_list:") }
    return line?.split(whereSeparator: \.isWhitespace).last.map(String.init)
  }

  /// A number of /proc/PID/status: kilobytes for sizes.
  func status(_ name: String) -> Int? {
    let line = text("status").split(separator: "\n").first { $0.hasPrefix(name + ":") }
    return line?.split(whereSeparator: \.isWhitespace).dropFirst().first.flatMap { Int($0) }
  }

  /// Signals that it was sent and has not taken, bit n - 1 for signal n.
  var pendingSignals: UInt64 {
    let line = text("status").split(separator: "\n").first { $0.hasPrefix("ShdPnd:") }
    return line?.split(whereSeparator: \.isWhitespace).last.flatMap { UInt64($0, radix: 16) } ?? 0
  }

  /// How its main thread is doing: R, S, D, T, Z.
  var state: Character? {
    text("stat").split(separator: ")").last?.dropFirst().first
  }

  var openDescriptors: Int {
    (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/fd"))?.count ?? -1
  }

  /// The number that its next descriptor gets.
  var lowestFreeDescriptor: Int {
    let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/fd")) ?? []
    let open = Set(names.compactMap { Int($0) })
    return (0...open.count).first { !open.contains($0) } ?? open.count
  }

  /// How many mappings it has.
  var mappings: Int { text("maps").split(separator: "\n").count }

  /// Kilobytes of a file, by its path, that its mappings have at hand.
  func resident(of file: String) -> Int {
    var isThere = false
    return text("smaps").split(separator: "\n").reduce(0) { sum, line in
      let words = line.split(whereSeparator: \.isWhitespace)
      // A mapping's first line begins with its addresses, the others with a name and a colon.
      if words.first?.hasSuffix(":") == false { isThere = words.last.map(String.init) == file }
      return isThere && words.first == "Rss:" ? sum + (Int(words[1]) ?? 0) : sum
    }
  }

  /// Mappings that may be executed: address range, permissions, file. The kernel gives the list in pieces, between which
  /// a mapping that comes or goes can hide another: all that several looks saw.
  var executableMappings: Set<String> {
    (0..<5).reduce(into: []) { seen, _ in seen.formUnion(executableMappingsAtALook) }
  }

  private var executableMappingsAtALook: Set<String> {
    let lines = text("maps").split(separator: "\n").map { $0.split(whereSeparator: \.isWhitespace) }
    return Set(
      lines.filter { $0.count >= 5 && $0[1].contains("x") }.map {
        "\($0[0]) \($0[1]) \($0.count > 5 ? $0[5] : "")"
      })
  }
}
