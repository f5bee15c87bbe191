// What must not be in the loops that every request passes: read from the machine code, so that no machine's mood matters.

import Foundation
import GuestHarness
import Testing

@Suite("Hot loops", .enabled(if: Built.isRelease, "looks at optimised code: swift test -c release"))
struct HotLoopTests {
  /// Calls that cost, and that a device author's mistake brings in without a word of the compiler.
  private static let costly = [
    "swift_retain", "swift_release", "swift_alloc", "swift_slowAlloc", "swift_bridgeObject", "malloc",
    "swift_dynamicCast",
    "swift_getGenericMetadata", "swift_getWitnessTable", "swift_getAssociated",
  ]

  private static func costlyCalls(in code: [Substring]) -> [String] {
    code.filter { line in
      guard let call = line.range(of: "call ") else { return false }
      let target = line[call.upperBound...]
      return target.contains("*") || costly.contains { target.contains($0) }
    }.map(String.init)
  }

  @Test(
    "A ring's loop has no reference counting, no allocation and no indirect call",
    arguments: ["Split", "Packed"])
  func rings(kind: String) throws {
    let found = try Built.functions(
      of: Environment.program("ring-bench"),
      holding: ["devicePart", "0\(kind == "Split" ? "5" : "6")\(kind)"])
    let loop = try #require(found.first, "the loop was not compiled for the \(kind) ring")
    #expect(found.count == 1)
    #expect(loop.code.count > 100, "that is no loop over chains")
    #expect(Self.costlyCalls(in: loop.code) == [])
  }

  @Test("A disk's worker is compiled for each kind of ring, with no indirect call on a request's way")
  func disk() throws {
    let program = try Environment.program("vhost-swiftd")
    // `Tg5` ends the name of a function that was compiled for given types.
    for part in ["7service", "9completed", "5begin"] {
      let found = try Built.functions(of: program, holding: ["BlockBackend0A6WorkerV\(part)", "Tg5"])
      #expect(found.count >= 2, "\(part) was not compiled for both rings: \(found.map(\.name))")
      for function in found {
        #expect(Self.costlyCalls(in: function.code) == [], "\(function.name)")
      }
    }
  }

  @Test("A switch's workers are compiled for each kind of ring, and a frame pays for one call of a door")
  func switched() throws {
    let program = try Environment.program("vhost-swiftd")
    for words in [["SwitchBackend10SendWorkerV7service"], ["4hand", "13SwitchBackend07Receive"]] {
      let found = try Built.functions(of: program, holding: words + ["Tg5"])
      #expect(found.count == 2, "\(words) is not compiled for both rings: \(found.map(\.name))")
      for function in found { #expect(Self.costlyCalls(in: function.code) == [], "\(function.name)") }
    }
    let forward = try #require(
      try Built.functions(of: program, holding: ["SwitchBackend0A0C7forward"]).first)
    // The door, and what holds on to it meanwhile.
    #expect(Self.costlyCalls(in: forward.code).count <= 3, "\(Self.costlyCalls(in: forward.code))")
  }

  @Test("The rule sees what it forbids")
  func sees() {
    let code: [Substring] = [
      "  1:\tcall   4ace0 <swift_retain@plt>", "  2:\tcall   *0x18(%rax)",
      "  3:\tcall   47010 <$s9VirtQueueX>",
      "  4:\tmov    %rax,%rbx",
    ]
    #expect(Self.costlyCalls(in: code).count == 2)
  }
}
