// Every benchmark that this machine can run, ours beside the peers, interleaved: one table, one JSON file, one page. Started by
// `scripts/bench`, which builds what it needs. The main thread.

import Foundation
import GuestHarness

@main
struct Bench {
  static let suites = [
    "rings", "null", "tmpfs", "cached", "direct", "pinned", "idle", "net", "iperf", "guest",
  ]
  static let usage = """
    bench [--quick] [--json FILE] [--html FILE] [NAME...]     names: \(suites.joined(separator: ", "))
    """

  static func main() {
    do {
      let options = try Options(Array(CommandLine.arguments.dropFirst()))
      var bench = Bench(options: options)
      let report = try bench.run()
      print(TableWriter.text(report), terminator: "")
      if let path = options.json { try write(try encoded(report), to: path) }
      if let path = options.html { try write(Data(PageWriter(report).html.utf8), to: path) }
      try complete(report, options)
    } catch {
      FileHandle.standardError.write(Data("bench: \(error)\n".utf8))
      exit(1)
    }
  }

  struct Options {
    var quick = false
    var json: String?
    var html: String?
    var names: [String] = []

    init(_ words: [String]) throws(HarnessError) {
      var rest = words[...]
      while let word = rest.popFirst() {
        switch word {
        case "--quick": quick = true
        case "--json": json = rest.popFirst()
        case "--html": html = rest.popFirst()
        case "--help", "-h": throw HarnessError(Bench.usage)
        default:
          guard Bench.suites.contains(word) else {
            throw HarnessError("no benchmark is called '\(word)'\n\(Bench.usage)")
          }
          names.append(word)
        }
      }
    }
  }

  let options: Options
  private var missing: [String] = []

  init(options: Options) { self.options = options }

  private mutating func run() throws -> Report {
    let start = ContinuousClock.now
    var rows: [Row] = []
    for name in Self.suites where options.names.isEmpty || options.names.contains(name) {
      rows += try suite(name)
    }
    let seconds = Double((ContinuousClock.now - start).components.seconds)
    return Report(
      date: ISO8601DateFormatter().string(from: Date()), machine: Machine.name, kernel: Machine.kernel,
      load: Machine.load, versions: Machine.versions, seconds: seconds, rows: rows, missing: missing)
  }

  private mutating func suite(_ name: String) throws -> [Row] {
    let pace = options.quick ? Pace.quick : Pace.full
    let bytes = options.quick ? 64 << 20 : 256 << 20
    switch name {
    case "rings": return try RingSuite.run(quick: options.quick, missing: &missing)
    case "net": return try NetSuite.run(pace, quick: options.quick, missing: &missing)
    case "iperf", "guest": return try guest(name, pace)
    default: break
    }
    guard Machine.has("qemu-storage-daemon") else {
      missing.append("\(name): qemu-storage-daemon is not here (apt-get install qemu-utils)")
      return []
    }
    switch name {
    case "null": return try DiskSuite.null(quick: options.quick).run(pace)
    case "tmpfs":
      let file = try StorageFile(in: "/dev/shm", bytes: bytes)
      return try DiskSuite.tmpfs(quick: options.quick, file: file, bytes: bytes).run(pace)
    case "cached":
      let file = try StorageFile(in: Self.diskFolder, bytes: bytes)
      return try DiskSuite.cached(quick: options.quick, file: file, bytes: bytes).run(pace)
    case "direct":
      let file = try StorageFile(in: Self.diskFolder, bytes: bytes)
      return try DiskSuite.direct(quick: options.quick, file: file, bytes: bytes).run(pace)
    case "pinned":
      let file = try StorageFile(in: Self.diskFolder, bytes: bytes)
      return try DiskSuite.pinned(quick: options.quick, file: file, bytes: bytes).run(pace)
    default: return try IdleSuite.run(pace, quick: options.quick)
    }
  }

  private mutating func guest(_ name: String, _ pace: Pace) throws -> [Row] {
    guard Machine.has("qemu-system-x86_64") else {
      missing.append("\(name): QEMU is not here (apt-get install qemu-system-x86)")
      return []
    }
    if name == "iperf" { return try IperfSuite.run(pace, missing: &missing) }
    return try GuestSuite.run(pace, quick: options.quick, folder: "/dev/shm")
  }

  /// Where files lie on a disk: a folder that is no memory file system.
  private static let diskFolder = Environment.value("VHOST_SWIFTD_BENCH_FOLDER") ?? "/var/tmp"

  private static func encoded(_ report: Report) throws -> Data {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
    return try encoder.encode(report) + Data("\n".utf8)
  }

  private static func write(_ data: Data, to path: String) throws {
    try data.write(to: URL(fileURLWithPath: path))
    Progress.note("wrote \(path)")
  }

  /// A report of all without the peer's column is none.
  private static func complete(_ report: Report, _ options: Options) throws {
    let compared = report.rows.contains { $0.peer == DiskServer.peerName }
    if options.names.isEmpty, !compared {
      throw HarnessError(
        "the report has no column of \(DiskServer.peerName): \(report.missing.joined(separator: "; "))")
    }
  }
}
