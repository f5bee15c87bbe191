// Instructions that the device's side of a ring takes for a request: counted by callgrind, the same on every machine for one
// compiler. Figures for each compiler version stand in instructions.json; scripts/bench rings shows new ones.

import Foundation
import GuestHarness
import Testing

@Suite("Instructions", .enabled(if: Built.isRelease, "counts optimised code: swift test -c release"))
struct InstructionTests {
  private static let requests = 50 * 32

  /// Figures of the compiler that built this, by kind of ring; nil for a compiler without any.
  private static let figures: [String: Double]? = {
    let file = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent(
      "instructions.json")
    let all = (try? Data(contentsOf: file)).flatMap {
      try? JSONDecoder().decode([String: [String: Double]].self, from: $0)
    }
    return all?[compiler]
  }()

  /// "6.3.1", from the compiler itself.
  private static let compiler: String = {
    let text = (try? Tool.run("swift", ["--version"])) ?? ""
    let words = text.split { " \n".contains($0) }
    let at = words.indices.first {
      words[$0] == "version" && $0 + 1 < words.count && words[$0 + 1].first?.isNumber == true
    }
    return at.map { String(words[$0 + 1]) } ?? "unknown"
  }()

  @Test(
    "A request takes no more instructions than it did",
    .enabled(if: Self.figures != nil, "NO FIGURES for this compiler: add them to instructions.json"),
    arguments: ["split", "split, indirect", "packed", "packed, indirect"])
  func rings(kind: String) throws {
    let expected = try #require(Self.figures?[kind])
    let folder = try TemporaryFolder()
    // Valgrind 3.19 does not get through the compiler's debugging information.
    let bare = folder.file("ring-bench")
    try Tool.run("objcopy", ["--strip-debug", Environment.program("ring-bench"), bare])
    let output = try Tool.run(
      "valgrind",
      [
        "--tool=callgrind", "--callgrind-out-file=\(folder.file("out"))", "--toggle-collect=*devicePart*",
        bare, "--only",
        kind, "--runs", "1", "50",
      ], timeout: 240)
    let line = output.split(separator: "\n").first { $0.contains("Collected :") }
    let count = try #require(line?.split(separator: " ").last.flatMap { Double($0) }) / Double(Self.requests)
    #expect(count > 50, "that is no request's work: \(count)")
    #expect(count <= expected * 1.03, "\(kind): \(count) instructions a request; \(expected) are noted")
  }
}
