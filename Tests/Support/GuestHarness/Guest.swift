// A Linux guest in QEMU, driven from a test: boot, commands, reset, power off. Used on GuestThread, one guest's
// calls never at the same time.

import Foundation

/// A running guest. Dropping the last reference kills it.
public final class Guest {
  /// What a command in the guest printed (output and error together), and its status.
  public struct Answer {
    public let status: Int
    public let output: String
  }

  public let monitor: Monitor
  public let process: ChildProcess
  private let commands: LineChannel
  private let kernelLogPath: String
  private let folder: TemporaryFolder
  private let backends: [BackendProcess]

  /// Starts QEMU and returns when the guest answers commands.
  public static func boot(_ configuration: GuestConfiguration, within seconds: Double = 180) throws -> Guest {
    let guest = try Guest(configuration)
    try guest.waitReady(by: Deadline(seconds: seconds))
    return guest
  }

  /// Starts QEMU without a guest in it: one will move in (`migrate`). Its configuration is the moving guest's, but for the
  /// back-ends.
  static func awaiting(_ configuration: GuestConfiguration) throws -> Guest {
    var configuration = configuration
    configuration.arguments += ["-incoming", "defer"]
    return try Guest(configuration)
  }

  /// Where a guest that moves to this machine comes in.
  var moveSocket: String { folder.file("move") }

  private init(_ configuration: GuestConfiguration) throws {
    folder = try TemporaryFolder()
    backends = configuration.backends
    let log = folder.file("kernel.log")
    kernelLogPath = log
    let line = try configuration.commandLine(accelerator: Environment.accelerator.get(), kernelLog: log)
    let (control, controlEnd) = try LineChannel.pair(name: "monitor")
    let (commands, commandEnd) = try LineChannel.pair(name: "command port")
    self.commands = commands
    let program = "qemu-system-x86_64"
    let words = configuration.namespace?.command(program, line) ?? [program] + line
    let started = Result { [folder] in
      try ChildProcess(
        words[0], Array(words.dropFirst()), log: folder.file("qemu.log"),
        descriptors: [controlEnd, commandEnd])
    }
    // Only QEMU holds the other ends: its end is the end of both channels.
    close(controlEnd)
    close(commandEnd)
    let process = try started.get()
    self.process = process
    monitor = try Monitor(control, by: Deadline(seconds: 60)) {
      try requireAlive(process, ending: $0, kernelLog: log)
    }
  }

  /// What the kernel has written to its console: warnings and worse.
  public var kernelLog: String { readLog(kernelLogPath) }

  /// Runs a shell command in the guest. It ends before this returns, unless it puts itself in the background, and
  /// then its output must go elsewhere than here.
  public func run(_ command: String, within seconds: Double = 60) throws -> Answer {
    let deadline = Deadline(seconds: seconds)
    let marker = "end-\(UInt64.random(in: .min ... .max))"
    return try explained("`\(command)`") {
      try commands.write("\(marker) \(Data(command.utf8).base64EncodedString())\n", by: deadline)
      let output = try commands.read(upTo: Array("\n\(marker) ".utf8), by: deadline, check: alive)
      let status = try commands.readLine(by: deadline, check: alive)
      guard let status = Int(status) else { throw HarnessError("`\(status)` is not a status") }
      return Answer(status: status, output: String(decoding: output, as: UTF8.self))
    }
  }

  /// Runs a command that has to succeed and returns its output, without the newline at its end.
  @discardableResult
  public func check(_ command: String, within seconds: Double = 60) throws -> String {
    let answer = try run(command, within: seconds)
    guard answer.status == 0 else {
      throw HarnessError(
        "`\(command)` ended with status \(answer.status) in the guest",
        logs: [("its output", answer.output), ("kernel", kernelLog)])
    }
    return answer.output.hasSuffix("\n") ? String(answer.output.dropLast()) : answer.output
  }

  /// Presses the reset button, and waits until the guest answers again.
  public func reset(within seconds: Double = 180) throws {
    let deadline = Deadline(seconds: seconds)
    try monitor.execute("system_reset")
    try monitor.waitEvent("RESET", within: deadline.remaining)
    try waitReady(by: deadline)
  }

  /// Shuts the guest down as its own poweroff does; QEMU ends with status 0.
  public func powerOff(within seconds: Double = 60) throws {
    let deadline = Deadline(seconds: seconds)
    try check("sync", within: seconds)
    try commands.write("off \(Data("poweroff -f".utf8).base64EncodedString())\n", by: deadline)
    let exit = try explained("power off") { try process.waitExit(within: deadline.remaining) }
    guard exit == .status(0) else { throw explain("QEMU ended with \(exit)") }
  }

  /// Ends QEMU at once.
  public func kill() { process.kill() }

  private func waitReady(by deadline: Deadline) throws {
    try explained("the guest boots") {
      commands.discard()
      while try commands.readLine(by: deadline, check: alive) != "ready" {}
    }
  }

  private func alive(_ ending: Bool) throws {
    try requireAlive(process, ending: ending, kernelLog: kernelLogPath)
  }

  private func explained<T>(_ what: String, _ body: () throws -> T) throws -> T {
    do {
      return try body()
    } catch {
      throw explain("\(what): \(error)")
    }
  }

  private func explain(_ message: String) -> HarnessError {
    let logs = [("QEMU", process.log), ("kernel", kernelLog)] + backends.map { ($0.process.name, $0.log) }
    return HarnessError(message, logs: logs)
  }
}

/// Throws as soon as waiting longer is pointless. QEMU closes its channels just before it ends: when it is `ending`,
/// its status is worth a moment.
private func requireAlive(_ process: ChildProcess, ending: Bool, kernelLog: String) throws {
  if let exit = try ending ? process.waitExit(within: 10) : process.exit {
    throw HarnessError("QEMU ended with \(exit)", logs: [("QEMU", process.log)])
  }
  if readLog(kernelLog).contains("Kernel panic") { throw HarnessError("the guest's kernel panicked") }
}

private func readLog(_ path: String) -> String {
  String(decoding: FileManager.default.contents(atPath: path) ?? Data(), as: UTF8.self)
}
