// The options every device has: where its front-end connects, how its threads run, what it reports.

import ArgumentParser
import DeviceKit
import HostIO
import Logging

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

  @Option(help: ArgumentHelp("Permissions of the socket, octal.", valueName: "mode"))
  var socketMode = OctalMode(bits: 0o600)

  @Option(help: ArgumentHelp("Group of the socket, by name or number.", valueName: "group"))
  var socketGroup: String?

  @Option(help: ArgumentHelp("Queues a front-end may use.", valueName: "count"))
  var numQueues: Int?

  @Option(help: ArgumentHelp("Queue threads; queues are spread over them.", valueName: "count"))
  var threads = 1

  @Option(help: ArgumentHelp("Processors for the threads, in turn: 0,2-5.", valueName: "list"))
  var cpus: String?

  @Option(help: "How threads wait: sleep at once, spin a little first, or never sleep.")
  var poll = PollMode.adaptive

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

  @Option(help: "Least severe messages to log: trace, debug, info, notice, warning, error, critical.")
  var logLevel = Logger.Level.notice

  func validate() throws {
    let places = [socketPath != nil, fd != nil, connect != nil].filter { $0 }.count
    guard places == 1 else {
      throw ValidationError("give exactly one of --socket-path, --fd and --connect")
    }
    guard (1...64).contains(threads) else { throw ValidationError("--threads \(threads): expected 1 to 64") }
    if let numQueues, !(1...256).contains(numQueues) {
      throw ValidationError("--num-queues \(numQueues): expected 1 to 256")
    }
    try Self.check(drainTimeout: drainTimeout)
    if let fd, fd < 0 { throw ValidationError("--fd \(fd): expected a descriptor number") }
  }

  static func check(drainTimeout: Double?) throws {
    guard let drainTimeout else { return }
    guard drainTimeout >= 0, drainTimeout <= 86_400 else {
      throw ValidationError("--drain-timeout \(drainTimeout): expected 0 to 86400 seconds")
    }
  }
}

/// File permissions in octal, as chmod takes them.
struct OctalMode: ExpressibleByArgument {
  let bits: UInt32
  init(bits: UInt32) { self.bits = bits }

  init?(argument: String) {
    guard let bits = UInt32(argument, radix: 8), bits <= 0o777 else { return nil }
    self.bits = bits
  }

  var defaultValueDescription: String { "0" + String(bits, radix: 8) }
}

/// A number of bytes: 4096, 64K, 10M, 2G, 1T; powers of 1024.
struct ByteSize: ExpressibleByArgument {
  let bytes: UInt64

  init?(argument: String) {
    let units: [Character: UInt64] = ["K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40]
    let unit = argument.last.flatMap { units[Character($0.uppercased())] }
    let digits = unit == nil ? Substring(argument) : argument.dropLast()
    guard digits.allSatisfy({ $0.isASCII && $0.isNumber }), let number = UInt64(digits) else { return nil }
    let (bytes, overflow) = number.multipliedReportingOverflow(by: unit ?? 1)
    // Files and offsets are signed 64-bit numbers.
    guard !overflow, bytes <= UInt64(Int64.max) else { return nil }
    self.bytes = bytes
  }
}
