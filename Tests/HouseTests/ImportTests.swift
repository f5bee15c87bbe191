// The module table of docs/ARCHITECTURE.md as a test: which target may import which.

import Foundation
import Testing

/// Every folder of production code with the modules it may import, ours and others'. `Glibc` and `Synchronization`
/// are open to all; Foundation is for programs and tests.
private let arrows: [(folder: String, imports: Set<String>)] = [
  ("Sources/VirtQueue", ["CLinux"]),
  ("Sources/HostIO", ["CLinux", "CLiburing", "CNuma"]),
  ("Sources/DeviceKit", ["VirtQueue", "HostIO", "CLinux"]),
  ("Sources/BlockBackend", ["DeviceKit", "VirtQueue", "HostIO", "CLinux"]),
  ("Sources/NetBackend", ["DeviceKit", "VirtQueue", "HostIO", "CLinux"]),
  // A switch's ports are network cards: frames, headers and features are NetBackend's.
  ("Sources/SwitchBackend", ["NetBackend", "DeviceKit", "VirtQueue", "HostIO", "CLinux"]),
  ("Sources/VhostUser", ["DeviceKit", "VirtQueue", "HostIO", "CLinux", "Logging"]),
  // The driver's side shares nothing with what it tests.
  ("Sources/VhostFrontend", ["HostIO", "CLinux"]),
  ("Sources/ServiceConfig", ["FoundationEssentials"]),
  (
    "Sources/vhost-swiftd",
    [
      "ServiceConfig", "BlockBackend", "NetBackend", "SwitchBackend", "EntropyDevice", "VhostUser",
      "DeviceKit",
      "HostIO", "CLinux",
      "ArgumentParser",
      "Logging", "FoundationEssentials",
    ]
  ),
  ("Examples/EntropyDevice", ["DeviceKit", "VirtQueue", "CLinux"]),
  ("Examples/rng-backend", ["EntropyDevice", "DeviceKit", "VhostUser", "HostIO", "Logging"]),
  ("Examples/disk-check", ["VhostFrontend"]),
  ("Benchmarks/ring-bench", ["VirtQueue", "VhostFrontend", "HostIO", "CLinux", "Foundation"]),
  ("Benchmarks/disk-bench", ["VhostFrontend", "CLinux", "Foundation"]),
  ("Benchmarks/bench", ["GuestHarness", "Foundation"]),
  ("Benchmarks/pair-bench", ["GuestHarness", "VhostFrontend", "Foundation"]),
  (
    "Benchmarks/net-bench", ["NetBackend", "DeviceKit", "VirtQueue", "HostIO", "CLinux", "VhostFrontend"]
  ),
  // What tests drive the program with, and the driver's side of them.
  ("Tests/Support/GuestHarness", ["Foundation", "Dispatch"]),
  (
    "Tests/Support/TestSupport",
    ["NetBackend", "HostIO", "VhostFrontend", "CLinux", "MemoryTrap", "Foundation", "Testing"]
  ),
]
private let openToAll: Set<String> = ["Glibc", "Synchronization"]

/// The modules a source imports, each with its line.
private func imports(of source: SwiftSource) -> [(module: String, line: Int)] {
  let kinds: Set<Substring> = ["struct", "class", "enum", "protocol", "func", "var", "let", "typealias"]
  return source.code.enumerated().compactMap { line, text in
    let words = text.split { !($0.isLetter || $0.isNumber || $0 == "_") }
    // Whatever stands before it is an attribute or an access level: `import` is a reserved word.
    guard let start = words.firstIndex(of: "import") else { return nil }
    return words[(start + 1)...].first { !kinds.contains($0) }.map { (String($0), line) }
  }
}

/// The imports of a source that its folder's arrows do not allow.
private func forbiddenImports(of source: SwiftSource, allowed: Set<String>) -> [Finding] {
  imports(of: source).filter { !allowed.union(openToAll).contains($0.module) }.map {
    Finding(path: source.path, line: $0.line, what: "imports \($0.module)")
  }
}

@Suite("Imports")
struct ImportTests {
  @Test("No target imports what the architecture's table does not allow it", arguments: arrows.map(\.folder))
  func table(folder: String) throws {
    let allowed = try #require(arrows.first { $0.folder == folder }).imports
    let sources = Repository.swift(in: [folder])
    #expect(!sources.isEmpty, "the table names a folder without sources: \(folder)")
    expectNone(sources.flatMap { forbiddenImports(of: $0, allowed: allowed) })
  }

  @Test("Every source that ships is in a folder of the table")
  func complete() {
    let outside = Repository.production.map(\.path).filter { path in
      !arrows.contains { path.hasPrefix($0.folder + "/") }
    }
    #expect(outside == [])
  }

  @Test("The rule notices a forbidden import however it is written")
  func notices() {
    let text = """
      // import A1
      import CLinux
      @preconcurrency import A2
      public import struct A3.Inner
      @_spi(Testing) internal import A4
      let quoted = "import A5"
      """
    let source = SwiftSource(path: "x", text: text)
    let found = forbiddenImports(of: source, allowed: ["CLinux"]).map(\.what)
    #expect(found == ["imports A2", "imports A3", "imports A4"])
  }
}
