// A switch in this process with its ports on sockets, and guests that are driven by hand: for one test.

import CLinux
import DeviceKit
import Foundation
import HostIO
import Logging
import NetBackend
import SwitchBackend
import Testing
import VhostFrontend
import VhostUser

/// virtio-net's feature bits as the driver's side names them.
enum NetBits {
  static let checksum: UInt64 = 1 << 0
  static let guestChecksum: UInt64 = 1 << 1
  static let mac: UInt64 = 1 << 5
  static let guestTSO4: UInt64 = 1 << 7
  static let guestTSO6: UInt64 = 1 << 8
  static let guestECN: UInt64 = 1 << 9
  static let hostTSO4: UInt64 = 1 << 11
  static let hostTSO6: UInt64 = 1 << 12
  static let hostECN: UInt64 = 1 << 13
  static let mergeable: UInt64 = 1 << 15
  static let status: UInt64 = 1 << 16
  static let all =
    checksum | guestChecksum | guestTSO4 | guestTSO6 | guestECN | hostTSO4 | hostTSO6 | hostECN | mergeable
    | status | mac
  /// A card that leaves nothing undone and takes nothing undone.
  static let plain = mergeable | status | mac
}

/// The switch, its thread and its servers.
final class TestSwitch {
  let hosts: [DeviceHost]
  private let servers: [VhostUserServer]
  /// The uplink's, where there is one.
  private let uplink: DeviceHost?
  private let thread: QueueThread
  private let folder: String

