// A back-end of a few lines on a thread of its own: it answers every message, remembers what came, and serves
// disk requests from an array with the device models. It shares the test's arena instead of mapping the
// descriptors.

import Foundation
import Synchronization
import VhostFrontend

final class ToyBackend: @unchecked Sendable {
  struct Settings {
    var features: UInt64 =
      VirtioBits.driven | VirtioBits.packed | DiskBits.flush | DiskBits.segMax | DiskBits.multiQueue
    var protocolFeatures: UInt64 = ProtocolBits.inflightShmFD | 0x1_ffff
    /// Takes requests and never answers them.
    var holdsRequests = false
    /// Messages it refuses.
    var refuses: Set<UInt32> = []
  }

  private final class Ring {
    var size: UInt16 = 0
    var base: UInt32 = 0
    var areas: RingAreas?
    var kick: FrontendDescriptor?
    var call: FrontendDescriptor?
    var device: (any DeviceModel)?
    var taken = 0
  }

  let settings: Settings
  let arena: GuestArena
  private let connection: FrontendConnection
  private let heard = Mutex<[String]>([])
  private let disk = Mutex([UInt8](repeating: 0, count: 1 << 20))
  private let finished = DispatchSemaphore(value: 0)
  // The thread's own.
  private var rings = (0..<4).map { _ in Ring() }
  private var features: UInt64 = 0
  private var acknowledges = false
  private var status: UInt64 = 0
  private var inflight: FrontendDescriptor?

  init(_ socket: FrontendDescriptor, arena: GuestArena, _ settings: Settings = Settings()) {
    self.settings = settings
    self.arena = arena
    connection = FrontendConnection(adopting: socket, timeout: .seconds(20))
    let thread = Thread { [self] in
      run()
      finished.signal()
    }
    thread.start()
  }

  /// Everything that came so far, as "SET_VRING_NUM 0", with `!` where an answer was asked for.
  var dialogue: [String] { heard.withLock { $0 } }
  var stored: [UInt8] { disk.withLock { $0 } }

  /// Ends the connection from this side, as a back-end that dies.
  func die() {
    connection.disconnect()
    _ = finished.wait(timeout: .now() + 20)
  }

  private func run() {
    while true {
      var entries = [pollfd(fd: connection.socket.raw, events: Int16(POLLIN), revents: 0)]
      entries += rings.map {
        pollfd(fd: $0.device == nil ? -1 : $0.kick?.raw ?? -1, events: Int16(POLLIN), revents: 0)
      }
      guard poll(&entries, nfds_t(entries.count), 20_000) > 0 else { return }
      if entries[0].revents != 0 {
        guard let message = try? connection.receiveAny() else { return }
        guard (try? handle(message)) != nil else { return }
      }
      for (ring, entry) in zip(rings, entries[1...]) where entry.revents != 0 {
        var value: UInt64 = 0
        if let kick = ring.kick { _ = read(kick.raw, &value, 8) }
        serve(ring)
      }
    }
  }

  // MARK: Messages

  private func handle(_ message: FrontendReply) throws {
    let request = FrontendRequest(rawValue: message.header.request)
    let needsReply = message.header.flags & 8 != 0
    var reader = WireReader(message.payload)
    let first: UInt64 = message.payload.count >= 8 ? reader.take() : 0
    let (index, num) = (Int(first & 0xff), UInt32(first >> 32))
    let aboutRing: Set<FrontendRequest> = [
      .setVringNum, .setVringAddr, .setVringBase, .getVringBase, .setVringKick, .setVringCall, .setVringErr,
      .setVringEnable,
    ]
    let words = aboutRing.contains(request) ? "\(request) \(index)" : "\(request)"
    heard.withLock { $0.append(needsReply ? words + "!" : words) }
    let refused = settings.refuses.contains(request.rawValue)
    if !refused, try answer(request, message, first) { return }
    if !refused { act(request, message, first, index, num) }
    if needsReply && acknowledges { try reply(request, refused ? 1 : 0) }
  }

  private func reply(_ request: FrontendRequest, _ value: UInt64) throws {
    var writer = WireWriter()
    writer.put(value)
    try connection.sendRaw(request: request.rawValue, flags: 5, payload: writer.bytes)
  }

