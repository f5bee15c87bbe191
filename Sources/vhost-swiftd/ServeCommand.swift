// `vhost-swiftd serve`: several devices in one process, from a file.

import ArgumentParser
import DeviceKit
import HostIO
import ServiceConfig

struct ServeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "serve",
    abstract: "Serves several devices in one process, as a JSON file says.",
    discussion: """
      The file holds {"devices": [{"device": "blk", "socket-path": "a.sock", "blk-file": "a.img", "threads": 2}, …]}: \
      for each device, its subcommand and that subcommand's long options, with a text, a number, true for an option \
      that takes no value, or a list for one that may be given several times (the port of a switch). Devices fail, reconnect and end by themselves. share/config.schema.json describes the file.

      SIGHUP reads the file again and takes up the limits in it (iops, bandwidth and their like), without an interruption. \
      Nothing else of a running device changes: a file with other changes in it is refused whole, with one line.
      """)

  @Option(help: ArgumentHelp("The file.", valueName: "path"))
  var config: String

  @Option(
    help: ArgumentHelp(
      "At SIGTERM, how long to wait for requests under way, in seconds. (default: 10)", valueName: "seconds"))
  var drainTimeout: Double?

  @Option(
    help: ArgumentHelp(
      "Write counters as JSON to this file (-: standard output) at SIGUSR1 and at the end.", valueName: "file"
    ))
  var stats: String?

  @OptionGroup(title: "Sandbox") var sandbox: SandboxOptions

  func validate() throws { try ServiceOptions.check(drainTimeout: drainTimeout) }

  func run() throws {
    let devices = try Self.devices(in: config)
    let loop = try ServiceLoop(
      stats: stats, drainTimeout: drainTimeout, sandbox: sandbox, rereading: config
    ) { services in
      do {
        try takeUpLimits(of: services, running: devices.map(\.arguments))
      } catch let failure as Failure {
        Output.failure("SIGHUP: \(failure.message): the limits stay as they are")
      } catch {
        Output.failure("SIGHUP: \(error): the limits stay as they are")
      }
    }
    var services: [Service] = []
    do {
      for device in devices { services += try Self.services(device.place, device.arguments) }
    } catch {
      for service in services { service.withdraw() }
      throw error
    }
    try loop.run(services)
  }

  /// Reads the file again; all of its limits are taken up, or none.
  private func takeUpLimits(of services: [Service], running: [[String]]) throws {
    let now = try Self.devices(in: config)
    guard now.map({ Limits.fixed($0.arguments) }) == running.map(Limits.fixed) else {
      throw Failure.usage("'\(config)' has changes that a running process cannot take up")
    }
    // A switch has no limits of this kind, and as many services as ports.
    let limits = try now.flatMap { try Self.command($0.place, $0.arguments) { $0.limits } }
    for (service, limits) in zip(services, limits) { service.limit(limits) }
  }

  private static func devices(in path: String) throws -> [ConfiguredDevice] {
    do {
      return try ConfigFile.devices(in: path)
    } catch .unreadable(let sentence) {
      throw Failure.run(sentence)
    } catch .wrong(let sentence) {
      throw Failure.usage(sentence)
    }
  }

  /// A device, or a group of them, as its subcommand makes it.
  private static func services(_ place: String, _ arguments: [String]) throws -> [Service] {
    try command(place, arguments) { try $0.makeServices() }
  }

  /// A device's subcommand, and what is to be had of it; what is wrong is told with its place in the file.
  private static func command<Value>(
    _ place: String, _ arguments: [String], _ use: (any ServiceGroup) throws -> Value
  ) throws -> Value {
    do {
      guard let command = try Program.parseAsRoot(arguments) as? any ServiceGroup else {
        throw Failure.usage("'\(arguments.first ?? "")' is no device: expected blk, net, rng or switch")
      }
      guard !command.setsProcess else {
        throw Failure.usage(
          "stats, drain-timeout, sandbox and user are the process's: give them on the command line")
      }
      return try use(command)
    } catch let failure as Failure {
      throw Failure(message: "\(place): \(failure.message)", status: failure.status)
    } catch {
      throw Failure.usage("\(place): \(Program.message(for: error))")
    }
  }
}

/// A subcommand that serves devices.
protocol ServiceGroup: ParsableCommand {
  /// Whether its options say something about the whole process: statistics, the end.
  var setsProcess: Bool { get }
  /// What each of its devices may move, in the order of its services.
  var limits: [RateLimits] { get }
  /// Opens and makes everything that the devices need.
  func makeServices() throws -> [Service]
}

/// A subcommand that serves one device.
protocol ServiceCommand: ServiceGroup {
  var service: ServiceOptions { get }
  /// What the device may move.
  var limit: RateLimits { get }
  /// Opens and makes everything that the device needs.
  func makeService() throws -> Service
}

extension ServiceCommand {
  var setsProcess: Bool {
    service.stats != nil || service.drainTimeout != nil || !service.sandbox.isUnset
  }
  var limit: RateLimits { RateLimits() }
  var limits: [RateLimits] { [limit] }
  func makeServices() throws -> [Service] { [try makeService()] }

  func run() throws {
    let loop = try ServiceLoop(
      stats: service.stats, drainTimeout: service.drainTimeout, sandbox: service.sandbox)
    try loop.run(makeServices())
  }
}
