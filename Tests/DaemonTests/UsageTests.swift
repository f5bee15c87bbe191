// Command lines that cannot be meant: one line that says what was given and what was expected, status 2, nothing touched.

import Foundation
import GuestHarness
import Testing

/// A command line, and what its one line of complaint has to name.
struct Mistake: Sendable, CustomTestStringConvertible {
  let arguments: [String]
  let named: [String]
  var testDescription: String { arguments.map(\.debugDescription).joined(separator: " ") }

  init(_ arguments: [String], _ named: String...) { (self.arguments, self.named) = (arguments, named) }

  /// A disk that would be served, but for these options.
  static func disk(_ options: [String], _ named: String...) -> Mistake {
    Mistake(
      ["blk", "--socket-path", "{folder}/s", "--blk-file", "{folder}/disk.img"] + options, named: named)
  }
  private init(_ arguments: [String], named: [String]) { (self.arguments, self.named) = (arguments, named) }
}

/// A folder with an image in it, and a way to see that nothing in it has changed.
struct Untouched {
  let folder: TemporaryFolder
  private let before: [String]

  init() throws {
    let folder = try TemporaryFolder()
    _ = try Image.make(in: folder, bytes: 64 << 10)
    try self.init(folder)
  }

  init(_ folder: TemporaryFolder) throws {
    self.folder = folder
    before = try Self.look(at: folder)
  }

  /// Names, kinds, sizes, permissions and times of modification of all that is in it.
  private static func look(at folder: TemporaryFolder) throws -> [String] {
    try FileManager.default.contentsOfDirectory(atPath: folder.path).sorted().map { name in
      var facts = stat()
      guard lstat(folder.file(name), &facts) == 0 else { throw HarnessError("lstat of \(name)") }
      let time = facts.st_mtim
      return "\(name) \(facts.st_mode) \(facts.st_size) \(facts.st_uid) \(time.tv_sec).\(time.tv_nsec)"
    }
  }

  func expectSame(sourceLocation: SourceLocation = #_sourceLocation) throws {
    #expect(try Self.look(at: folder) == before, sourceLocation: sourceLocation)
  }
}

