// A real back-end that is not ours: qemu-storage-daemon with a vhost-user-blk export. Started by a test,
// ended by pid.

import Foundation

final class StorageDaemon {
  static let program = "/usr/bin/qemu-storage-daemon"
  static var isInstalled: Bool { FileManager.default.isExecutableFile(atPath: program) }

  let folder: String
  var socketPath: String { folder + "/s" }
  var imagePath: String { folder + "/disk" }
  private var pid: pid_t = -1

  init(imageBytes: Int, queues: Int = 1) throws {
    var template = Array("/tmp/frontend-test-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw POSIXError(.EIO) }
    folder = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    try Data().write(to: URL(fileURLWithPath: folder + "/disk"))
    guard truncate(folder + "/disk", off_t(imageBytes)) == 0 else { throw POSIXError(.EIO) }
    let arguments = [
      Self.program, "--blockdev", "driver=file,node-name=f,filename=\(folder)/disk", "--export",
      "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=\(folder)/s,writable=on,"
        + "num-queues=\(queues)",
    ]
    var strings = arguments.map { strdup($0) } + [nil]
    defer { for string in strings { free(string) } }
    let failed = posix_spawn(&pid, Self.program, nil, nil, &strings, environ)
    guard failed == 0 else { throw POSIXError(POSIXErrorCode(rawValue: failed) ?? .EIO) }
  }

  func image() throws -> [UInt8] { Array(try Data(contentsOf: URL(fileURLWithPath: imagePath))) }

  deinit {
    // It has nothing to tidy up, and would wait for its client first.
    if pid > 0 {
      kill(pid, SIGKILL)
      var status: Int32 = 0
      while waitpid(pid, &status, 0) < 0 && errno == EINTR {}
    }
    try? FileManager.default.removeItem(atPath: folder)
  }
}
