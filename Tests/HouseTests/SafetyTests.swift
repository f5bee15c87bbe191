// Unsafe code states what it leans on. The rule, as CONTRIBUTING gives it: each `unsafe` (and `@unchecked`) has a
// `// SAFETY:` line in its function, or above it with no blank line between, or, where one invariant carries a whole
// type, at that type's stored properties or directly above the type.

import Foundation
import Testing

/// The places where unsafe code has no SAFETY line.
private func unexplainedUnsafe(in sources: [SwiftSource]) throws -> [Finding] {
  let uses = try findings(of: #"(?<!@)\bunsafe\b|@unchecked\b"#, in: sources, "no SAFETY line")
  return sources.flatMap { source in
    let carried = explainedDeclarations(of: source)
    return uses.filter { use in
      use.path == source.path && !carried.contains(use.line)
        && !source.scopes(around: use.line).contains { carried.contains($0.declaration) }
    }
  }
}

/// The first lines of what the source's SAFETY lines stand for: functions, types, single statements.
private func explainedDeclarations(of source: SwiftSource) -> Set<Int> {
  var found = Set<Int>()
  for line in source.comments.indices where isSafety(source.comments[line]) {
    // Beside code it is about that line; on a line of its own, about what follows the comment and the attributes.
    let about =
      isBare(source.code[line]) ? (line..<source.code.count).first { !isBare(source.code[$0]) } : line
    guard let about else { continue }
    found.formUnion(source.group(from: about))
    let around = source.scopes(around: line).filter { $0.kind != .block }
    if let owner = around.first {
      // In a function: for all of it. In a type: for all of it when it is about a property, not about a function.
      let isAboutFunction = source.scopes.contains { $0.declaration == about && $0.kind != .block }
      if owner.kind == .function || !isAboutFunction { found.insert(owner.declaration) }
    }
  }
  return found
}

/// Whether a comment is such a line: `SAFETY:`, or `SAFETY (all of the body):` and the like.
private func isSafety(_ comment: String) -> Bool {
  guard let word = comment.range(of: "SAFETY") else { return false }
  return comment[word.upperBound...].contains(":")
}

/// Whether a line has no code but attributes.
private func isBare(_ code: String) -> Bool {
  code.split(separator: " ").allSatisfy { $0.hasPrefix("@") }
}

@Suite("Unsafe code")
struct SafetyTests {
  @Test("Every use of unsafe leans on a SAFETY line")
  func everywhere() throws {
    expectNone(try unexplainedUnsafe(in: Repository.production))
  }

  @Test("The rule notices unsafe code without a SAFETY line, and accepts each place a line may stand")
  func notices() throws {
    let text = """
      struct Bare {
        func a() { unsafe x() }  // line 1: nothing anywhere
        func b() {
          // SAFETY: inside.
          if y { unsafe x() }
        }
        // SAFETY: above.
        @inlinable
        func c() { unsafe x() }

        func d() { unsafe x() }  // line 10: another function's line does not count
      }
      final class Carried {
        // SAFETY: for all of it.
        let base: Pointer
        func a() { unsafe x(base) }
        struct Inner { func a() { unsafe x() } }
      }
      extension Carried {
        func b() { unsafe x() }  // line 19: the type's line is elsewhere
      }
      extension Carried {  // line 21
        // SAFETY: of the group.
        var x: Int { unsafe x() }
        var y: Int { unsafe x() }

        var z: Int { unsafe x() }  // line 26
      }
      final class Shared: @unchecked Sendable {}  // line 28
      let text = "unsafe { SAFETY: }"  // unsafe in words
      """
    let found = try unexplainedUnsafe(in: [SwiftSource(path: "x", text: text)]).map(\.line)
    #expect(found == [1, 10, 19, 26, 28])
  }
}
