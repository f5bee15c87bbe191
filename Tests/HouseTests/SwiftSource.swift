// A Swift file taken apart far enough for the house rules: code without its comments and string contents, comments,
// and what is declared between which lines. Not a parser: it relies on the sources being formatted.

import Foundation

/// One source file. Line numbers are indices into `code` and `comments`; people are told the index plus one.
struct SwiftSource {
  /// Below the repository's root.
  let path: String
  /// Each line with comments and the contents of string literals left out.
  let code: [String]
  /// Each line's comment text; empty where there is none.
  let comments: [String]
  /// What is between braces, outer before inner.
  let scopes: [Scope]

  struct Scope {
    enum Kind { case type, function, block }

    let kind: Kind
    /// The first line of the declaration (without attributes on lines of their own), and those of its braces.
    let declaration: Int
    let open: Int
    let close: Int

    func holds(_ line: Int) -> Bool { declaration <= line && line <= close }
  }

  init(path: String, text: String) {
    self.path = path
    var splitter = Splitter(Array(text.utf8))
    splitter.run()
    code = splitter.code.map { String(decoding: $0, as: UTF8.self) }
    comments = splitter.comments.map { String(decoding: $0, as: UTF8.self) }
    scopes = Self.findScopes(code)
  }

  /// The scopes that hold a line, innermost first.
  func scopes(around line: Int) -> [Scope] { scopes.filter { $0.holds(line) }.reversed() }

  /// A line and those below it, up to the next blank line or the end of what holds them.
  func group(from line: Int) -> Range<Int> {
    func indentation(_ line: Int) -> Int { code[line].prefix { $0 == " " }.count }
    let end = (line..<code.count).first { next in
      code[next].allSatisfy(\.isWhitespace) && comments[next].isEmpty
        || !code[next].isEmpty && indentation(next) < indentation(line)
    }
    return line..<(end ?? code.count)
  }

  private static func findScopes(_ code: [String]) -> [Scope] {
    var open = [(line: Int, header: (kind: Scope.Kind, line: Int), index: Int)]()
    var found = [(index: Int, scope: Scope)]()
    var index = 0
    for (line, text) in code.enumerated() {
      for (column, character) in text.enumerated() {
        if character == "{" {
          open.append((line, header(code, line: line, column: column), index))
          index += 1
        } else if character == "}", let last = open.popLast() {
          let (kind, start) = last.header
          found.append((last.index, Scope(kind: kind, declaration: start, open: last.line, close: line)))
        }
      }
    }
    return found.sorted { $0.index < $1.index }.map(\.scope)
  }

  /// What the brace at a place opens: looks at the text before it, going up while the statement began above.
  private static func header(_ code: [String], line: Int, column: Int) -> (kind: Scope.Kind, line: Int) {
    var start = line
    var text = String(code[line].prefix(column))
    if let inner = text.lastIndex(where: { "{};".contains($0) }) {
      text = String(text[text.index(after: inner)...])
    } else {
      while start > 0, continues(text) {
        start -= 1
        text = code[start] + "\n" + text
      }
    }
    return (kind(ofStatement: text), start)
  }

  /// Whether a statement's text so far cannot be its beginning.
  private static func continues(_ text: String) -> Bool {
    let first = text.drop { $0.isWhitespace }
    var depth = 0
    for character in first {
      if "([".contains(character) { depth += 1 }
      if ")]".contains(character) { depth -= 1 }
    }
    let middles = [")", "->", "where ", "throws", "&&", "||", ".", ":", "?"]
    return first.isEmpty || depth < 0 || middles.contains { first.hasPrefix($0) }
  }

  private static let modifiers: Set<Substring> = [
    "public", "package", "internal", "fileprivate", "private", "open", "final", "static", "indirect",
    "mutating",
    "nonmutating", "consuming", "borrowing", "nonisolated", "isolated", "override", "required", "convenience",
    "lazy",
    "weak", "unowned", "prefix", "postfix", "infix",
  ]

  /// What the first word that is neither attribute nor modifier declares.
  private static func kind(ofStatement text: String) -> Scope.Kind {
    var rest = text[...]
    while true {
      rest = rest.drop { $0.isWhitespace }
      let isAttribute = rest.first == "@"
      if isAttribute { rest = rest.dropFirst() }
      let word = rest.prefix { $0.isLetter || $0.isNumber || $0 == "_" }
      rest = rest.dropFirst(word.count)
      if isAttribute || modifiers.contains(word) {
        if rest.first == "(" { rest = rest.drop { $0 != ")" }.dropFirst() }
        continue
      }
      switch word {
      case "class":
        let next = rest.drop { $0.isWhitespace }
        return ["func ", "var ", "subscript"].contains { next.hasPrefix($0) } ? .function : .type
      case "struct", "enum", "actor", "extension", "protocol": return .type
      case "func", "init", "deinit", "subscript", "var", "let": return .function
      default: return .block
      }
    }
  }
}

/// Goes through a file once, sorting each byte to code or comment.
private struct Splitter {
  private let text: [UInt8]
  private var at = 0
  /// By lines.
  private(set) var code = [[UInt8]()]
  private(set) var comments = [[UInt8]()]

  init(_ text: [UInt8]) { self.text = text }

  mutating func run() {
    while at < text.count {
      if has("//") {
        while at < text.count, !has("\n") { take(asCode: false) }
      } else if has("/*") {
        blockComment()
      } else if has("\"") || has("#\"") || has("##\"") {
        string()
      } else {
        take(asCode: true)
      }
    }
  }

  private func has(_ word: String) -> Bool { text[at...].starts(with: word.utf8) }

  private mutating func take(asCode: Bool, keep: Bool = true) {
    let byte = text[at]
    at += 1
    if byte == UInt8(ascii: "\n") {
      code.append([])
      comments.append([])
    } else if asCode {
      if keep { code[code.count - 1].append(byte) }
    } else {
      comments[comments.count - 1].append(byte)
    }
  }

  private mutating func blockComment() {
    var depth = 0
    repeat {
      if has("/*") { depth += 1 }
      if has("*/") {
        depth -= 1
        take(asCode: false)
      }
      take(asCode: false)
    } while depth > 0 && at < text.count
  }

  /// A string literal of any kind: its quotes stay, its contents go, code in interpolations with them.
  private mutating func string() {
    var hashes = ""
    while has("#") {
      hashes += "#"
      take(asCode: true)
    }
    let quotes = has("\"\"\"") ? "\"\"\"" : "\""
    for _ in quotes { take(asCode: true) }
    while at < text.count, !has(quotes + hashes) {
      if quotes == "\"", has("\n") { return }
      if has("\\\(hashes)(") {
        while !has("(") { take(asCode: true, keep: false) }
        interpolation()
      } else if has("\\\(hashes)") {
        for _ in 0...hashes.count { take(asCode: true, keep: false) }
        if at < text.count { take(asCode: true, keep: false) }
      } else {
        take(asCode: true, keep: false)
      }
    }
    for _ in quotes + hashes where at < text.count { take(asCode: true) }
  }

  private mutating func interpolation() {
    var depth = 0
    repeat {
      if has("(") { depth += 1 }
      if has(")") { depth -= 1 }
      if has("\"") {
        let kept = code
        string()
        if code.count == kept.count { code = kept }
      } else {
        take(asCode: true, keep: false)
      }
    } while depth > 0 && at < text.count
  }
}
