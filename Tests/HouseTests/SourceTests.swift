// What sources may not say, and how long they should be.

import Foundation
import Testing

@Suite("Sources")
struct SourceTests {
  // `!`, `try!` and `as!` are found by swift-format, in scripts/check: it knows Swift's grammar.
  @Test(
    "Nothing that ships ends the process or prints",
    arguments: ["fatalError", "preconditionFailure", "print"])
  func forbiddenCalls(name: String) throws {
    let bound = Repository.production.filter { !($0.path.hasPrefix("Benchmarks/") && name == "print") }
    expectNone(try findings(of: #"(?<![.\w])(?<!func )(?:Swift\.)?\#(name)\("#, in: bound, "calls \(name)"))
  }

  @Test("The libraries use threads of their own, and no Swift concurrency")
  func noConcurrency() throws {
    let libraries = Repository.production.filter { !$0.path.hasPrefix("Benchmarks/") }
    expectNone(try findings(of: #"\b(?:async|await|actor)\b"#, in: libraries, "Swift concurrency"))
  }

  @Test("No test waits for a fixed time")
  func noSleeps() throws {
    let pattern = #"(?<![.\w])(?:Glibc\.)?(?:u|nano|clock_nano)?sleep\(|(?:Thread|Task)\.sleep\b"#
    expectNone(try findings(of: pattern, in: Repository.tests, "sleeps"))
  }

  @Test("Every Swift file begins by saying what it is")
  func headers() {
    let silent = (Repository.production + Repository.tests).filter { !($0.comments[0].hasPrefix("// ")) }
    #expect(silent.map(\.path) == [])
  }

  @Test("No file names a path of somebody's machine")
  func machinePaths() throws {
    // In pieces, so that this file does not name them either; at the beginning of a path only.
    let folders = ["work", "farm", "home", "root", "Users", "opt/swift"].joined(separator: "|")
    let expression = try NSRegularExpression(pattern: #"(?m)^.*(?<![\w.}])/(?:\#(folders))/.*$"#)
    let found = Repository.files(in: ["."]).filter { $0 != "Package.resolved" }.flatMap { path in
      let text = Repository.text(of: path)
      let matches = expression.matches(in: text, range: NSRange(location: 0, length: text.utf16.count))
      return matches.compactMap { Range($0.range, in: text).map { "\(path): \(text[$0])" } }
    }
    #expect(found == [])
  }

  @Test("Files of more than 400 lines and functions of more than 60 are listed")
  func sizes() {
    for source in Repository.production + Repository.tests {
      if source.code.count > 401 {
        Issue.record("\(source.path) has \(source.code.count - 1) lines", severity: .warning)
      }
      for scope in source.scopes where scope.kind == .function && scope.close - scope.declaration >= 60 {
        let name = source.code[scope.declaration].trimmingCharacters(in: .whitespaces)
        let what = "\(scope.close - scope.declaration + 1) lines: \(name)"
        Issue.record("\(Finding(path: source.path, line: scope.declaration, what: what))", severity: .warning)
      }
    }
  }
}

@Suite("How sources are read")
struct SwiftSourceTests {
  @Test("Code, strings and comments are told apart")
  func splits() {
    let text = ##"""
      let a = "x // y \(f("{")) z" // one { two
      /* three /* four */ five */ let b = #"raw \" { "# + "\\"
      let c = """
        { "quoted" \(g(")"))
        """; h()
      """##
    let source = SwiftSource(path: "x", text: text)
    #expect(source.code == ["let a = \"\" ", " let b = #\"\"# + \"\"", "let c = \"\"\"", "", "\"\"\"; h()"])
    #expect(source.comments[0] == "// one { two")
    #expect(source.comments[1] == "/* three /* four */ five */")
  }

  @Test("Types, functions and blocks are told apart, over several lines too")
  func scopes() {
    let text = """
      public struct A<T>: B
      where T: C {
        private(set) var x: Int { 1 }
        init(
          a: Int,
          b: Int
        ) throws {
          if let y = z, case .d = e { f { $0 } }
        }
        static func + (a: A, b: A) -> A { a }
      }
      """
    let source = SwiftSource(path: "x", text: text)
    let kinds = source.scopes.map { "\($0.kind) \($0.declaration)" }
    #expect(kinds == ["type 0", "function 2", "function 3", "block 7", "block 7", "function 9"])
  }
}
