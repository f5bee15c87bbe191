// The programs of the release build, as the guards look at them.

import Foundation
import GuestHarness
import Testing

enum Built {
  /// What is guarded is optimised code: in another build these tests have nothing to look at.
  static var isRelease: Bool {
    #if DEBUG
      return false
    #else
      return true
    #endif
  }

  /// The machine code of every function whose name holds all `words`, by name: one instruction a line.
  static func functions(of program: String, holding words: [String]) throws -> [(
    name: String, code: [Substring]
  )] {
    let symbols = try Tool.run("nm", [program]).split(separator: "\n").compactMap { line -> String? in
      let parts = line.split(separator: " ")
      guard parts.count == 3, parts[1] == "t" || parts[1] == "T" else { return nil }
      return words.allSatisfy { parts[2].contains($0) } ? String(parts[2]) : nil
    }
    return try symbols.map { name in
      let text = try Tool.run("objdump", ["-d", "--no-show-raw-insn", "--disassemble=\(name)", program])
      return (name, text.split(separator: "\n").filter { $0.contains(":\t") })
    }
  }
}
