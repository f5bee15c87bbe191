// One device in this process: its threads, its server, signals and statistics. The order of set-up is the one that a
// sandbox needs: everything is opened first, threads and rings are made next and enabled last.

import CLinux
import DeviceKit
import Glibc
import HostIO
import Logging
import VhostUser

/// Serves one device until a signal, or until the connection it inherited ends.
struct Service {
  let options: ServiceOptions
  let device: any VirtioDevice

  /// `watch`: how a change of the device from outside is noticed.
  func run(watch: borrowing SizeWatch) throws {
    let log = Self.logger(options.logLevel, device.identity.name)
    // A write past RLIMIT_FSIZE, or to a closed pipe, is an error of that write, not the end of every disk.
    signal(SIGXFSZ, SIG_IGN)
    signal(SIGPIPE, SIG_IGN)
    do {
      let signals = try SignalFD([SIGTERM, SIGINT, SIGUSR1, SIGHUP])
      let statistics = try Statistics(to: options.stats)
      let threads = try makeThreads()
      let host = try DeviceHost(device: device, threads: threads)
      let server = try VhostUserServer(host: host, endpoint: try endpoint(), log: log)
      for thread in threads {
        if let warning = try thread.start() { log.warning("\(warning): the thread runs where it may") }
      }
      try server.start()
      log.info("serving", metadata: ["queues": "\(host.queueLimit)", "threads": "\(threads.count)"])
      let drained = wait(for: signals, watch, server) {
        statistics.write(Statistics.json(device: device.identity.name, host: host, threads: threads))
      }
      if drained { for thread in threads { thread.finish() } }
      statistics.write(
        Statistics.json(device: device.identity.name, host: host, threads: threads), atEnd: true)
    } catch let error as HostError {
      throw Failure.run("\(error)")
    }
  }

  /// Until SIGTERM, or the server's own end; true where nothing is under way any more.
  private func wait(
    for signals: borrowing SignalFD, _ watch: borrowing SizeWatch, _ server: VhostUserServer, dump: () -> Void
  ) -> Bool {
    var deadline: ContinuousClock.Instant?
    while true {
      let left = (deadline.map { max(.zero, $0 - .now) }) ?? watch.interval
      let milliseconds = left.map { Int32(clamping: Int64($0 / .milliseconds(1)) + 1) } ?? -1
      let ready = Poll.any(
        [(signals.raw, .readable), (server.endDescriptor, .readable), (watch.raw, .readable)],
        milliseconds: milliseconds)
      if !ready[1].isEmpty {
        server.finish()
        return true
      }
      if let deadline, ContinuousClock.now >= deadline {
        server.abandon()
        return false
      }
      if !ready[2].isEmpty { watch.drain() }
      if watch.interval != nil || !ready[2].isEmpty, watch.refresh() { server.configChanged() }
      switch signals.next() {
      case SIGUSR1: dump()
      case SIGHUP:
        if watch.refresh() { server.configChanged() }
      case SIGTERM, SIGINT:
        // The second one ends at once.
        if deadline != nil {
          server.abandon()
          return false
        }
        deadline = .now + .seconds(options.drainTimeout)
        server.requestStop()
      default: break
      }
    }
  }

  private func makeThreads() throws -> [QueueThread] {
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

  private func endpoint() throws -> Endpoint {
    if let fd = options.fd {
      switch InheritedSocket(fd) {
      case .listening: return .listener(UnixListener(adopting: OwnedFD(adopting: fd)))
      case .connected: return .connected(OwnedFD(adopting: fd))
      case .neither: throw Failure.run("--fd \(fd) is not a Unix socket: pass a listening or a connected one")
      }
    }
    if let path = options.connect { return .connecting(path: path) }
    let group = try options.socketGroup.map(Self.groupID)
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
