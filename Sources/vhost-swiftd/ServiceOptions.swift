// The options every device has: where its front-end connects, how its threads run, what it reports.

import ArgumentParser
import DeviceKit
import Glibc
import HostIO
import ServiceConfig
import Logging
import Synchronization

/// How queue threads wait.
enum PollMode: String, ExpressibleByArgument, CaseIterable {
  case interrupt, adaptive, busy

  var policy: PollPolicy {
    switch self {
    case .interrupt: .interrupt
    case .adaptive: .adaptive
    case .busy: .busy
    }
  }
}

extension Logger.Level: @retroactive ExpressibleByArgument {}

struct ServiceOptions: ParsableArguments {
  @Option(help: ArgumentHelp("Listen on this Unix socket; a stale one is replaced.", valueName: "path"))
  var socketPath: String?

  @Option(help: ArgumentHelp("Serve an inherited socket, listening or connected.", valueName: "number"))
  var fd: Int32?

  @Option(
    help: ArgumentHelp(
      "Connect to a front-end that listens (QEMU: server=on), again and again.", valueName: "path"))
  var connect: String?

  @Flag(help: "Print what this back-end can do, as JSON, and exit.")
  var printCapabilities = false

  @Option(
    help: ArgumentHelp("Permissions of the socket, octal. (default: 0600)", valueName: "mode"),
    transform: OctalMode.init(parsing:))
  var socketMode = OctalMode(bits: 0o600)

  @Option(help: ArgumentHelp("Group of the socket, by name or number.", valueName: "group"))
  var socketGroup: String?

  @Option(help: ArgumentHelp("Queues a front-end may use.", valueName: "count"))
  var numQueues: Int?

  @Option(help: ArgumentHelp("Queue threads; queues are spread over them.", valueName: "count"))
  var threads = 1

  @Option(help: ArgumentHelp("Processors for the threads, in turn: 0,2-5.", valueName: "list"))
  var cpus: String?

  @Option(
    help: ArgumentHelp(
      "How threads wait: sleep at once, spin a little first, or never sleep.", valueName: "mode"))
  var poll = PollMode.adaptive

  @Flag(help: "Offer the device status (VHOST_USER_PROTOCOL_F_STATUS); QEMU 7.2 does without.")
  var vhostStatus = false

  @Flag(
    help:
      "Let a guest move in before its memory has come (postcopy). Its front-end is trusted with this process then: see SECURITY.md."
  )
  var postcopy = false

  @Option(
    help: ArgumentHelp(
      "At SIGTERM, how long to wait for requests under way, in seconds. (default: 10)", valueName: "seconds"))
  var drainTimeout: Double?
  static let usualDrainTimeout: Double = 10

  @Option(
    help: ArgumentHelp(
      "Write counters as JSON to this file (-: standard output) at SIGUSR1 and at the end.", valueName: "file"
    ))
  var stats: String?

  @Option(help: ArgumentHelp("Least severe messages to log.", valueName: "level"))
  var logLevel = Logger.Level.notice

  @OptionGroup(title: "Sandbox") var sandbox: SandboxOptions

  func validate() throws {
    let places = [socketPath != nil, fd != nil, connect != nil].filter { $0 }.count
    guard places == 1 else {
      throw ValidationError("give exactly one of --socket-path, --fd and --connect")
    }
    let texts = [
      ("--socket-path", socketPath), ("--connect", connect), ("--socket-group", socketGroup),
      ("--stats", stats),
    ]
    for (name, text) in texts where text?.isEmpty == true {
      throw ValidationError("\(name) '': expected a \(name == "--socket-group" ? "group" : "path")")
    }
    guard (1...64).contains(threads) else { throw ValidationError("--threads \(threads): expected 1 to 64") }
    if let numQueues, !(1...256).contains(numQueues) {
      throw ValidationError("--num-queues \(numQueues): expected 1 to 256")
    }
    try Self.check(drainTimeout: drainTimeout)
    if let fd, fd < 0 { throw ValidationError("--fd \(fd): expected a descriptor number") }
    do { _ = try cpus.map(Topology.processors) } catch { throw ValidationError("--cpus: \(error)") }
    _ = try groupID()
  }

  /// The socket's group; nil where none was asked for.
  func groupID() throws(ValidationError) -> UInt32? {
    guard let socketGroup else { return nil }
    if let number = UInt32(socketGroup) ?? Self.groups.withLock({ $0[socketGroup] }) { return number }
    // SAFETY: the entry is read before any other call could replace it; there is one thread yet.
    guard let entry = unsafe getgrnam(socketGroup) else {
      throw ValidationError(
        "--socket-group '\(socketGroup)': there is no such group: expected a name or a number")
    }
    let number = unsafe entry.pointee.gr_gid
    Self.groups.withLock { $0[socketGroup] = number }
    return number
  }

  /// Groups that were looked up: a file of devices that is read again in the sandbox names the same ones.
  private static let groups = Mutex<[String: UInt32]>([:])

  static func check(drainTimeout: Double?) throws {
    guard let drainTimeout else { return }
    guard drainTimeout >= 0, drainTimeout <= 86_400 else {
      throw ValidationError("--drain-timeout \(drainTimeout): expected 0 to 86400 seconds")
    }
  }
}

/// File permissions in octal, as chmod takes them.
struct OctalMode {
  let bits: UInt32
  init(bits: UInt32) { self.bits = bits }

  init(parsing text: String) throws {
    guard let bits = UInt32(text, radix: 8), bits <= 0o777 else {
      throw ValidationError("expected an octal number up to 777")
    }
    self.bits = bits
  }
}

extension ByteSize {
  init(parsing text: String) throws {
    guard let size = ByteSize(text) else {
      throw ValidationError("expected a number of bytes below 8192 PiB, such as 4096, 64K, 10G")
    }
    self = size
  }
}
