// Counters as JSON: one object a line, written at SIGUSR1 and at the end.

import CLinux
import DeviceKit
import Glibc
import HostIO

/// Where statistics go: standard output, or a file that is opened once and holds the last object written.
struct Statistics: ~Copyable {
  private let file: OwnedFD?
  private let wanted: Bool
  /// The file, where it was not there before.
  let made: String?

  /// Nil: to standard output at SIGUSR1 only. `images`: descriptors of files that must not be overwritten.
  init(to path: String?, sparing images: [Int32]) throws {
    wanted = path != nil
    guard let path, path != "-" else {
      file = nil
      made = nil
      return
    }
    // Nothing here may wait: not for a reader of a FIFO either.
    let flags = O_WRONLY | O_NONBLOCK | O_CLOEXEC
    // SAFETY (both calls): a NUL-terminated copy of the path.
    var raw = unsafe clx_open(path, flags | O_CREAT | O_EXCL, 0o644)
    let isNew = raw >= 0
    if !isNew, errno == EEXIST { raw = unsafe clx_open(path, flags, 0) }
    guard raw >= 0 else {
      throw Failure.run("cannot write statistics to '\(path)': \(HostError.text(of: errno))")
    }
    let descriptor = OwnedFD(adopting: raw)
    guard !images.contains(where: { Self.isSame($0, raw) }) else {
      throw Failure.run("statistics would overwrite the image '\(path)': give another file")
    }
    file = consume descriptor
    made = isNew ? path : nil
  }

  private static func isSame(_ one: Int32, _ other: Int32) -> Bool {
    var facts = (stat(), stat())
    // SAFETY: fills the local values.
    guard unsafe fstat(one, &facts.0) == 0, unsafe fstat(other, &facts.1) == 0 else { return false }
    return facts.0.st_dev == facts.1.st_dev && facts.0.st_ino == facts.1.st_ino
  }

  /// Takes the file away again, where nothing came of the start.
  func withdraw() {
    // SAFETY: a NUL-terminated copy of the path.
    if let made { unsafe unlink(made) }
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
    // The main thread has signals to attend to.
    case .none: Output.write(text + "\n", to: STDOUT_FILENO, patience: 500)
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
