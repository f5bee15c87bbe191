// The program under test as these tests start it: once to its end, or serving until it is told to end. Any thread.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

/// What the program's name stands for in the tests' argument lists.
private func expand(_ arguments: [String], _ folder: TemporaryFolder) -> [String] {
  arguments.map { $0.replacingOccurrences(of: "{folder}", with: folder.path) }
}

/// A run of the program to its own end, with standard output and error apart. `{folder}` in an argument stands for the
/// test's folder; `prefix` is a command that runs it (prlimit, setpriv, strace).
struct Run {
  let exit: ChildProcess.Exit
  let output: String
  let errors: String
  var errorLines: [Substring] { errors.split(separator: "\n", omittingEmptySubsequences: false).dropLast() }

  @discardableResult
  init(
    _ arguments: [String], in folder: TemporaryFolder, program: String? = nil, prefix: [String] = [],
    descriptors: [Int32] = [], within seconds: Double = 30
  ) throws {
    let own = try TemporaryFolder()
    let script = #"exec >"$1" 2>"$2"; shift 2; exec "$@""#
    let command = prefix + [try program ?? Environment.program("vhost-swiftd")] + expand(arguments, folder)
    let child = try ChildProcess(
      "sh", ["-c", script, "sh", own.file("out"), own.file("err")] + command, log: own.file("sh"),
      descriptors: descriptors)
    exit = try child.waitExit(within: seconds)
    output = try String(contentsOfFile: own.file("out"), encoding: .utf8)
    errors = try String(contentsOfFile: own.file("err"), encoding: .utf8)
  }

  /// Requires that the program ended as it does for wrong use or another failure: with this status, nothing on standard
  /// output, and exactly one line on standard error that has all of `words` in it.
  func expectFailure(
    _ status: Int32, naming words: [String], sourceLocation: SourceLocation = #_sourceLocation
  ) {
    #expect(exit == .status(status), "\(errors)", sourceLocation: sourceLocation)
    #expect(output == "", sourceLocation: sourceLocation)
    #expect(errorLines.count == 1 && errors.hasSuffix("\n"), "\(errors)", sourceLocation: sourceLocation)
    #expect(errors.hasPrefix("vhost-swiftd: "), "\(errors)", sourceLocation: sourceLocation)
    for word in words where !errors.contains(word) {
      Issue.record("'\(word)' is not named: \(errors)", sourceLocation: sourceLocation)
    }
  }
}

/// The program, serving. Killed with its last reference where nothing ended it before.
final class Daemon {
  let folder: TemporaryFolder
  let process: ChildProcess
  var socket: String { folder.file("s") }
  var pid: pid_t { process.pid }
  /// What it has written to standard output and error.
  var log: String { process.log }

  /// Starts it with these arguments; `{folder}` stands for its folder. Returns once `{folder}/s` listens, where
  /// `listens` says that it will: the program gives a socket its name only then.
  init(
    _ arguments: [String], in folder: TemporaryFolder? = nil, program: String? = nil, prefix: [String] = [],
    descriptors: [Int32] = [], listens: Bool = true
  ) throws {
    let folder = try folder ?? TemporaryFolder()
    self.folder = folder
    let command = prefix + [try program ?? Environment.program("vhost-swiftd")] + expand(arguments, folder)
    process = try ChildProcess(
      command[0], Array(command.dropFirst()), log: folder.file("log-\(UUID().uuidString)"),
      descriptors: descriptors)
    guard listens else { return }
    let socket = folder.file("s")
    try process.wait(until: "its socket listens", within: 60) { access(socket, F_OK) == 0 }
    // Its socket has its name before its sandbox and its threads are made, which open and close descriptors: what it holds is
    // steady once it serves. A command that only runs it is another process.
    let facts = ProcessFacts(process)
    try process.wait(until: "it serves", within: 60) {
      !facts.name.hasPrefix("vhost-swiftd") || facts.threadTimes.keys.contains("control")
    }
  }

  /// A disk at `{folder}/s`, of 8 MiB where no image is given.
  static func disk(
    _ options: [String] = [], image: String? = nil, in given: TemporaryFolder? = nil, prefix: [String] = []
  ) throws -> Daemon {
    let folder = try given ?? TemporaryFolder()
    let path = try image ?? Image.make(in: folder).path
    return try Daemon(
      ["blk", "--socket-path", "{folder}/s", "--blk-file", path] + options, in: folder, prefix: prefix)
  }

  /// Drives its disk.
  func connect(_ change: (inout DiskOptions) -> Void = { _ in }) throws -> BlockDriver {
    try BlockDriver(path: socket, waiting: .seconds(20), DaemonTests.options(change))
  }

  /// Asks it to end; requires the status 0 and that its socket is gone.
  func stop(sourceLocation: SourceLocation = #_sourceLocation) throws {
    process.signal(SIGTERM)
    #expect(try process.waitExit(within: 30) == .status(0), "\(log)", sourceLocation: sourceLocation)
    #expect(access(socket, F_OK) != 0, "the socket is still there", sourceLocation: sourceLocation)
  }

  /// The counters that SIGUSR1 brings to standard output: all lines that one signal gave, decoded.
  func counters() throws -> Counters {
    let before = counterLines.count
    process.signal(SIGUSR1)
    try process.wait(until: "its counters", within: 30) { counterLines.count > before }
    return try JSONDecoder().decode(Counters.self, from: Data(counterLines[before].utf8))
  }

  private var counterLines: [String] {
    guard let end = log.lastIndex(of: "\n") else { return [] }
    return log[..<end].split(separator: "\n").filter { $0.hasPrefix("{") }.map(String.init)
  }
}

/// What a disk's driver is given unless a test says otherwise: few and small buffers, patient waits.
func options(_ change: (inout DiskOptions) -> Void = { _ in }) -> DiskOptions {
  DiskOptions.with {
    $0.driver.timeout = .seconds(30)
    $0.dataBytes = 16 << 10
    change(&$0)
  }
}

/// Counters as the program writes them.
struct Counters: Decodable {
  struct Thread: Decodable { let sleeps: UInt64 }
  let device: String
  let threads: [Thread]
  let queues: [[String: UInt64]]

  /// A counter's sum over the queues.
  func sum(_ name: String) -> UInt64 { queues.reduce(0) { $0 + ($1[name] ?? 0) } }
}

/// An image file in a test's folder, whose sectors differ from each other.
struct Image {
  let path: String
  let bytes: Int

  static func make(in folder: TemporaryFolder, _ name: String = "disk.img", bytes: Int = 8 << 20) throws
    -> Image
  {
    let image = Image(path: folder.file(name), bytes: bytes)
    var content = Data(count: bytes)
    for sector in 0..<bytes / 512 {
      withUnsafeBytes(of: UInt64(sector).littleEndian) {
        content.replaceSubrange(sector * 512..<sector * 512 + 8, with: $0)
      }
    }
    try content.write(to: URL(fileURLWithPath: image.path))
    return image
  }

  func read(sector: Int, count: Int) throws -> [UInt8] {
    let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: path))
    try file.seek(toOffset: UInt64(sector * 512))
    return Array(try file.read(upToCount: count) ?? Data())
  }
}
