// QEMU's machine protocol: how a test reaches the machine around the guest. Used on the guest's thread.

import Foundation

/// A QMP connection: commands answered in order, events kept until somebody asks for them.
public final class Monitor {
  private let channel: LineChannel
  private let check: (_ closed: Bool) throws -> Void
  private var events = [[String: Any]]()

  /// Reads the greeting and leaves negotiation mode. `check` throws when the machine has died.
  init(_ channel: LineChannel, by deadline: Deadline, check: @escaping (_ closed: Bool) throws -> Void) throws
  {
    self.channel = channel
    self.check = check
    let greeting = try message(by: deadline)
    guard greeting["QMP"] != nil else { throw HarnessError("not a QMP greeting: \(greeting)") }
    try execute("qmp_capabilities", within: deadline.remaining)
  }

  /// Executes a command and returns what it returns; throws QEMU's own words when it is refused.
  @discardableResult
  public func execute(_ command: String, _ arguments: [String: Any] = [:], within seconds: Double = 60) throws
    -> Any
  {
    let deadline = Deadline(seconds: seconds)
    var request: [String: Any] = ["execute": command]
    if !arguments.isEmpty { request["arguments"] = arguments }
    let text = try JSONSerialization.data(withJSONObject: request)
    try channel.write(String(decoding: text, as: UTF8.self) + "\n", by: deadline)
    while true {
      let answer = try message(by: deadline)
      if let result = answer["return"] { return result }
      if let error = answer["error"] as? [String: Any] {
        throw HarnessError("QEMU refuses \(command): \(error["desc"] ?? error)")
      }
      events.append(answer)
    }
  }

  /// The next event of that name, with its data; those before it stay for other calls.
  @discardableResult
  public func waitEvent(_ name: String, within seconds: Double = 60) throws -> [String: Any] {
    let deadline = Deadline(seconds: seconds)
    while true {
      if let index = events.firstIndex(where: { $0["event"] as? String == name }) {
        return events.remove(at: index)["data"] as? [String: Any] ?? [:]
      }
      events.append(try message(by: deadline))
    }
  }

  private func message(by deadline: Deadline) throws -> [String: Any] {
    let line = try channel.readLine(by: deadline, check: check)
    guard let object = try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any] else {
      throw HarnessError("not a QMP message: \(line)")
    }
    return object
  }
}
