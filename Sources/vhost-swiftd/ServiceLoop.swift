// The program's main thread: signals, statistics, and the ends of the devices it serves. Each device fails, reconnects and
// ends by itself.

import CLinux
import Glibc
import HostIO

final class ServiceLoop {
  private let signals: SignalFD
  private let stats: String?
  private let drainTimeout: Duration
  private let sandbox: SandboxOptions
  /// A file that `reload` reads.
  private let reread: String?
  /// What SIGHUP asks for beside a look at each device.
  private let reload: ([Service]) -> Void

  /// Before any thread is made, so that all of them leave signals to this one.
  init(
    stats: String?, drainTimeout: Double?, sandbox: SandboxOptions, rereading reread: String? = nil,
    reload: @escaping ([Service]) -> Void = { _ in }
  ) throws {
    // A write past RLIMIT_FSIZE, or to a closed pipe, is an error of that write, not the end of every disk.
    signal(SIGXFSZ, SIG_IGN)
    signal(SIGPIPE, SIG_IGN)
    signals = try SignalFD([SIGTERM, SIGINT, SIGUSR1, SIGHUP])
    self.stats = stats
    self.sandbox = sandbox
    self.reread = reread
    self.reload = reload
    self.drainTimeout = .seconds(drainTimeout ?? ServiceOptions.usualDrainTimeout)
  }

  /// Serves until a signal ends it, or every device has ended by itself.
  func run(_ services: [Service]) throws {
    let statistics = try start(services)
    let isDrained = wait(for: services, statistics)
    statistics.write(services.flatMap(\.json), atEnd: true)
    for service in services { service.retire() }
    // Nothing is torn down under threads that still run.
    if !isDrained { Glibc._exit(0) }
  }

  /// Starts all of them; where one cannot, none is left, and no file either.
  private func start(_ services: [Service]) throws -> Statistics {
    do {
      let statistics = try Statistics(to: stats, sparing: services.flatMap(\.host.device.descriptors))
      do {
        try sandbox.close(around: services, removing: statistics.made, rereading: reread)
        for service in services { try service.open() }
      } catch {
        statistics.withdraw()
        throw error
      }
      return statistics
    } catch {
      for service in services { service.withdraw() }
      throw error
    }
  }

  /// True where nothing is under way any more.
  private func wait(for services: [Service], _ statistics: borrowing Statistics) -> Bool {
    var deadline: ContinuousClock.Instant?
    var stopping = false
    while services.contains(where: { !$0.hasEnded }) {
      let milliseconds = pause(services, deadline)
      var wanted: [(descriptor: Int32, events: Readiness)] = [(signals.raw, .readable)]
      for service in services {
        wanted.append((service.hasEnded ? -1 : service.server.endDescriptor, .readable))
        wanted.append((service.watch.raw, .readable))
      }
      let ready = Poll.any(wanted, milliseconds: milliseconds)
      for (i, service) in services.enumerated() where !service.hasEnded {
        if !ready[1 + 2 * i].isEmpty { service.finish() }
        if !ready[2 + 2 * i].isEmpty { service.watch.drain() }
        if service.watch.interval != nil || !ready[2 + 2 * i].isEmpty { service.refresh() }
      }
      if let limit = deadline, ContinuousClock.now >= limit { return abandon(services) }
      switch signals.next() {
      case SIGUSR1: statistics.write(services.flatMap(\.json))
      case SIGHUP:
        for service in services { service.refresh() }
        reload(services)
      case SIGTERM, SIGINT:
        // The second one ends at once.
        if stopping { return abandon(services) }
        stopping = true
        deadline = .now + drainTimeout
        for service in services { service.server.requestStop() }
      default: break
      }
    }
    return true
  }

  /// How long to wait at most: to the deadline, or to the next look at a device.
  private func pause(_ services: [Service], _ deadline: ContinuousClock.Instant?) -> Int32 {
    let times = services.compactMap { $0.watch.interval } + (deadline.map { [max(.zero, $0 - .now)] } ?? [])
    return times.min().map { Int32(clamping: Int64($0 / .milliseconds(1)) + 1) } ?? -1
  }

  private func abandon(_ services: [Service]) -> Bool {
    for service in services where !service.hasEnded { service.server.abandon() }
    return false
  }
}
