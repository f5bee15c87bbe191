// A disk back-end under measurement: ours, or the peer, on the same storage and the same processor. The main thread.

import Foundation
import GuestHarness

/// What a disk is kept in.
struct Storage {
  enum Kind { case null, file(path: String, direct: Bool) }
  var kind: Kind
  var bytes: Int
}

/// Which processors are whose.
struct Processors {
  let server: String
  let client: String

  /// Processors for so many threads of a server: one each, where the client keeps its own.
  func forThreads(_ count: Int) -> String {
    count > 1 && ProcessInfo.processInfo.activeProcessorCount > count ? "0-\(count - 1)" : server
  }

  /// The last processor for the client, the first for the server: on two, one each.
  static let here = Processors(
    server: "0", client: String(max(0, ProcessInfo.processInfo.activeProcessorCount - 1)))
}

final class DiskServer {
  static let peerName = "qemu-storage-daemon"
  let backend: BackendProcess
  var pid: Int32 { backend.process.pid }
  var socket: String { backend.socketPath }

  private init(_ backend: BackendProcess) { self.backend = backend }

  static func ours(_ storage: Storage, queues: Int = 1, threads: Int = 1, options: [String] = []) throws
    -> DiskServer
  {
    var arguments = [
      "blk", "--socket-path", "{socket}", "--num-queues", "\(queues)", "--threads", "\(threads)",
    ]
    arguments += ["--cpus", Processors.here.forThreads(threads)]
    switch storage.kind {
    case .null: arguments += ["--null-size", "\(storage.bytes)"]
    case .file(let path, let direct):
      arguments += ["--blk-file", path, "--lock", "off"] + (direct ? ["--direct"] : [])
    }
    return DiskServer(try BackendProcess.vhostSwiftd(arguments + options))
  }

  /// With an I/O thread of its own, which polls as it does by default, and the engine that suits the storage best.
  static func peer(_ storage: Storage, queues: Int = 1) throws -> DiskServer {
    let node: String
    switch storage.kind {
    case .null: node = "driver=null-co,node-name=disk,size=\(storage.bytes),read-zeroes=off"
    case .file(let path, let direct):
      node =
        "driver=file,node-name=disk,filename=\(path),locking=off,cache.direct=\(direct ? "on" : "off"),"
        + "aio=\(direct ? "native" : "io_uring")"
    }
    let export =
      "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=\(queues),iothread=thread,"
      + "addr.type=unix,addr.path={socket}"
    return DiskServer(
      try BackendProcess(
        "taskset",
        [
          "-c", Processors.here.server, peerName, "--object", "iothread,id=thread", "--blockdev", node,
          "--export", export,
        ]))
  }

  func stop() { backend.process.terminate() }
}

/// A file of a size, filled with bytes that are not zero, gone when the last reference goes.
final class StorageFile {
  let path: String

  init(in folder: String, bytes: Int) throws {
    path = "\(folder)/vhost-bench.\(getpid()).\(UInt32.random(in: 0 ... .max))"
    guard FileManager.default.createFile(atPath: path, contents: nil) else {
      throw HarnessError("cannot make \(path)")
    }
    let file = try FileHandle(forWritingTo: URL(fileURLWithPath: path))
    let block = Data((0..<(1 << 20)).map { UInt8(truncatingIfNeeded: $0 &* 31 | 1) })
    for _ in 0..<(bytes >> 20) { try file.write(contentsOf: block) }
    try file.synchronize()
    try file.close()
  }

  deinit { try? FileManager.default.removeItem(atPath: path) }
}