  /// Requests with an answer of their own.
  private func answer(_ request: FrontendRequest, _ message: FrontendReply, _ first: UInt64) throws -> Bool {
    switch request {
    case .getFeatures: try reply(request, settings.features)
    case .getProtocolFeatures: try reply(request, settings.protocolFeatures)
    case .getQueueNum: try reply(request, 4)
    case .getMaxMemSlots: try reply(request, 32)
    case .getStatus: try reply(request, status)
    case .getConfig:
      var config = WireConfig(message.payload)
      config.piece = [0, 8] + [UInt8](repeating: 0, count: Int(config.size) - 2)
      try connection.sendRaw(request: request.rawValue, flags: 5, payload: config.bytes)
    case .getInflightFD:
      var region = WireInflight(message.payload)
      region.mmapSize = 4096
      let file = try GuestArena(bytes: 4096)
      try connection.sendRaw(
        request: request.rawValue, flags: 5, payload: region.bytes, descriptors: file.descriptors)
    case .getVringBase:
      let ring = rings[Int(first & 0xff)]
      ring.device = nil
      let state = WireVringState(index: UInt32(first & 0xff), num: ring.base &+ UInt32(ring.taken))
      try connection.sendRaw(request: request.rawValue, flags: 5, payload: state.bytes)
    default: return false
    }
    return true
  }

  private func act(
    _ request: FrontendRequest, _ message: FrontendReply, _ first: UInt64, _ index: Int, _ num: UInt32
  ) {
    switch request {
    case .setFeatures: features = first
    case .setProtocolFeatures: acknowledges = first & ProtocolBits.replyAck != 0
    case .setStatus: status = first
    case .setInflightFD: inflight = message.descriptors.first
    case .setVringNum: rings[index].size = UInt16(num)
    case .setVringBase: (rings[index].base, rings[index].taken) = (num, 0)
    case .setVringCall: rings[index].call = message.descriptors.first
    case .setVringAddr:
      var reader = WireReader(Array(message.payload[8...]))
      let shift = GuestArena.usualShift
      let (descriptors, used, available): (UInt64, UInt64, UInt64) = (
        reader.take(), reader.take(), reader.take()
      )
      rings[index].areas = RingAreas(
        descriptors: descriptors &- shift, driver: available &- shift, device: used &- shift)
    case .setVringKick:
      rings[index].kick = message.descriptors.first
      start(rings[index])
    default: break
    }
  }

  // MARK: Requests

  private func start(_ ring: Ring) {
    guard let areas = ring.areas else { return }
    let eventIndex = features & VirtioBits.eventIndex != 0
    let base = UInt16(truncatingIfNeeded: ring.base)
    if features & VirtioBits.packed != 0 {
      ring.device = try? PackedDevice(areas, size: ring.size, eventIndex: eventIndex, in: arena, start: base)
    } else {
      ring.device = try? SplitDevice(areas, size: ring.size, eventIndex: eventIndex, in: arena, start: base)
    }
    serve(ring)
  }

  private func serve(_ ring: Ring) {
    guard let device = ring.device else { return }
    repeat {
      while let chain = device.next() {
        ring.taken += 1
        if settings.holdsRequests { continue }
        guard let written = try? execute(chain) else { return }
        device.complete(chain, written: written)
        guard device.publish(), let call = ring.call else { continue }
        var one: UInt64 = 1
        _ = write(call.raw, &one, 8)
      }
    } while device.askForKicks()
  }

  /// The readable and the writable bytes as two streams, however they are cut.
  private func execute(_ chain: DeviceChain) throws -> UInt32 {
    let input = try chain.buffers.filter { !$0.write }.flatMap {
      try arena.read(at: $0.address, count: Int($0.length))
    }
    var reader = WireReader(input)
    let (type, _, sector): (UInt32, UInt32, UInt64) = (reader.take(), reader.take(), reader.take())
    let room = chain.buffers.filter(\.write).reduce(0) { $0 + Int($1.length) }
    let offset = Int(sector) * 512
    var output = [UInt8](repeating: 0, count: room)
    switch type {
    case 0:
      output.replaceSubrange(0..<room - 1, with: disk.withLock { Array($0[offset..<offset + room - 1]) })
    case 1: disk.withLock { $0.replaceSubrange(offset..<offset + input.count - 16, with: input[16...]) }
    case 4: break
    case 8: output.replaceSubrange(0..<3, with: Array("toy".utf8))
    default: output[room - 1] = 2
    }
    var done = 0
    for buffer in chain.buffers where buffer.write {
      try arena.write(Array(output[done..<done + Int(buffer.length)]), at: buffer.address)
      done += Int(buffer.length)
    }
    return UInt32(room)
  }
}