@Suite("Wrong command lines")
struct UsageTests {
  @Test(
    "RS10: a wrong command line is told in one line that names it, with status 2, and touches nothing",
    arguments: [
      // No device, no such device, too much.
      Mistake([], "blk", "rng"),
      Mistake(["disk"], "'disk'"),
      Mistake(["--socket-path", "{folder}/s"], "--socket-path"),
      .disk(["extra"], "'extra'"),
      .disk(["--nonesuch"], "--nonesuch"),
      .disk(["--threadz", "3"], "--threadz", "--threads"),
      .disk(["-x"], "-x"),
      .disk(["--read-only=yes"], "--read-only"),
      // Where the front-end is.
      Mistake(["blk", "--blk-file", "{folder}/disk.img"], "--socket-path", "--fd", "--connect"),
      .disk(["--fd", "3"], "--socket-path", "--fd", "--connect"),
      .disk(["--connect", "{folder}/c"], "--socket-path", "--fd", "--connect"),
      Mistake(["blk", "--blk-file", "{folder}/disk.img", "--socket-path", ""], "--socket-path"),
      Mistake(["blk", "--blk-file", "{folder}/disk.img", "--socket-path"], "--socket-path"),
      Mistake(["blk", "--blk-file", "{folder}/disk.img", "--connect", ""], "--connect"),
      Mistake(["blk", "--blk-file", "{folder}/disk.img", "--fd", "-1"], "--fd", "-1"),
      Mistake(["blk", "--blk-file", "{folder}/disk.img", "--fd", "one"], "--fd", "'one'"),
      Mistake(["blk", "--blk-file", "{folder}/disk.img", "--fd", "4294967299"], "--fd", "'4294967299'"),
      .disk(["--socket-mode", "888"], "--socket-mode", "'888'", "octal"),
      .disk(["--socket-mode", "1777"], "--socket-mode", "'1777'", "octal"),
      .disk(["--socket-group", "no such group"], "--socket-group", "'no such group'"),
      .disk(["--socket-group", ""], "--socket-group"),
      // What is served.
      Mistake(["blk", "--socket-path", "{folder}/s"], "--blk-file", "--null-size"),
      .disk(["--null-size", "1M"], "--blk-file", "--null-size"),
      Mistake(["blk", "--socket-path", "{folder}/s", "--blk-file", ""], "--blk-file"),
      Mistake(["blk", "--socket-path", "{folder}/s", "--null-size", "0"], "--null-size 0", "512"),
      Mistake(["blk", "--socket-path", "{folder}/s", "--null-size", "1000"], "--null-size 1000", "512"),
      Mistake(["blk", "--socket-path", "{folder}/s", "--null-size", "-512"], "--null-size", "-512"),
      Mistake(["blk", "--socket-path", "{folder}/s", "--null-size", "1.5G"], "--null-size", "'1.5G'", "10G"),
      Mistake(
        ["blk", "--socket-path", "{folder}/s", "--null-size", "9000000T"], "--null-size", "'9000000T'"),
      Mistake(["blk", "--socket-path", "{folder}/s", "--null-size", "1M", "--read-only"], "--read-only"),
      Mistake(["blk", "--socket-path", "{folder}/s", "--null-size", "1M", "--direct"], "--direct"),
      Mistake(
        [
          "blk", "--socket-path", "{folder}/s", "--blk-file", "/dev/null", "--direct", "--pin-guest-memory",
          "--postcopy",
        ],
        "--postcopy"),
      Mistake(["blk", "--socket-path", "{folder}/s", "--null-size", "1M", "--watch-size"], "--watch-size"),
      .disk(["--serial", "123456789012345678901"], "--serial", "'123456789012345678901'", "21", "20"),
      .disk(["--serial", "ééééééééééé"], "--serial", "'ééééééééééé'", "22", "20"),
      .disk(["--block-size", "1000"], "--block-size 1000", "512"),
      .disk(["--block-size", "8192"], "--block-size 8192", "4096"),
      .disk(["--write-cache", "maybe"], "--write-cache", "'maybe'", "on", "off"),
      .disk(["--lock-wait", "-1"], "--lock-wait -1", "86400"),
      .disk(["--lock-wait", "nan"], "--lock-wait nan", "86400"),
      Mistake(["rng", "--socket-path", "{folder}/s", "--num-queues", "2"], "--num-queues", "one"),
      Mistake(["rng", "--socket-path", "{folder}/s", "--blk-file", "{folder}/disk.img"], "--blk-file"),
      // How it runs.
      .disk(["--threads", "0"], "--threads 0", "1 to 64"),
      .disk(["--threads", "65"], "--threads 65", "1 to 64"),
      .disk(["--threads", "-1"], "--threads -1", "1 to 64"),
      .disk(["--threads", "two"], "--threads", "'two'"),
      .disk(["--threads", "1.5"], "--threads", "'1.5'"),
      .disk(["--threads", "99999999999999999999"], "--threads", "'99999999999999999999'"),
      .disk(["--threads", ""], "--threads"),
      .disk(["--threads"], "--threads"),
      .disk(["--num-queues", "0"], "--num-queues 0", "1 to 256"),
      .disk(["--num-queues", "257"], "--num-queues 257", "1 to 256"),
      .disk(["--num-queues", "-9223372036854775808"], "--num-queues -9223372036854775808", "1 to 256"),
      .disk(["--cpus", ""], "--cpus"),
      .disk(["--cpus", "0,,1"], "--cpus", "'0,,1'", "0,2-5"),
      .disk(["--cpus", "3-1"], "--cpus", "'3-1'", "0,2-5"),
      .disk(["--cpus", "-1"], "--cpus", "'-1'", "0,2-5"),
      .disk(["--cpus", "0-99999999999999999999"], "--cpus", "'0-99999999999999999999'", "0,2-5"),
      .disk(["--cpus", "zéro"], "--cpus", "'zéro'", "0,2-5"),
      .disk(["--poll", "sometimes"], "--poll", "'sometimes'", "interrupt", "adaptive", "busy"),
      .disk(["--drain-timeout", "-0.1"], "--drain-timeout -0.1", "86400"),
      .disk(["--drain-timeout", "1e300"], "--drain-timeout 1e+300", "86400"),
      .disk(["--drain-timeout", "soon"], "--drain-timeout", "'soon'"),
      .disk(["--stats", ""], "--stats"),
      .disk(["--log-level", "loud"], "--log-level", "'loud'", "notice", "critical"),
      // Given twice: neither is the one that was meant.
      .disk(["--threads", "1", "--threads", "1"], "--threads", "twice"),
      .disk(["--blk-file={folder}/disk.img"], "--blk-file", "twice"),
      .disk(["--read-only", "--read-only"], "--read-only", "twice"),
      // More than a line, or signs that are not for a terminal, in what is repeated.
      .disk(["--threads", "a\nb\r\u{1b}[2Jc"], "--threads", #"'a\nb\r\u{1B}[2Jc'"#),
    ])
  func mistakes(_ mistake: Mistake) throws {
    let place = try Untouched()
    try Run(mistake.arguments, in: place.folder).expectFailure(2, naming: mistake.named)
    try place.expectSame()
  }

  @Test("RS10: an argument that is not UTF-8 is refused: it would name another file than was meant")
  func notText() throws {
    let place = try Untouched()
    // Bytes that no Swift string holds, put together by the shell.
    let script = #"exec "$0" blk --socket-path "$1/s" --blk-file "$1/disk$(printf '\377').img""#
    let program = try Environment.program("vhost-swiftd")
    try Run(["-c", script, program, place.folder.path], in: place.folder, program: "sh")
      .expectFailure(2, naming: ["UTF-8", "disk\u{fffd}.img"])
    try place.expectSame()
  }

  @Test("RS10: whatever is put together from options and junk ends with status 2 and one line")
  func junk() throws {
    let names = [
      "--socket-path", "--fd", "--connect", "--socket-mode", "--socket-group", "--num-queues", "--threads",
      "--cpus", "--poll", "--drain-timeout", "--stats", "--log-level", "--blk-file", "--null-size",
      "--serial",
      "--read-only", "--block-size", "--lock", "--lock-wait", "--iops", "--bandwidth-read", "--on-enospc",
      "--tap",
      "--tap-fd", "--mac", "--queue-pairs", "--mtu", "--backend", "--user", "--sandbox", "-", "--", "---",
      "-z=", "--=", "--é", "-1",
      "=",
    ]
    let values = [
      "", " ", "0", "-0", "+1", "18446744073709551616", "-9223372036854775809", "0x10", "1e9999", "nan",
      "-inf",
      "\u{1F4BE}", "e\u{301}", "\u{202e}", "\u{7f}", "\n", "%s%n", "'", "\"", "\\", "{}", "*", "/", ".", "..",
      String(repeating: "9", count: 5000), String(repeating: "é", count: 3000), "on", "true", "0-1", "0,1",
    ]
    var random = SplitMix(seed: 0x766873)
    for round in 0..<150 {
      let place = try Untouched()
      // Two places to serve at, so that no combination is right; what breaks earlier breaks.
      var arguments = [
        random.pick(["blk", "rng", "net"]), "--socket-path", "{folder}/s", "--connect", "{folder}/c",
      ]
      for _ in 0..<Int(random.next() % 8) {
        let name = random.pick(names)
        arguments +=
          random.next() % 2 == 0 ? [name, random.pick(values)] : ["\(name)=\(random.pick(values))"]
      }
      let run = try Run(arguments, in: place.folder)
      #expect(run.exit == .status(2), "round \(round): \(arguments) \(run.errors)")
      #expect(run.errorLines.count == 1 && run.output == "", "round \(round): \(arguments) \(run.errors)")
      try place.expectSame()
    }
  }
}

/// Numbers that are the same in each run.
struct SplitMix: RandomNumberGenerator {
  private var state: UInt64
  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }

  mutating func pick<Element>(_ elements: [Element]) -> Element {
    elements[Int(next() % UInt64(elements.count))]
  }
}
