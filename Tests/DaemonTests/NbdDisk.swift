// A file served by nbdkit through nbdfuse, whose reads and writes fail by chance: an independent storage with its own record of
// what it failed. Made and driven on any thread.

import Foundation
import GuestHarness

/// Memory behind nbdkit's error filter. Needs both programs, /dev/fuse and the right to mount.
final class NbdDisk {
  /// Whether this process may have one; tests that need one are skipped where not.
  static let isPossible: Bool = {
    let folders = (Environment.value("PATH") ?? "/usr/bin:/bin").split(separator: ":")
    let installed = ["nbdkit", "nbdfuse"].allSatisfy { program in
      folders.contains { access("\($0)/\(program)", X_OK) == 0 }
    }
    return installed && (try? NbdDisk(bytes: 4096, readErrors: 0, writeErrors: 0)) != nil
  }()

  /// The file, open. A child that inherits it as its descriptor 3 opens it anew at `HeldDisk.pathInChild`; it has no name.
  let descriptor: Int32
  private let folder: TemporaryFolder
  private let process: ChildProcess

  /// `readErrors`, `writeErrors`: how many of a hundred fail, while `isFailing`.
  init(bytes: Int, readErrors: Int, writeErrors: Int) throws {
    folder = try TemporaryFolder()
    let path = folder.file("disk")
    try Data().write(to: URL(fileURLWithPath: path))
    try Data().write(to: URL(fileURLWithPath: folder.file("record")))
    process = try ChildProcess(
      "nbdfuse",
      [
        path, "[", "nbdkit", "--exit-with-parent", "--filter=log", "--filter=error", "memory", "\(bytes)",
        "logfile=\(folder.file("record"))", "error=EIO", "error-file=\(folder.file("failing"))",
        "error-pread-rate=\(readErrors)%", "error-pwrite-rate=\(writeErrors)%", "]",
      ], log: folder.file("log"))
    try process.wait(until: "the file is mounted", within: 30) {
      var facts = stat()
      return stat(path, &facts) == 0 && facts.st_size == bytes
    }
    descriptor = open(path, O_RDWR | O_CLOEXEC)
    let reason = String(cString: strerror(errno))
    // What is open stays; nothing is left to take away should this process die.
    umount2(path, Int32(MNT_DETACH))
    guard descriptor >= 0 else { throw HarnessError("open of nbdfuse's file: \(reason)") }
  }

  // The last descriptor ends nbdfuse, and that its nbdkit; the process's own reference would kill it.
  deinit {
    if descriptor >= 0 { close(descriptor) }
    _ = try? process.waitExit(within: 10)
  }

  /// Whether it fails requests now.
  var isFailing: Bool {
    get { access(folder.file("failing"), F_OK) == 0 }
    set {
      if newValue {
        _ = FileManager.default.createFile(atPath: folder.file("failing"), contents: nil)
      } else {
        unlink(folder.file("failing"))
      }
    }
  }

  /// How many reads and writes it has failed, and done, by its own record.
  var record: (failed: Int, done: Int) {
    let lines = String(
      decoding: FileManager.default.contents(atPath: folder.file("record")) ?? Data(), as: UTF8.self
    ).split(separator: "\n").filter { $0.contains("...Read") || $0.contains("...Write") }
    return (lines.count { $0.contains("return=-1") }, lines.count { $0.contains("return=0") })
  }
}
