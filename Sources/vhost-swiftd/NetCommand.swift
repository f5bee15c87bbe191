// `vhost-swiftd net`: a network card.

import ArgumentParser
import DeviceKit
import Glibc
import HostIO
import NetBackend

struct NetCommand: ServiceCommand {
  static let configuration = CommandConfiguration(
    commandName: "net",
    abstract: "Serves a tap as a virtio-net card.",
    discussion: """
      An existing tap (it is used as it is: its MTU, its address, its bridge are yours):
        ip tuntap add dev tap0 mode tap user $USER && ip link set tap0 up
        vhost-swiftd net --socket-path net.sock --tap tap0
      With CAP_NET_ADMIN, one that is made for the time that this program runs:
        vhost-swiftd net --socket-path net.sock --tap tap0 --create --bridge br0

      QEMU:
        -object memory-backend-memfd,id=mem,size=1G,share=on \\
        -machine memory-backend=mem \\
        -chardev socket,id=c1,path=net.sock,reconnect=1 \\
        -netdev vhost-user,id=n1,chardev=c1,queues=1 \\
        -device virtio-net-pci,netdev=n1

      A card at its limit neither takes nor gives frames until it has its turn: what comes meanwhile waits in the guest or in \
      the tap. --stats counts how often and how long. Limits of a card in a configuration file change at SIGHUP (`serve`).

      With --queue-pairs N: queues=N, and mq=on,vectors=2N+2 on the device. QEMU up to 7.2 without KVM needs vectors=0.
      """)

  @OptionGroup(title: "Service") var service: ServiceOptions

  @Option(help: ArgumentHelp("The tap that frames pass through.", valueName: "name"))
  var tap: String?

  @Flag(
    help: ArgumentHelp(
      "Make the tap where it does not exist; it outlives a crash, is taken up again, and goes at the end. One that somebody else "
        + "made is used as it is, and stays."))
  var create = false

  @Option(
    help: ArgumentHelp(
      "Inherited descriptors of a tap's queues (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR), one a pair: 3,4.",
      valueName: "numbers"), transform: DescriptorList.init(parsing:))
  var tapFd: DescriptorList?

  @Option(
    help: ArgumentHelp(
      "Instead of a tap, to measure with: take everything; always have a frame too; give each pair its own back.",
      valueName: "end"))
  var backend: End?

  @Option(help: ArgumentHelp("Put the tap into this bridge, which exists.", valueName: "name"))
  var bridge: String?

  @Option(
    help: ArgumentHelp(
      "The guest's hardware address: frames from another are dropped.", valueName: "address"),
    transform: Self.address)
  var mac: MACAddress?

  @Option(
    help: ArgumentHelp(
      "The guest's network, 1 to 4094: at the tap its frames carry this 802.1Q tag, and others are not the guest's.",
      valueName: "number"))
  var vlan: Int?

  @Option(help: ArgumentHelp("Pairs of queues; a tap needs as many queues. (default: 1)", valueName: "count"))
  var queuePairs: Int?

  @Option(
    help:
      "How what the guest sends reaches the tap: a call a frame, or operations of the io_uring, many at a time; auto: by the io_uring, unless the tap's send buffer is bounded, where only calls can wait."
  )
  var tapIo = TapIO.auto

  @Option(
    help: ArgumentHelp("Copy every frame into this file, for tcpdump and Wireshark.", valueName: "file"))
  var pcap: String?

  @OptionGroup(title: "Limits") var limitOptions: NetLimitOptions

  var limit: RateLimits { limitOptions.limits }

  enum TapIO: String, ExpressibleByArgument, CaseIterable { case auto, direct, ring }

  enum End: String, ExpressibleByArgument, CaseIterable {
    case sink, source, loop
    var place: NetPlace {
      switch self {
      case .sink: .sink
      case .source: .source
      case .loop: .loop
      }
    }
  }

  private static func address(_ text: String) throws -> MACAddress {
    guard let address = MACAddress(text), !address.isMulticast, address.value != 0 else {
      throw ValidationError("expected a card's address, such as 52:54:00:12:34:56")
    }
    return address
  }

