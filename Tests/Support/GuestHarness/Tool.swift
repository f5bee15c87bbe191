// One-shot programs on the host: e2fsck, debugfs, sha256sum. Run on the caller's thread.

import Foundation

public enum Tool {
  /// Runs a program to its end and returns what it printed; throws when its status is not 0.
  @discardableResult
  public static func run(_ program: String, _ arguments: [String], timeout: Double = 60) throws -> String {
    let folder = try TemporaryFolder()
    // Debian keeps the file system tools where an ordinary user's PATH does not lead.
    let path = (Environment.value("PATH") ?? "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    let child = try ChildProcess(
      program, arguments, log: folder.file("output"), environment: ["PATH": path, "LC_ALL": "C"])
    let exit = try child.waitExit(within: timeout)
    guard exit == .status(0) else {
      let command = ([program] + arguments).joined(separator: " ")
      throw HarnessError("\(command) ended with \(exit)", logs: [("output", child.log)])
    }
    return child.log
  }
}
