// What the program says of itself: help, version, capabilities, and the description files for management software.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("What the program says of itself")
struct HelpTests {
  private let folder: TemporaryFolder
  init() throws { folder = try TemporaryFolder() }

  /// The program under another name, as an installation has it.
  private func link(_ name: String) throws -> String {
    let path = folder.file(name)
    try FileManager.default.createSymbolicLink(
      atPath: path, withDestinationPath: Environment.program("vhost-swiftd"))
    return path
  }

  @Test("--help and -h tell the subcommands, the signals and the statuses, in 80 columns, with status 0")
  func help() throws {
    for arguments in [["--help"], ["-h"], ["help"]] {
      let run = try Run(arguments, in: folder)
      #expect(run.exit == .status(0) && run.errors == "", "\(arguments): \(run.errors)")
      for word in [
        "blk", "net", "rng", "SIGTERM", "SIGHUP", "SIGUSR1", "EXIT STATUS", "--socket-path", "qemu",
      ] {
        #expect(run.output.contains(word), "\(arguments): \(word)")
      }
      #expect(run.output.split(separator: "\n").allSatisfy { $0.count <= 80 })
    }
  }

  @Test(
    "A subcommand's --help tells each of its options, and a QEMU line that can be copied",
    arguments: [
      (
        "blk",
        [
          "--blk-file", "--null-size", "--read-only", "--serial", "--direct", "--pin-guest-memory",
          "--block-size", "--write-cache",
          "--discard", "--on-enospc", "--lock", "--lock-wait", "--watch-size",
        ], "-machine memory-backend=mem \\"
      ),
      (
        "net",
        [
          "--tap", "--create", "--tap-fd", "--backend", "--bridge", "--mac", "--queue-pairs", "--pcap",
          "--tap-io", "--vlan", "--pps", "--pps-receive", "--pps-send", "--bandwidth", "--bandwidth-receive",
          "--bandwidth-send",
        ],
        "-netdev vhost-user,id=n1,chardev=c1,queues=1 \\"
      ),
      ("rng", [], "-device vhost-user-rng-pci,chardev=c0"),
    ])
  func subcommandHelp(name: String, options: [String], line: String) throws {
    let common = [
      "--socket-path", "--fd", "--connect", "--print-capabilities", "--socket-mode", "--socket-group",
      "--sandbox", "--user", "--postcopy", "--num-queues", "--threads", "--cpus", "--poll", "--drain-timeout",
      "--stats",
      "--log-level", "--help",
      "interrupt", "adaptive", "busy", "default: 0600", "default: 1",
    ]
    for arguments in [[name, "--help"], ["help", name], [name, "--threads", "0", "-h"]] {
      let run = try Run(arguments, in: folder)
      #expect(run.exit == .status(0) && run.errors == "", "\(arguments): \(run.errors)")
      for word in common + options { #expect(run.output.contains(word), "\(arguments): \(word)") }
      let lines = run.output.split(separator: "\n").map { $0.trimmingCharacters(in: .whitespaces) }
      #expect(lines.contains { $0.hasSuffix(line) }, "\(run.output)")
    }
  }

  @Test("--version is one line of three numbers, with status 0")
  func version() throws {
    let run = try Run(["--version"], in: folder)
    #expect(run.exit == .status(0) && run.errors == "")
    let version = run.output.trimmingCharacters(in: .newlines)
    #expect(version.split(separator: ".").count == 3 && version.allSatisfy { $0.isNumber || $0 == "." })
  }

  @Test(
    "--print-capabilities answers one JSON object whatever else is given, and does nothing else",
    arguments: [
      ["blk", "--print-capabilities"],
      ["blk", "--print-capabilities", "--socket-path", "{folder}/s", "--blk-file", "{folder}/none"],
      ["blk", "--socket-path", "{folder}/s", "--nonesuch", "--threads", "0", "--print-capabilities"],
    ])
  func capabilities(arguments: [String]) throws {
    let run = try Run(arguments, in: folder)
    #expect(run.exit == .status(0) && run.errors == "", "\(run.errors)")
    // What qemu's own vhost-user-blk prints (docs/interop/vhost-user.rst, "Backend program conventions").
    #expect(run.output == #"{"type":"block","features":["read-only","blk-file"]}"# + "\n")
    #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path) == [])
  }

  @Test("Called as vhost-swiftd-blk it is a back-end by a bare path")
  func link() throws {
    let program = try link("vhost-swiftd-blk")
    let capabilities = try Run(["--blk-file=x", "--print-capabilities"], in: folder, program: program)
    #expect(capabilities.exit == .status(0) && capabilities.output.contains(#""type":"block""#))
    try Run(["--fd", "3"], in: folder, program: program)
      .expectFailure(2, naming: ["--blk-file"])
    let image = try Image.make(in: folder)
    let daemon = try Daemon(
      ["--socket-path={folder}/s", "--blk-file=\(image.path)"], in: folder, program: program)
    let driver = try daemon.connect()
    #expect(try driver.read(sector: 9, bytes: 512) == image.read(sector: 9, count: 512))
    driver.disconnect()
    try daemon.stop()
    // Other names mean nothing.
    let other = try link("vhost-swiftd-disk")
    try Run([], in: folder, program: other).expectFailure(2, naming: ["blk", "rng"])
  }

  /// A description of a back-end, as QEMU's vhost-user.json defines it.
  private struct Description: Decodable {
    let description: String
    let type: String
    let binary: String
    let tags: [String]?
  }
  private struct Answer: Decodable { let type: String }

  @Test("The description files name programs that answer with the same type")
  func descriptions() throws {
    let place = Environment.repository + "/share/vhost-user"
    let names = try FileManager.default.contentsOfDirectory(atPath: place).sorted()
    #expect(names == ["50-vhost-swiftd-blk.json", "50-vhost-swiftd-net.json", "50-vhost-swiftd-rng.json"])
    for name in names {
      let data = try Data(contentsOf: URL(fileURLWithPath: place + "/" + name))
      let object = try #require(try JSONSerialization.jsonObject(with: data) as? [String: Any])
      #expect(Set(object.keys).isSubset(of: ["description", "type", "binary", "tags"]), "\(object.keys)")
      let description = try JSONDecoder().decode(Description.self, from: data)
      #expect(!description.description.isEmpty && description.binary.hasPrefix("/usr/libexec/"))
      let program = try link(String(description.binary.split(separator: "/").last ?? ""))
      let run = try Run(["--print-capabilities"], in: folder, program: program)
      #expect(run.exit == .status(0) && run.errorLines == [])
      #expect(try JSONDecoder().decode(Answer.self, from: Data(run.output.utf8)).type == description.type)
    }
  }
}
