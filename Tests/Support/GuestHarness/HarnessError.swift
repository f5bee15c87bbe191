// What goes wrong while a guest, a back-end or a tool is driven. Thrown to the tests, which show `description`.

/// A failure of the harness's own work: says what was awaited, and carries the logs that explain it.
public struct HarnessError: Error, CustomStringConvertible {
  public let message: String
  /// Named logs, each cut to its end.
  public let logs: [(name: String, text: String)]

  public init(_ message: String, logs: [(name: String, text: String)] = []) {
    self.message = message
    self.logs = logs
  }

  public var description: String {
    logs.reduce(message) { text, log in
      let end = log.text.split(separator: "\n", omittingEmptySubsequences: false).suffix(60)
      return text + "\n---- \(log.name) ----\n" + end.joined(separator: "\n")
    }
  }
}
