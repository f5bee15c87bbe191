// Counters as JSON: one object a line, written at SIGUSR1 and at the end.

import CLinux
import DeviceKit
import Glibc
import HostIO

/// Where statistics go: standard output, or a file that is opened once and holds the last object written.
struct Statistics: ~Copyable {
  private let file: OwnedFD?
  private let wanted: Bool

  /// Nil: to standard output at SIGUSR1 only.
  init(to path: String?) throws {
    wanted = path != nil
    guard let path, path != "-" else {
      file = nil
      return
    }
    // SAFETY: a NUL-terminated copy of the path.
    let raw = unsafe clx_open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0o644)
    guard raw >= 0 else {
      throw Failure.run("cannot write statistics to '\(path)': \(HostError.text(of: errno))")
    }
    file = OwnedFD(adopting: raw)
  }

  /// At the end only where the operator asked for a place.
  func write(_ lines: [String], atEnd: Bool = false) {
    guard !atEnd || wanted else { return }
    let text = lines.joined(separator: "\n")
    switch file {
    case .some(let file):
      _ = ftruncate(file.raw, 0)
      _ = lseek(file.raw, 0, SEEK_SET)
      Output.write(text + "\n", to: file.raw)
    case .none: Output.line(text)
    }
  }

  /// {"device":…,"threads":[{…}],"queues":[{"index":0,…}]}; queues that were never used are left out.
  static func json(device: String, host: DeviceHost, threads: [QueueThread]) -> String {
    let queues = host.counters.enumerated().compactMap { index, counters -> String? in
      let values = counters.snapshot
      guard values.contains(where: { $0.value != 0 }) else { return nil }
      return "{"
        + (["\"index\":\(index)"] + values.map { "\"\($0.name)\":\($0.value)" }).joined(separator: ",") + "}"
    }
    let loops = threads.map { thread in "{\"sleeps\":\(thread.sleeps)}" }
    return "{\"device\":\"\(device)\",\"threads\":[\(loops.joined(separator: ","))],"
      + "\"queues\":[\(queues.joined(separator: ","))]}"
  }
}
