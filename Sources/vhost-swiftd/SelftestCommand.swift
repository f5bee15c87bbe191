// `vhost-swiftd selftest-sandbox`: shows an operator that the sandbox holds on this machine.

import ArgumentParser
import DeviceKit
import Glibc
import HostIO

struct SelftestCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "selftest-sandbox",
    abstract: "Tries from a queue thread what the sandbox must refuse, and tells what came of it.",
    discussion: """
      Starts a device as its command would, without a front-end, closes the same sandbox around it, and has its queue thread try \
      each act. Harmless where an act is not refused. Exit status 0: all were refused; 1: some were not.

        vhost-swiftd selftest-sandbox
        vhost-swiftd selftest-sandbox --device net --user nobody
      """)

  /// What it starts: each device leaves itself its own calls.
  enum Device: String, ExpressibleByArgument, CaseIterable {
    case blk, net, rng

    /// The least that there can be of it.
    var arguments: [String] {
      switch self {
      case .blk: ["blk", "--null-size=1M"]
      case .net: ["net", "--backend=sink"]
      case .rng: ["rng"]
      }
    }
  }

  @Option(
    help: ArgumentHelp("Whose sandbox: each device leaves itself calls of its own.", valueName: "device"))
  var device = Device.blk

  @OptionGroup(title: "Sandbox") var sandbox: SandboxOptions

  func run() throws {
    let service = try service()
    defer { service.server.abandon() }
    var table = ActTable()
    guard let thread = service.threads.first else { return }
    try sandbox.close(around: [service]) {
      if sandbox.sandbox ?? .on == .on { table.add("landlock", SandboxAct.files, on: thread) }
    }
    for act in RingAct.all {
      if let result = thread.attempt(act) { table.add("io_uring", act.name, result) }
    }
    table.add("seccomp", SandboxAct.calls(beside: service.sandboxNeeds), on: thread)
    table.addState(of: thread)
    Output.line(table.text)
    if !table.isClosed { throw Failure.run("the sandbox is not closed on this machine: see the table") }
  }

  /// The device, on a socket that nobody connects to.
  private func service() throws -> Service {
    let path = "/tmp/vhost-swiftd-selftest-\(getpid()).sock"
    guard
      let command = try Program.parseAsRoot(device.arguments + ["--socket-path=\(path)"])
        as? any ServiceCommand
    else { throw Failure.run("no device to test with") }
    return try command.makeService()
  }
}

/// What was tried, and what came of it.
private struct ActTable {
  private var rows: [(layer: String, act: String, result: String, refused: Bool)] = []
  var isClosed: Bool { !rows.isEmpty && rows.allSatisfy(\.refused) }

  mutating func add(_ layer: String, _ act: String, _ result: Int) {
    let words = result < 0 ? HostError.text(of: Int32(clamping: -result)) : "done"
    rows.append((layer, act, words, SandboxAct.isRefusal(result)))
  }

  mutating func add(_ layer: String, _ acts: [SandboxAct], on thread: QueueThread) {
    if acts.isEmpty { rows.append((layer, "all of it", "not in this kernel, or off", false)) }
    for act in acts { add(layer, act.name, thread.attempt(act)) }
  }

  /// What the kernel says of the queue thread itself.
  mutating func addState(of thread: QueueThread) {
    for (fact, holds) in thread.privileges {
      rows.append(("privileges", fact, holds ? "yes" : "no", holds))
    }
  }

  var text: String {
    func line(_ cells: [String]) -> String {
      zip(cells, [11, 45, 30, 0]).map { $0 + String(repeating: " ", count: max(0, $1 - $0.count)) }.joined(
        separator: " ")
    }
    let open = rows.filter { !$0.refused }.count
    let verdict =
      open == 0
      ? "closed: \(rows.count) acts of a queue thread, none of them possible"
      : "NOT CLOSED: \(open) of \(rows.count) are not as they should be"
    return
      ([["LAYER", "ACT", "RESULT", ""]]
      + rows.map { [$0.layer, $0.act, $0.result, $0.refused ? "ok" : "NOT OK"] })
      .map(line).joined(separator: "\n") + "\n\(verdict)"
  }
}