  func validate() throws {
    guard [tap != nil, tapFd != nil, backend != nil].filter({ $0 }).count == 1 else {
      throw ValidationError("give exactly one of --tap, --tap-fd and --backend")
    }
    if service.numQueues != nil { throw ValidationError("--num-queues: a network card has --queue-pairs") }
    if create, tap == nil { throw ValidationError("--create goes with --tap") }
    if bridge != nil, tap == nil { throw ValidationError("--bridge goes with --tap") }
    if tapIo != .auto, backend != nil { throw ValidationError("--tap-io goes with --tap and --tap-fd") }
    if let vlan, NetworkTag(vlan) == nil { throw ValidationError("--vlan \(vlan): expected 1 to 4094") }
    if vlan != nil, backend != nil { throw ValidationError("--vlan goes with --tap and --tap-fd") }
    if pcap?.isEmpty == true { throw ValidationError("--pcap '': expected a path") }
    if let queuePairs, !(1...127).contains(queuePairs) {
      throw ValidationError("--queue-pairs \(queuePairs): expected 1 to 127")
    }
    if let tapFd, let queuePairs, tapFd.numbers.count != queuePairs {
      throw ValidationError(
        "--queue-pairs \(queuePairs), but --tap-fd has \(tapFd.numbers.count) descriptors")
    }
  }

  func makeService() throws -> Service {
    let place: NetPlace
    do { place = try openPlace() } catch { throw Failure.run(Self.sentence(for: error)) }
    var options = NetDevice.Options()
    options.mac = mac
    options.tag = vlan.flatMap { NetworkTag($0) }
    options.pairs = tapFd?.numbers.count ?? queuePairs ?? 1
    if case .tap(let tap) = place { options.usesRing = tapIo == .ring || tapIo == .auto && tap.takesAll }
    do {
      if case .tap(let tap) = place, let bridge {
        do { try tap.join(bridge: bridge) } catch { throw Failure.run(Self.sentence(for: error)) }
      }
      if let pcap { options.capture = try PacketCapture(path: pcap) }
      let device = NetDevice(place: place, options: options)
      return try Service(service, device, watch: Self.watch(device), limits: (device.limiter, limit))
    } catch {
      options.capture?.withdraw()
      if case .tap(let tap) = place { tap.retire() }
      throw error
    }
  }

  private static func watch(_ device: NetDevice) throws -> SizeWatch {
    guard case .tap = device.place else { return SizeWatch(onRequest: { false }) }
    return SizeWatch(events: try LinkEvents().release(), refresh: device.refreshLink)
  }

  private func openPlace() throws(TapError) -> NetPlace {
    if let backend { return backend.place }
    if let tapFd { return .tap(try Tap.adopt(tapFd.numbers)) }
    return .tap(try Tap.open(name: tap ?? "", queues: queuePairs ?? 1, create: create))
  }

  static func sentence(for error: TapError) -> String {
    switch error {
    case .noTunDevice(let code):
      "cannot open /dev/net/tun: \(HostError.text(of: code)) (modprobe tun, or the right to read and write it)"
    case .badName(let name):
      "'\(name)' is no name of an interface: expected 1 to 15 bytes without '/', ':' and spaces"
    case .noSuchInterface(let name):
      "there is no tap '\(name)': make it (ip tuntap add dev \(name) mode tap), or add --create"
    case .notATap(let name): "'\(name)' is an interface of another kind: expected a tap"
    case .notPermitted(let name):
      "no permission for tap '\(name)': expected CAP_NET_ADMIN, or a tap that belongs to this user (ip tuntap add … user)"
    case .inUse(let name): "tap '\(name)' is in use: another process has it, or all of its queues"
    case .oneQueue(let name, let wanted):
      "tap '\(name)' has one queue, --queue-pairs is \(wanted): make it with multi_queue (ip tuntap add … multi_queue)"
    case .badDescriptor(let number, let why): "--tap-fd \(number): \(why)"
    case .noSuchBridge(let name): "there is no bridge '\(name)'"
    case .bridgeRefused(let name, let code):
      "bridge '\(name)' does not take the tap: \(HostError.text(of: code))"
    case .system(let call, let code): "\(call): \(HostError.text(of: code))"
    }
  }
}

/// Numbers of descriptors, separated by commas; each once.
struct DescriptorList {
  let numbers: [Int32]

  init(parsing text: String) throws {
    let parts = text.split(separator: ",", omittingEmptySubsequences: false)
    let numbers = parts.compactMap { Int32($0) }.filter { $0 >= 0 }
    guard numbers.count == parts.count, Set(numbers).count == numbers.count, numbers.count <= 127 else {
      throw ValidationError("expected different descriptor numbers, such as 3,4")
    }
    self.numbers = numbers
  }
}
