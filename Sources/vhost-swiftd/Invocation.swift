// The command line before the parser sees it: completed from the program's name, and held to what the parser lets pass.
// On the main thread.

import Glibc

enum Invocation {
  /// The arguments as given, or completed from the name the program was called by: management software runs a back-end
  /// by a bare path (docs/interop/vhost-user.rst, "Backend program conventions"), so `vhost-swiftd-blk`, a link, means
  /// `vhost-swiftd blk`.
  static func arguments(_ all: [String]) -> [String] {
    let rest = Array(all.dropFirst())
    let name = all.first?.split(separator: "/").last.map(String.init) ?? ""
    guard let dash = name.lastIndex(of: "-") else { return rest }
    let device = String(name[name.index(after: dash)...])
    let known = Program.configuration.subcommands.contains { $0.configuration.commandName == device }
    return known ? [device] + rest : rest
  }

  /// Refuses what would be taken for something else: bytes that are no text, and an option given twice, of which the
  /// last would silently win. A negative number stays with the option before it, so that its range is what is told.
  static func checked(_ arguments: [String]) throws(Failure) -> [String] {
    if let index = firstNonText {
      throw .usage(
        "argument \(index), '\(CommandLine.arguments[index])', is not UTF-8: paths and texts have to be")
    }
    var seen: Set<Substring> = []
    var result: [String] = []
    for argument in arguments {
      if argument == "--" { break }
      if isNegativeNumber(argument), let option = result.last, option.hasPrefix("--"), !option.contains("=") {
        result[result.count - 1] += "=" + argument
        continue
      }
      result.append(argument)
      guard argument.hasPrefix("--"), argument != "--help" else { continue }
      let name = argument.prefix { $0 != "=" }
      // A switch has several ports.
      guard seen.insert(name).inserted || name == "--port" else {
        throw .usage("\(name) is given twice: expected once")
      }
    }
    return result + arguments.drop { $0 != "--" }
  }

  private static func isNegativeNumber(_ argument: String) -> Bool {
    argument.hasPrefix("-")
      && argument.dropFirst().first.map { $0.isASCII && $0.isNumber || $0 == "." } == true
  }

  /// The first argument that `CommandLine.arguments` holds only repaired.
  private static var firstNonText: Int? {
    for (index, repaired) in CommandLine.arguments.enumerated() where repaired.contains("\u{fffd}") {
      // SAFETY: as many NUL-terminated strings as there are arguments; nobody changes them.
      guard let bytes = unsafe CommandLine.unsafeArgv[index] else { continue }
      if unsafe String(validatingCString: bytes) == nil { return index }
    }
    return nil
  }
}
