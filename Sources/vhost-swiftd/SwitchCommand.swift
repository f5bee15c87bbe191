// `vhost-swiftd switch`: a network between guests, in this process.

import ArgumentParser
import DeviceKit
import Glibc
import HostIO
import Logging
import NetBackend
import SwitchBackend

struct SwitchCommand: ServiceGroup {
  static let configuration = CommandConfiguration(
    commandName: "switch",
    abstract: "Joins guests in a network: each port is a virtio-net card on a socket of its own.",
    discussion: """
      Frames go from one guest's memory straight into another's: one copy, no kernel between. Addresses are learned from \
      frames, and forgotten when they are not heard for --ageing seconds or their guest leaves. Checksums and segmentation that a \
      guest leaves undone go to guests that take them so, and are done for the others. Where a guest has no buffer for a \
      frame, the frame is lost and counted, and nobody waits. All ports are served by one thread.

      A PORT
        PATH[,vlan=N][,trunk=N+N...][,isolated][,mac=ADDRESS][,flood=RATE]
          vlan=N       frames of this port are of network N, without a tag
          trunk=1+2    frames carry the tag of one of these networks (trunk=all);
                       with vlan=N, those without a tag are of network N
          isolated     no frames to and from other isolated ports
          mac=ADDRESS  the card's address; frames from another are dropped
          flood=RATE   frames a second that may go to several ports
        Ports without vlan and trunk are a network of their own; tags in it are
        left as they are. At the others a frame has one tag at most.

      THE UPLINK
        NAME[,vlan=N][,trunk=N+N...][,isolated][,flood=RATE]
        A tap, as one more port: the way to the host and its bridges. What the
        kernel may leave undone in frames the switch does for guests that do not.
        While the tap is down or gone its frames are lost; it is taken up again.

      EXAMPLE
        vhost-swiftd switch --port a.sock --port b.sock,isolated
        vhost-swiftd switch --port a.sock,vlan=5 --uplink-tap up0,trunk=all \
          --create --bridge br0

      QEMU, for each guest:
        -object memory-backend-memfd,id=mem,size=1G,share=on \\
        -machine memory-backend=mem \\
        -chardev socket,id=c1,path=a.sock,reconnect=1 \\
        -netdev vhost-user,id=n1,chardev=c1 -device virtio-net-pci,netdev=n1
      """)

  @Option(
    name: .customLong("port"),
    help: ArgumentHelp("A port, once for each; at least two, with an uplink one.", valueName: "port"),
    transform: PortArgument.init(parsing:))
  var ports: [PortArgument] = []

  @Option(
    help: ArgumentHelp("A tap that leads out of the switch.", valueName: "uplink"),
    transform: UplinkArgument.init(parsing:))
  var uplinkTap: UplinkArgument?

  @Flag(
    help: ArgumentHelp(
      "Make the tap where it does not exist; it outlives a crash, is taken up again, and goes at the end."))
  var create = false

  @Option(help: ArgumentHelp("Put the tap into this bridge, which exists.", valueName: "name"))
  var bridge: String?

  @Option(
    help: ArgumentHelp("After so long without a frame from it an address is forgotten.", valueName: "seconds")
  )
  var ageing: UInt32 = 300

  @Option(help: ArgumentHelp("Permissions of the sockets, octal. (default: 0600)", valueName: "mode"))
  var socketMode: String?

  @Option(help: ArgumentHelp("Group of the sockets, by name or number.", valueName: "group"))
  var socketGroup: String?

  @Option(help: ArgumentHelp("The processor for the thread.", valueName: "list"))
  var cpus: String?

  @Option(
    help: ArgumentHelp(
      "How the thread waits: sleep at once, spin a little first, or never sleep.", valueName: "mode"))
  var poll = PollMode.adaptive

  @Option(
    help: ArgumentHelp(
      "At SIGTERM, how long to wait for frames under way, in seconds. (default: 10)", valueName: "seconds"))
  var drainTimeout: Double?

  @Option(
    help: ArgumentHelp(
      "Write each port's counters as JSON to this file (-: standard output) at SIGUSR1 and at the end.",
      valueName: "file"))
  var stats: String?

  @OptionGroup(title: "Sandbox") var sandbox: SandboxOptions

