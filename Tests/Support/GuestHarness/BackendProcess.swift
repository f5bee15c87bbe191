// A vhost-user back-end as a process of its own: vhost-swiftd, or another one to compare with. Used on any thread.

import Foundation

/// A back-end program that serves one socket.
public final class BackendProcess {
  public private(set) var process: ChildProcess
  public let socketPath: String
  private let folder: TemporaryFolder
  private let program: String
  private let arguments: [String]

  /// True when `VHOST_SWIFTD_STANDIN` asks for QEMU's own back-ends in place of ours. The same tests with another
  /// back-end tell a mistake of the test, or of the guest, from one of ours.
  public static let standIn = Environment.value("VHOST_SWIFTD_STANDIN") != nil

  /// Starts any back-end; returns when the socket listens. The argument `{socket}` becomes the socket's path.
  public init(_ program: String, _ arguments: [String]) throws {
    folder = try TemporaryFolder()
    let path = folder.file("socket")
    socketPath = path
    self.program = program
    self.arguments = arguments.map { $0.replacingOccurrences(of: "{socket}", with: path) }
    process = try ChildProcess(program, self.arguments, log: folder.file("backend.log"))
    try process.wait(until: "its socket listens", within: 60) { listens(path) }
  }

  /// Ends it, as a crash does or as an administrator, and starts another one in its place.
  public func replace(killing: Bool) throws {
    if killing {
      guard process.kill() == .signal(SIGKILL) else {
        throw HarnessError("the back-end had ended", logs: [("back-end", log)])
      }
    } else {
      try stop()
    }
    process = try ChildProcess(program, arguments, log: folder.file("backend.log"))
  }

  /// A disk over an image file.
  public static func disk(_ image: String, readOnly: Bool = false, queues: Int = 1, options: [String] = [])
    throws
    -> BackendProcess
  {
    if standIn {
      let writable = readOnly ? "off" : "on"
      let export = "type=vhost-user-blk,id=export,node-name=file,writable=\(writable),num-queues=\(queues)"
      return try BackendProcess(
        "qemu-storage-daemon",
        [
          "--blockdev", "driver=file,node-name=file,filename=\(image),read-only=\(readOnly ? "on" : "off")",
          "--export", export + ",addr.type=unix,addr.path={socket}",
        ])
    }
    let arguments = ["blk", "--socket-path", "{socket}", "--blk-file", image, "--num-queues", "\(queues)"]
    return try vhostSwiftd(arguments + (readOnly ? ["--read-only"] : []) + options)
  }

  /// `vhost-swiftd` with these arguments.
  public static func vhostSwiftd(_ arguments: [String]) throws -> BackendProcess {
    try BackendProcess(Environment.program("vhost-swiftd"), arguments)
  }

  /// Everything it has written so far.
  public var log: String { process.log }

  /// Ends it as an administrator would, and requires the status 0 that such an end must have.
  public func stop() throws {
    guard process.exit == nil else {
      throw HarnessError("the back-end had ended with \(process.exit!)", logs: [("back-end", log)])
    }
    let exit = process.terminate()
    guard exit == .status(0) else {
      throw HarnessError("the back-end ended with \(String(describing: exit))", logs: [("back-end", log)])
    }
  }
}

/// Whether a Unix socket at `path` is listening, without connecting: a connection would be a front-end's.
private func listens(_ path: String) -> Bool {
  // The kernel's flag __SO_ACCEPTCON, in the fourth column. vhost-swiftd binds under a longer name and renames.
  guard FileManager.default.fileExists(atPath: path) else { return false }
  return kernelList("/proc/net/unix").split(separator: "\n").contains {
    $0.contains(" " + path) && $0.contains(" 00010000 ")
  }
}

/// A file of the kernel's to its end: it has no size to be told, and Foundation then stops after the first 4 KiB.
private func kernelList(_ path: String) -> String {
  guard let file = fopen(path, "r") else { return "" }
  defer { fclose(file) }
  var bytes: [UInt8] = []
  var part = [UInt8](repeating: 0, count: 1 << 16)
  while true {
    let count = fread(&part, 1, part.count, file)
    if count == 0 { return String(decoding: bytes, as: UTF8.self) }
    bytes += part[..<count]
  }
}
