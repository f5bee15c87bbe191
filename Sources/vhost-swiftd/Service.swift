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
  private let shared: SharedThreads
  private let number: Int
  var threads: [QueueThread] { shared.threads }
  let server: VhostUserServer
  let watch: SizeWatch
  private let limiter: RateLimiter?
  /// What the process's sandbox has to leave to it.
  let sandboxNeeds: SandboxNeeds
  private let log: Logger
  private(set) var hasEnded = false

  /// Opens and makes everything; nothing runs yet. `watch`: how a change of the device from outside is noticed; `limits`: what
  /// enforces the device's limits, and what they are at first; `threads`: those that it shares with others, nil: its own.
  init(
    _ options: ServiceOptions, _ device: any VirtioDevice, watch: consuming SizeWatch,
    limits: (limiter: RateLimiter, first: RateLimits)? = nil, threads: SharedThreads? = nil
  ) throws {
    name = device.identity.name
    self.watch = watch
    limiter = limits?.limiter
    if let limits { limits.limiter.set(limits.first, at: Monotonic.now) }
    log = Self.logger(options.logLevel, name)
    do {
      shared = try threads ?? SharedThreads(Self.makeThreads(options, device))
      number = shared.join()
      sandboxNeeds = Self.needs(options, device, shared)
      host = try DeviceHost(device: device, threads: shared.threads)
      server = try VhostUserServer(
        host: host, endpoint: try Self.endpoint(options), log: log, offersStatus: options.vhostStatus,
        postcopy: options.postcopy ? try Self.postcopy() : nil)
    } catch let error as HostError {
      throw Failure.run("\(error)")
    }
  }

  /// Starts the threads; the server waits for `open`. True where the rings could be restricted, if that was asked for.
  func start(restricted: Bool) throws(HostError) -> Bool {
    let (whole, warnings) = try shared.start(restricted: restricted)
    for warning in warnings { log.warning("\(warning): the thread runs where it may") }
    try server.start(held: true)
    return whole
  }

  /// The sandbox is closed: serves.
  func open() throws(Failure) {
    try shared.open()
    server.open()
    if host.device.pinsMemory {
      log.warning(
        "guest memory is held in place: a balloon, free page reporting or virtio-mem would leave the guest zeros"
      )
    }
    log.info("serving", metadata: ["queues": "\(host.queueLimit)", "threads": "\(threads.count)"])
  }

  /// Tells the operator what the start left to tell.
  func notice(_ text: String) { log.notice("\(text)") }

  /// The server has ended: everything else ends.
  func finish() {
    server.finish()
    shared.leave()
    hasEnded = true
  }

  /// Nothing came of the start: what was made for it goes.
  func withdraw() {
    server.abandon()
    retire()
  }

  /// The program ends: what was made for the device outside this process goes.
  func retire() {
    host.device.retire()
    shared.retire()
  }

  /// Looks at the device from outside again, and tells the front-end what is new.
  func refresh() { if watch.refresh() { server.configChanged() } }

  /// Other limits from now on.
  func limit(_ limits: RateLimits) { limiter?.set(limits, at: Monotonic.now) }

  /// Its counters, a line each device.
  var json: [String] {
    [Statistics.json(device: name, host: host, threads: threads)] + shared.json(after: number)
  }

  private static func needs(
    _ options: ServiceOptions, _ device: any VirtioDevice, _ shared: SharedThreads
  ) -> SandboxNeeds {
    var needs = device.sandboxNeeds
    needs.formUnion(shared.sandboxNeeds)
    if let path = options.socketPath { needs.removesIn.insert(SandboxNeeds.folder(of: path)) }
    needs.connects = options.connect != nil
    if options.postcopy { needs.controls.formUnion(UserFaultSource.controls) }
    return needs
  }

  private static func postcopy() throws -> Postcopy {
    do {
      return try Postcopy(source: UserFaultSource())
    } catch {
      throw Failure.run(
        "--postcopy: \(error): it needs /dev/userfaultfd, CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1")
    }
  }

  private static func makeThreads(
    _ options: ServiceOptions, _ device: any VirtioDevice
  ) throws -> [QueueThread] {
    let cpus = try options.cpus.map(Topology.processors)
    let identity = device.identity
    let count = min(options.threads, identity.queueLimit)
    let seats = DeviceHost.seats(for: device, threads: count)
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
    if let path = options.connect {
      let limit = MemoryLayout.size(ofValue: sockaddr_un().sun_path) - 1
      // Tried again and again, it would never be a shorter one.
      guard path.utf8.count <= limit else { throw HostError.pathTooLong(path: path, limit: limit) }
      return .connecting(path: path)
    }
    return .listener(
      try UnixListener(
        path: options.socketPath ?? "", mode: options.socketMode.bits, group: options.groupID()))
  }

  private static func logger(_ level: Logger.Level, _ device: String) -> Logger {
    var log = Logger(label: "vhost-swiftd.\(device)") { StreamLogHandler.standardError(label: $0) }
    log.logLevel = level
    return log
  }
}
