// One device in this process: its threads and its server. The order of set-up is the one that a sandbox needs:
// everything is opened first, threads and rings are made next and enabled last.

import CLinux
import DeviceKit
import Glibc
import HostIO
import Logging
import VhostUser

/// One device of this process: made whole and then started.
final class Service {
  let name: String
  let host: DeviceHost
  let threads: [QueueThread]
  let server: VhostUserServer
  let watch: SizeWatch
  private let log: Logger
  private(set) var hasEnded = false

  /// Opens and makes everything; nothing runs yet. `watch`: how a change of the device from outside is noticed.
  init(_ options: ServiceOptions, _ device: any VirtioDevice, watch: consuming SizeWatch) throws {
    name = device.identity.name
    self.watch = watch
    log = Self.logger(options.logLevel, name)
    do {
      threads = try Self.makeThreads(options, device)
      host = try DeviceHost(device: device, threads: threads)
      server = try VhostUserServer(host: host, endpoint: try Self.endpoint(options), log: log)
    } catch let error as HostError {
      throw Failure.run("\(error)")
    }
  }

  func start() throws(HostError) {
    for thread in threads {
      if let warning = try thread.start() { log.warning("\(warning): the thread runs where it may") }
    }
    try server.start()
    log.info("serving", metadata: ["queues": "\(host.queueLimit)", "threads": "\(threads.count)"])
  }

  /// The server has ended: everything else ends.
  func finish() {
    server.finish()
    for thread in threads { thread.finish() }
    hasEnded = true
  }

  /// Looks at the device from outside again, and tells the front-end what is new.
  func refresh() { if watch.refresh() { server.configChanged() } }

  var json: String { Statistics.json(device: name, host: host, threads: threads) }

  private static func makeThreads(
    _ options: ServiceOptions, _ device: any VirtioDevice
  ) throws -> [QueueThread] {
    let cpus = try options.cpus.map { list throws -> [Int] in
      do { return try Topology.processors(list) } catch { throw Failure.usage("--cpus: \(error)") }
    }
    let identity = device.identity
    let count = min(options.threads, identity.queueLimit)
    let seats = (identity.queueLimit + count - 1) / count
    return try (0..<count).map { index in
      try QueueThread(
        name: "\(identity.name)-\(index)", cpus: cpus.map { [$0[index % $0.count]] } ?? [],
        policy: options.poll.policy, seats: seats, files: device.descriptors.count,
        helped: device.needsHelper)
    }
  }

  private static func endpoint(_ options: ServiceOptions) throws -> Endpoint {
    if let fd = options.fd {
      switch InheritedSocket(fd) {
      case .listening: return .listener(UnixListener(adopting: OwnedFD(adopting: fd)))
      case .connected: return .connected(OwnedFD(adopting: fd))
      case .neither: throw Failure.run("--fd \(fd) is not a Unix socket: pass a listening or a connected one")
      }
    }
    if let path = options.connect { return .connecting(path: path) }
    let group = try options.socketGroup.map(groupID)
    return .listener(
      try UnixListener(path: options.socketPath ?? "", mode: options.socketMode.bits, group: group))
  }

  private static func groupID(_ name: String) throws -> UInt32 {
    if let number = UInt32(name) { return number }
    // SAFETY: the entry is read before any other call could replace it; there is one thread yet.
    guard let entry = unsafe getgrnam(name) else {
      throw Failure.usage("--socket-group '\(name)': no such group")
    }
    return unsafe entry.pointee.gr_gid
  }

  private static func logger(_ level: Logger.Level, _ device: String) -> Logger {
    var log = Logger(label: "vhost-swiftd.\(device)") { StreamLogHandler.standardError(label: $0) }
    log.logLevel = level
    return log
  }
}