  @Option(help: ArgumentHelp("Least severe messages to log.", valueName: "level"))
  var logLevel = Logger.Level.notice

  func validate() throws {
    let least = uplinkTap == nil ? 2 : 1
    guard (least...Switch.portLimit).contains(ports.count) else {
      throw ValidationError(
        "\(ports.count) ports: expected \(least) to \(Switch.portLimit), each with --port")
    }
    if create, uplinkTap == nil { throw ValidationError("--create goes with --uplink-tap") }
    if bridge != nil, uplinkTap == nil { throw ValidationError("--bridge goes with --uplink-tap") }
    guard Set(ports.map(\.path)).count == ports.count else {
      throw ValidationError("two ports with the same path")
    }
    let addresses = ports.compactMap(\.configuration.mac)
    guard Set(addresses).count == addresses.count else {
      throw ValidationError("two ports with the same mac")
    }
    guard (1...1_000_000).contains(ageing) else {
      throw ValidationError("--ageing \(ageing): expected 1 to 1000000 seconds")
    }
    if stats?.isEmpty == true { throw ValidationError("--stats '': expected a path") }
    try ServiceOptions.check(drainTimeout: drainTimeout)
    for port in ports { _ = try options(for: port) }
  }

  /// A port's device has the options that every device has.
  private func options(for port: PortArgument) throws -> ServiceOptions {
    var arguments = [
      "--socket-path=\(port.path)", "--poll=\(poll.rawValue)", "--log-level=\(logLevel.rawValue)",
    ]
    if let socketMode { arguments.append("--socket-mode=\(socketMode)") }
    if let socketGroup { arguments.append("--socket-group=\(socketGroup)") }
    if let cpus { arguments.append("--cpus=\(cpus)") }
    do {
      return try ServiceOptions.parse(arguments)
    } catch {
      throw ValidationError(ServiceOptions.message(for: error))
    }
  }

  var setsProcess: Bool { stats != nil || drainTimeout != nil || !sandbox.isUnset }
  var limits: [RateLimits] { ports.map { _ in RateLimits() } }

  func makeServices() throws -> [Service] {
    let tap = try openTap()
    var services: [Service] = []
    do {
      var configuration = SwitchConfiguration(ports: ports.map(\.configuration))
      configuration.ageing = ageing
      configuration.uplink = uplinkTap?.configuration
      let (hub, threads) = try makeThreads(configuration, tap)
      let devices = ports.indices.map { SwitchPort($0, of: hub) }
      for (port, device) in zip(ports, devices) {
        services.append(
          try Service(
            try options(for: port), device, watch: SizeWatch(onRequest: { false }), threads: threads))
      }
    } catch {
      for service in services { service.withdraw() }
      tap?.retire()
      throw error
    }
    return services
  }

  /// The uplink's tap, open and in its bridge.
  private func openTap() throws(Failure) -> Tap? {
    guard let uplinkTap else { return nil }
    do throws(TapError) {
      let tap = try Tap.open(name: uplinkTap.tap, queues: 1, create: create)
      do throws(TapError) {
        if let bridge { try tap.join(bridge: bridge) }
      } catch {
        tap.retire()
        throw error
      }
      return tap
    } catch {
      throw Failure.run(NetCommand.sentence(for: error))
    }
  }

  /// The switch on its one thread, which has a seat for each port's queues and the uplink.
  private func makeThreads(
    _ configuration: SwitchConfiguration, _ tap: Tap?
  ) throws(Failure) -> (hub: Switch, threads: SharedThreads) {
    do {
      let thread = try QueueThread(
        name: "switch", cpus: try cpus.map(Topology.processors).map { [$0[0]] } ?? [], policy: poll.policy,
        seats: configuration.seats, files: configuration.files)
      let hub = Switch(configuration, on: thread)
      let uplink = tap.flatMap { Uplink(of: hub, tap: $0) }
      return (
        hub,
        SharedThreads([thread], resident: try uplink.map { try DeviceHost(device: $0, threads: [thread]) })
      )
    } catch {
      throw Failure.run("\(error)")
    }
  }

  func run() throws {
    let loop = try ServiceLoop(stats: stats, drainTimeout: drainTimeout, sandbox: sandbox)
    try loop.run(makeServices())
  }
}
