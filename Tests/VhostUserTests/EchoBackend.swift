// A back-end with the least of a device, for what a front-end may send it: each chain's first readable byte fills its
// writable part.

import DeviceKit
import Foundation
import HostIO
import Logging
import Testing
import VhostFrontend
import VhostUser
import VirtQueue

final class EchoDevice: VirtioDevice {
  let identity = DeviceIdentity(id: 0x7f, name: "echo", queueLimit: 4)
  let features: FeatureSet = [FeatureSet(bit: 0)]
  let supportsIOMMU = true

  func readConfig(_ out: inout ConfigWriter) { out.append(UInt64(0x1122_3344_5566_7788)) }
  func writeConfig(_ bytes: RawSpan, at offset: Int) throws(DeviceError) {
    guard offset == 4, bytes.byteCount == 1 else {
      throw .configRefused(offset: offset, count: bytes.byteCount)
    }
  }
  func start(_ queue: consuming QueueStart) throws(DeviceError) { queue.run { EchoWorker() } }
}

struct EchoWorker: QueueWorker {
  mutating func service<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    while let chain = q.next() {
      let written = chain.hasHole ? 0 : Self.echo(chain)
      q.complete(chain, written: written)
    }
  }

  private static func echo(_ chain: borrowing Chain) -> UInt32 {
    let byte = chain.readable.load(UInt8.self) ?? 0xff
    return chain.writable.fill { span in
      for i in 0..<span.byteCount { span.storeBytes(of: byte, toByteOffset: i, as: UInt8.self) }
      return true
    }
  }
}

/// The back-end and its socket, and what must be true of it after anything that was done to it.
final class EchoBackend {
  let socket: String
  let host: DeviceHost
  private let thread: QueueThread
  private let server: VhostUserServer
  private let folder: String

  init() throws {
    folder = NSTemporaryDirectory() + "echo-" + UUID().uuidString.prefix(13)
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    socket = folder + "/s"
    thread = try QueueThread(name: "echo", cpus: [], policy: .adaptive, seats: 4, files: 0)
    host = try DeviceHost(device: EchoDevice(), threads: [thread])
    var log = Logger(label: "echo") { StreamLogHandler.standardError(label: $0) }
    log.logLevel = .critical
    server = try VhostUserServer(host: host, endpoint: .listener(try UnixListener(path: socket)), log: log)
    _ = try thread.start()
    try server.start()
  }

  deinit {
    server.requestStop()
    server.finish()
    thread.finish()
    try? FileManager.default.removeItem(atPath: folder)
  }

  /// A connection that has negotiated REPLY_ACK and everything else that is offered.
  func connect(acks: Bool = true) throws -> FrontendConnection {
    let front = try FrontendConnection.connect(to: socket)
    front.timeout = .seconds(20)
    guard acks else { return front }
    let offered = try front.getProtocolFeatures()
    _ = try front.setProtocolFeatures(offered)
    _ = try front.setOwner()
    return front
  }

  /// A connection with memory (of its own making, or the caller's) and one ring that runs. `prepare` has its say before
  /// the ring starts.
  func running(
    packed: Bool = false, in memory: GuestArena? = nil,
    prepare: (FrontendConnection) throws -> Void = { _ in }
  ) throws -> (front: FrontendConnection, arena: GuestArena, queue: QueueDriver) {
    let front = try connect()
    try Self.negotiate(front, packed: packed)
    let arena = try memory ?? GuestArena(bytes: 2 << 20)
    #expect(try front.setMemTable(arena.table, descriptors: arena.descriptors) == .ok)
    try prepare(front)
    return (front, arena, try Self.start(front, arena, packed: packed))
  }

  /// Takes the features of a ring of this kind.
  static func negotiate(_ front: FrontendConnection, packed: Bool) throws {
    let wanted = packed ? VirtioBits.driven | VirtioBits.packed : VirtioBits.driven & ~VirtioBits.packed
    #expect(try front.setFeatures(front.getFeatures() & wanted) == .ok)
  }

  /// Starts a ring in the arena, on a connection that has negotiated and shared it.
  static func start(
    _ front: FrontendConnection, _ arena: GuestArena, size: UInt16 = 64, packed: Bool, index: UInt32 = 0
  ) throws -> QueueDriver {
    let queue = try QueueDriver(
      index: index, DriverRingOptions(size: size, eventIndex: true, indirectCapacity: 8), packed: packed,
      in: arena)
    #expect(try front.setVringNum(index, UInt32(size)) == .ok)
    #expect(try front.setVringBase(index, queue.ring.base) == .ok)
    #expect(try front.setVringAddr(queue.address(in: arena)) == .ok)
    #expect(try front.setVringCall(index, queue.call) == .ok)
    #expect(try front.setVringErr(index, queue.error) == .ok)
    #expect(try front.setVringKick(index, queue.kick) == .ok)
    #expect(try front.setVringEnable(index, true) == .ok)
    return queue
  }

  /// One more ring on a connection that has memory, or one that was stopped anew; it runs.
  func ring(
    _ front: FrontendConnection, _ arena: GuestArena, _ index: UInt32, size: UInt16 = 64, packed: Bool = false
  ) throws -> QueueDriver {
    let queue = try QueueDriver(
      index: index, DriverRingOptions(size: size, eventIndex: true, indirectCapacity: 8), packed: packed,
      in: arena)
    #expect(try front.setVringNum(index, UInt32(size)) == .ok)
    #expect(try front.setVringBase(index, queue.ring.base) == .ok)
    #expect(try front.setVringAddr(queue.address(in: arena)) == .ok)
    #expect(try front.setVringCall(index, queue.call) == .ok)
    #expect(try front.setVringErr(index, queue.error) == .ok)
    #expect(try front.setVringKick(index, queue.kick) == .ok)
    #expect(try front.setVringEnable(index, true) == .ok)
    return queue
  }

  static func echoes(_ arena: GuestArena, _ queue: QueueDriver, _ byte: UInt8 = 0x5a) throws {
    let from = try arena.allocate(1)
    let to = try arena.allocate(4)
    try arena.write([byte], at: from)
    let token = try queue.submit([DescriptorSpec(from, 1), DescriptorSpec(to, 4, write: true)])
    let used = try queue.wait()
    #expect(used.token == token)
    #expect(used.length == 4)
    #expect(try arena.read(at: to, count: 4) == [UInt8](repeating: byte, count: 4))
  }

  /// A fresh valid client is served.
  func servesOthers(sourceLocation: SourceLocation = #_sourceLocation) throws {
    let (front, arena, queue) = try running()
    try Self.echoes(arena, queue)
    front.disconnect()
  }
}
