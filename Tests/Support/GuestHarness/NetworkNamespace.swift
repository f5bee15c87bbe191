// A network of a test's own: a namespace, and programs started in it. Used on any thread.

import Foundation

/// A network namespace that lives as long as this object.
public final class NetworkNamespace {
  private let folder: TemporaryFolder
  private let keeper: ChildProcess

  /// Nothing is in it but the loopback interface, which is up.
  public init() throws {
    folder = try TemporaryFolder()
    let ready = folder.file("ready")
    keeper = try ChildProcess(
      "unshare", ["-n", "sh", "-c", "ip link set lo up && : >\(ready) && exec sleep 100000"],
      log: folder.file("namespace.log"), environment: Self.environment)
    try keeper.wait(until: "the namespace is made", within: 60) {
      FileManager.default.fileExists(atPath: ready)
    }
  }

  /// Administrators' tools too.
  private static let environment = [
    "PATH": (Environment.value("PATH") ?? "/usr/bin:/bin") + ":/usr/sbin:/sbin", "LC_ALL": "C",
  ]

  /// A command line that runs a program here.
  public func command(_ program: String, _ arguments: [String]) -> [String] {
    ["nsenter", "--target", "\(keeper.pid)", "--net", "--", program] + arguments
  }

  /// Runs a program to its end; what it printed. Throws where its status is not 0.
  @discardableResult
  public func run(_ program: String, _ arguments: [String], within seconds: Double = 60) throws -> String {
    let line = command(program, arguments)
    return try Tool.run(line[0], Array(line.dropFirst()), timeout: seconds)
  }

  /// Runs a shell script to its end; what it printed.
  @discardableResult
  public func shell(_ script: String, within seconds: Double = 60) throws -> String {
    try run("sh", ["-ec", script], within: seconds)
  }

  /// Starts a program.
  public func start(_ program: String, _ arguments: [String]) throws -> ChildProcess {
    let line = command(program, arguments)
    return try ChildProcess(
      line[0], Array(line.dropFirst()), log: folder.file("log-\(UUID().uuidString)"),
      environment: Self.environment)
  }
}
