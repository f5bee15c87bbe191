// What the fuzzer found, and what it starts from: every input in Fuzz/Seeds is played again, and inputs of our own beside
// them. No libFuzzer here; scripts/fuzz has it.

import Foundation
import FuzzTargets
import Testing

/// The inputs in the tree for one target, by file name.
private func seeds(of target: String) throws -> [(name: String, bytes: [UInt8])] {
  var folder = URL(fileURLWithPath: #filePath)
  for _ in 0..<3 { folder.deleteLastPathComponent() }
  folder.append(path: "Fuzz/Seeds/\(target)")
  return try FileManager.default.contentsOfDirectory(atPath: folder.path).sorted().map {
    ($0, Array(try Data(contentsOf: folder.appending(path: $0))))
  }
}

// One at a time: what a target plays with is one for the process.
@Suite("Fuzz targets", .serialized)
struct SeedTests {
  @Test("every seed in the tree plays without a defect", arguments: FuzzTarget.all.map(\.name))
  func replay(name: String) throws {
    let target = try #require(FuzzTarget.named(name))
    let all = try seeds(of: name)
    #expect(!all.isEmpty, "Fuzz/Seeds/\(name) is empty")
    for seed in all {
      #expect(throws: Never.self, "\(seed.name)") { try target.play(seed.bytes) }
    }
  }

  @Test(
    "inputs of our own, from nothing and from the seeds, play without a defect",
    arguments: FuzzTarget.all.map(\.name))
  func made(name: String) throws {
    let target = try #require(FuzzTarget.named(name))
    let all = try seeds(of: name)
    var maker = InputMaker(seed: 0xf022)
    // Sessions and disks have threads to talk to: fewer of them.
    let rounds = ["session", "block", "net"].contains(name) ? 100 : 2000
    for round in 0..<rounds {
      let seed = round % 2 == 0 || all.isEmpty ? nil : all[round / 2 % all.count].bytes
      let input = maker.input(longest: target.longest, from: seed)
      #expect(throws: Never.self, "\(Data(input).base64EncodedString())") { try target.play(input) }
    }
  }
}
