// The repository's files, as the house rules read them. On any thread.

import Foundation
import Testing

enum Repository {
  static let root: URL = {
    var folder = URL(fileURLWithPath: #filePath)
    for _ in 0..<3 { folder.deleteLastPathComponent() }
    return folder
  }()

  /// Paths below the root of the files in these folders (or of these files), in order. What begins with a dot is
  /// another program's, but for `.ci` and `.swift-format`.
  static func files(in places: [String]) -> [String] {
    var found = [String]()
    for place in places {
      let base = root.appendingPathComponent(place).path
      var isFolder: ObjCBool = false
      guard FileManager.default.fileExists(atPath: base, isDirectory: &isFolder) else { continue }
      guard isFolder.boolValue else {
        found.append(place)
        continue
      }
      let names = (try? FileManager.default.contentsOfDirectory(atPath: base))?.sorted() ?? []
      let kept = names.filter { !$0.hasPrefix(".") || [".ci", ".swift-format"].contains($0) }
      found += files(in: kept.map { place == "." ? $0 : place + "/" + $0 })
    }
    return found
  }

  static func text(of path: String) -> String {
    let data = FileManager.default.contents(atPath: root.appendingPathComponent(path).path) ?? Data()
    return String(decoding: data, as: UTF8.self)
  }

  static func swift(in places: [String]) -> [SwiftSource] {
    files(in: places).filter { $0.hasSuffix(".swift") }.map { SwiftSource(path: $0, text: text(of: $0)) }
  }

  /// What ships: the rules of production code hold here.
  static let production = swift(in: ["Sources", "Examples", "Benchmarks"])
  static let tests = swift(in: ["Tests"])
}

/// A place in a source where a rule is broken.
struct Finding: CustomStringConvertible, Equatable {
  let path: String
  let line: Int
  let what: String

  var description: String { "\(path):\(line + 1): \(what)" }
}

/// Fails the test with an issue for each finding.
func expectNone(_ findings: [Finding], sourceLocation: SourceLocation = #_sourceLocation) {
  for finding in findings { Issue.record("\(finding)", sourceLocation: sourceLocation) }
}

/// Matches of a regular expression in a source's code, one a line at most: strings and comments do not count.
func findings(of pattern: String, in sources: [SwiftSource], _ what: String) throws -> [Finding] {
  let expression = try NSRegularExpression(pattern: pattern)
  return sources.flatMap { source in
    source.code.enumerated().compactMap { line, text in
      let whole = NSRange(location: 0, length: text.utf16.count)
      guard expression.firstMatch(in: text, range: whole) != nil else { return nil }
      return Finding(path: source.path, line: line, what: what)
    }
  }
}