  /// `uplink`: a tap, and how it is a port.
  init(
    _ ports: [PortConfiguration], ageing: UInt32 = 300, uplink: (tap: Tap, port: PortConfiguration)? = nil
  ) throws {
    folder = NSTemporaryDirectory() + "switch-" + UUID().uuidString.prefix(13)
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    var configuration = SwitchConfiguration(ports: ports)
    configuration.ageing = ageing
    configuration.uplink = uplink?.port
    let thread = try QueueThread(
      name: "switch", cpus: [], policy: .adaptive, seats: configuration.seats, files: configuration.files)
    let hub = Switch(configuration, on: thread)
    self.uplink = try uplink.map {
      try DeviceHost(device: try #require(Uplink(of: hub, tap: $0.tap)), threads: [thread])
    }
    hosts = try ports.indices.map { try DeviceHost(device: SwitchPort($0, of: hub), threads: [thread]) }
    var log = Logger(label: "switch") { StreamLogHandler.standardError(label: $0) }
    log.logLevel = .critical
    let place = folder
    servers = try hosts.enumerated().map { index, host in
      try VhostUserServer(
        host: host, endpoint: .listener(try UnixListener(path: "\(place)/\(index)")), log: log)
    }
    self.thread = thread
    _ = try thread.start()
    for server in servers { try server.start() }
    if let host = self.uplink { #expect(host.startAlone(0) == nil) }
  }

  /// Ports that are all alike.
  convenience init(ports: Int) throws {
    try self.init([PortConfiguration](repeating: PortConfiguration(), count: ports))
  }

  deinit {
    for server in servers { server.requestStop() }
    for server in servers { server.finish() }
    if let uplink { #expect(uplink.stop([0]) == [0]) }
    thread.finish()
    try? FileManager.default.removeItem(atPath: folder)
  }

  func socket(_ port: Int) -> String { "\(folder)/\(port)" }

  /// Connects a guest to a port, with buffers posted.
  func guest(
    _ port: Int, features: UInt64 = NetBits.all, packed: Bool = false, buffers: Int = 64,
    bufferBytes: Int = 2048, queueSize: UInt16 = 128, slots: Bool = true
  ) throws -> NetGuest {
    let guest = try NetGuest(
      path: socket(port), number: port, features: features, packed: packed, queueSize: queueSize, slots: slots
    )
    if buffers > 0 { try guest.post(buffers, bytes: bufferBytes) }
    return guest
  }

  /// A counter of a port, over its two queues; nil: of the uplink.
  func counter(_ name: String, port: Int?) -> UInt64 {
    let host = port.map { hosts[$0] } ?? uplink
    return (host?.counters ?? []).reduce(0) { sum, queue in
      sum + (queue.snapshot.first { $0.name == name }?.value ?? 0)
    }
  }

  /// Waits for a counter to reach a value.
  func wait(_ name: String, port: Int?, _ value: UInt64, sourceLocation: SourceLocation = #_sourceLocation) {
    let deadline = ContinuousClock.now + .seconds(30)
    while counter(name, port: port) < value {
      if ContinuousClock.now > deadline {
        Issue.record(
          "\(name) of \(port.map { "port \($0)" } ?? "the uplink") is \(counter(name, port: port)), expected \(value)",
          sourceLocation: sourceLocation)
        return
      }
      sched_yield()
    }
  }
}

/// A guest's card: posts buffers, sends frames, takes what came.
final class NetGuest {
  let driver: DeviceDriver
  let mac: [UInt8]
  let headerBytes = 12
  private var buffers: [UInt16: (address: UInt64, bytes: Int)] = [:]
  var receive: QueueDriver { driver.queues[0] }
  var transmit: QueueDriver { driver.queues[1] }
  private var room: UInt64
  private static let roomBytes = 70 << 10

  /// `slots`: whether memory is told region by region, or as a table.
  init(path: String, number: Int, features: UInt64, packed: Bool, queueSize: UInt16, slots: Bool) throws {
    mac = [2, 0, 0, 0, 1, UInt8(number)]
    let options = DriverOptions.with {
      $0.features = VirtioBits.driven | features
      $0.protocolFeatures =
        Habit.plain.protocolFeatures & ~(slots ? 0 : ProtocolBits.configureMemSlots) | ProtocolBits.rarp
      $0.packed = packed
      $0.queues = 2
      $0.queueSize = queueSize
      $0.timeout = .seconds(30)
    }
    let arena = try GuestArena(bytes: 24 << 20)
    driver = DeviceDriver(
      try .connect(to: path, waiting: .seconds(20), timeout: .seconds(30)), arena: arena, options)
    try driver.connect()
    room = 0
    try driver.start()
    room = try arena.allocate(Self.roomBytes, alignment: 4096)
  }

  var arena: GuestArena { driver.arena }

  /// Posts receive buffers.
  func post(_ count: Int, bytes: Int) throws {
    for _ in 0..<count {
      let address = try arena.allocateGuarded(bytes, alignment: 64)
      try repost(address, bytes)
    }
    receive.publish()
  }

  private func repost(_ address: UInt64, _ bytes: Int) throws {
    // In two pieces, so that nothing depends on there being one.
    let first = min(bytes, 100)
    var chain = [DescriptorSpec(address, UInt32(first), write: true)]
    if bytes > first {
      chain.append(DescriptorSpec(address + UInt64(first), UInt32(bytes - first), write: true))
    }
    let token = try #require(receive.ring.add(chain))
    buffers[token] = (address, bytes)
  }

  /// Sends a frame under a header, in pieces of at most `piece` bytes, and waits until the chain is back.
  func send(_ frame: [UInt8], header: [UInt8] = [UInt8](repeating: 0, count: 12), piece: Int = .max) throws {
    try submit(frame, header: header, piece: piece)
    let used = try transmit.wait()
    #expect(used.length == 0)
  }

  func submit(_ frame: [UInt8], header: [UInt8] = [UInt8](repeating: 0, count: 12), piece: Int = .max) throws
  {
    let bytes = header + frame
    try arena.write(bytes, at: room)
    var chain: [DescriptorSpec] = []
    var done = 0
    while done < bytes.count {
      let part = min(piece, bytes.count - done)
      chain.append(DescriptorSpec(room + UInt64(done), UInt32(part)))
      done += part
    }
    _ = try transmit.submit(chain)
  }

  /// The next frame that came, put together from its buffers, which are posted again; nil where none is there.
  func take(reposting: Bool = true) throws -> (header: [UInt8], frame: [UInt8])? {
    guard let first = receive.ring.poll() else { return nil }
    return try gather(first, reposting)
  }

  /// The same, waiting for it.
  func next() throws -> (header: [UInt8], frame: [UInt8]) { try gather(try receive.wait(), true) }

  private func gather(_ first: UsedChain, _ reposting: Bool) throws -> (header: [UInt8], frame: [UInt8]) {
    var bytes: [UInt8] = []
    var used = first
    var left = 1
    while true {
      let taken = buffers.removeValue(forKey: used.token)
      let (address, size) = try #require(taken)
      bytes += try arena.read(at: address, count: Int(used.length))
      if bytes.count == Int(used.length) { left = Int(bytes[10]) | Int(bytes[11]) << 8 }
      if reposting { try repost(address, size) }
      left -= 1
      if left <= 0 { break }
      used = try receive.wait()
    }
    receive.publish()
    return (Array(bytes[..<headerBytes]), Array(bytes[headerBytes...]))
  }
}

/// A frame of no known protocol: numbered content behind the addresses.
func frame(to: [UInt8], from: [UInt8], _ length: Int = 60, tag: UInt16? = nil, number: UInt8 = 0) -> [UInt8] {
  var frame = to + from
  if let tag { frame += [0x81, 0, UInt8(tag >> 8), UInt8(truncatingIfNeeded: tag)] }
  frame += [0x88, 0xb5]
  while frame.count < length { frame.append(UInt8(truncatingIfNeeded: frame.count * 7) &+ number) }
  return frame
}

let broadcast = [UInt8](repeating: 0xff, count: 6)
