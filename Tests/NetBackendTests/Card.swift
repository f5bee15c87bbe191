// A network card whose queues are driven by hand, and a network of its own around it: for one test.

import CLinux
import DeviceKit
import Foundation
import Glibc
import HostIO
import NetBackend
import Testing
import TestSupport
import VirtQueue

/// A card of one pair (or more) with a receive and a transmit queue, negotiated as asked.
final class Card: CustomReflectable {
  /// A failed expectation looks into what it names, and cannot look into this.
  var customMirror: Mirror { Mirror(self, children: []) }
  let device: NetDevice
  let host: DeviceHost
  let receive: TinyQueue
  let transmit: TinyQueue
  let control: TinyQueue
  let headerBytes: Int
  private let thread: QueueThread
  private let controlIndex: Int

  init(
    _ place: NetPlace, _ features: FeatureSet = [.version1, NetFeature.mergeable], size: Int = 64,
    starts: Bool = true, _ change: (inout NetDevice.Options) -> Void = { _ in }
  ) throws {
    var options = NetDevice.Options()
    change(&options)
    device = NetDevice(place: place, options: options)
    thread = try QueueThread(
      name: "net", cpus: [], policy: .adaptive, seats: DeviceHost.seats(for: device, threads: 1),
      files: device.descriptors.count)
    host = try DeviceHost(device: device, threads: [thread])
    _ = try thread.start()
    receive = try TinyQueue(size: size)
    transmit = try TinyQueue(size: size)
    control = try TinyQueue(size: size)
    headerBytes = NetTerms(features: features, mtu: 1500).layout.byteCount
    controlIndex = features.contains(NetFeature.multiQueue) ? 2 * options.pairs : 2
    device.negotiated(features)
    guard starts else { return }
    try start(0, receive, features)
    try start(1, transmit, features)
    if features.contains(NetFeature.controlQueue) { try start(controlIndex, control, features) }
  }

  func start(_ index: Int, _ queue: TinyQueue, _ features: FeatureSet, enabled: Bool = true) throws {
    let map = try GuestMemoryMap(
      generation: 1,
      regions: [
        GuestRegion(
          guestAddress: TinyQueue.guestBase, size: UInt64(queue.memory.length),
          userAddress: TinyQueue.userBase, host: queue.memory.base, owner: queue.memory)
      ])
    let failure = host.start(
      index,
      QueueSetup(
        layout: RingLayout(
          size: UInt16(queue.size), descriptorArea: queue.descriptorArea, driverArea: queue.availableArea,
          deviceArea: queue.usedArea, base: 0, indirect: false, eventIndex: false),
        features: features, map: map, enabled: enabled, kick: queue.kick.raw, call: queue.call.raw,
        onFault: { _ in }))
    guard failure == nil else {
      throw HostError.system(call: "start: \(String(describing: failure))", code: 0)
    }
  }

  deinit {
    _ = host.stop(Array(0..<host.queueLimit))
    thread.finish()
  }

  /// The sum of one counter over all queues.
  func counter(_ name: String) -> UInt64 {
    host.counters.reduce(0) { sum, queue in sum + (queue.snapshot.first { $0.name == name }?.value ?? 0) }
  }

  /// Waits for a counter to reach a value.
  func wait(for name: String, _ value: UInt64) -> Bool {
    let deadline = ContinuousClock.now + .seconds(20)
    while counter(name) < value {
      if ContinuousClock.now > deadline { return false }
      sched_yield()
    }
    return true
  }

  /// The place for data in a queue's memory.
  static func data(_ queue: TinyQueue) -> Int { (queue.dataOffset + 4095) / 4096 * 4096 }

  /// Sends bytes, header included, as one chain of pieces of at most `piece` bytes; the used length.
  @discardableResult
  func send(_ bytes: [UInt8], piece: Int = .max) throws -> UInt32 {
    let at = Self.data(transmit)
    transmit.pointer(at).copyMemory(from: bytes, byteCount: bytes.count)
    var pieces: [(Int, Int, Bool)] = []
    var done = 0
    while done < bytes.count || pieces.isEmpty {
      let length = min(piece, bytes.count - done)
      pieces.append((at + done, length, false))
      done += length
    }
    let head = transmit.add(pieces)
    transmit.sendKick()
    let used = try #require(transmit.waitUsed())
    #expect(used.head == head)
    return used.length
  }

  /// Sends a frame under an empty header.
  @discardableResult
  func send(frame: [UInt8]) throws -> UInt32 { try send([UInt8](repeating: 0, count: headerBytes) + frame) }

  /// Posts a receive buffer at a slot of 70000 bytes.
  func post(_ slot: Int, _ length: Int) {
    receive.add([(Self.data(receive) + slot * 70_000, length, true)])
    receive.sendKick()
  }

  func received(_ slot: Int, _ count: Int) -> [UInt8] {
    Array(UnsafeRawBufferPointer(start: receive.pointer(Self.data(receive) + slot * 70_000), count: count))
  }

  /// Runs a control command; its answer, nil where the chain came back without one.
  func command(_ bytes: [UInt8], answerBytes: Int = 1) throws -> UInt8? {
    let at = Self.data(control)
    control.pointer(at).copyMemory(from: bytes, byteCount: bytes.count)
    control.pointer(at + 4096).storeBytes(of: 0xee, as: UInt8.self)
    var pieces: [(Int, Int, Bool)] = bytes.isEmpty ? [] : [(at, bytes.count, false)]
    if answerBytes > 0 { pieces.append((at + 4096, answerBytes, true)) }
    control.add(pieces)
    control.sendKick()
    let used = try #require(control.waitUsed())
    return used.length > 0 ? control.pointer(at + 4096).load(as: UInt8.self) : nil
  }
}

/// A frame that nothing but these tests sends: experimental ethertype, numbered content.
func testFrame(_ length: Int, from source: [UInt8] = [2, 0, 0, 0, 0, 9], number: UInt8 = 0) -> [UInt8] {
  var frame: [UInt8] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] + source + [0x88, 0xb5]
  while frame.count < length { frame.append(UInt8(truncatingIfNeeded: frame.count) &+ number) }
  return Array(frame.prefix(length))
}

/// A network namespace of this test's own, with a tap in it and somebody on the host's side of the tap.
final class Wire: Sendable, CustomReflectable {
  var customMirror: Mirror { Mirror(self, children: []) }
  let tap: Tap
  private let socket: OwnedFD

  private init(tap: Tap, socket: consuming OwnedFD) {
    self.tap = tap
    self.socket = socket
  }

  deinit { tap.retire() }

  /// Whether this process may have one. As root it may.
  static let isPossible = (try? Wire.make()) != nil

  /// Everything is made on a thread that is in the namespace; descriptors stay in it.
  static func make(queues: Int = 1) throws -> Wire {
    let result = Reply<Result<Wire, any Error>>()
    let thread = try PinnedThread(name: "namespace", cpus: []) {
      result.fulfil(
        Result {
          guard clx_unshare_network() == 0 else { throw HostError.system(call: "unshare", code: errno) }
          // Or the kernel would have something to say on every new interface.
          let quiet = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
          try? "1".write(toFile: quiet, atomically: false, encoding: .utf8)
          let tap = try Tap.open(name: "wire0", queues: queues, create: true)
          return Wire(tap: tap, socket: try hostSide(of: "wire0"))
        })
    }
    defer { thread.join() }
    return try result.wait().get()
  }

  /// A packet socket on an interface.
  private static func hostSide(of name: String) throws -> OwnedFD {
    let everything = UInt16(3).bigEndian
    let socket = OwnedFD(adopting: Glibc.socket(AF_PACKET, Int32(SOCK_RAW.rawValue), Int32(everything)))
    guard socket.raw >= 0 else { throw HostError.system(call: "packet socket", code: errno) }
    var index: Int32 = 0
    guard clx_link_index(socket.raw, name, &index) == 0 else {
      throw HostError.system(call: "index", code: errno)
    }
    // struct sockaddr_ll
    var address = [UInt8](repeating: 0, count: 20)
    address.withUnsafeMutableBytes { bytes in
      bytes.storeBytes(of: UInt16(AF_PACKET), as: UInt16.self)
      bytes.storeBytes(of: everything, toByteOffset: 2, as: UInt16.self)
      bytes.storeBytes(of: index, toByteOffset: 4, as: Int32.self)
    }
    let code = address.withUnsafeBytes {
      bind(socket.raw, $0.baseAddress!.assumingMemoryBound(to: sockaddr.self), 20)
    }
    guard code == 0 else { throw HostError.system(call: "bind", code: errno) }
    return socket
  }

  /// The next frame of these tests that came out of the tap; nil after `seconds`.
  func take(seconds: Int = 20) -> [UInt8]? {
    let deadline = ContinuousClock.now + .seconds(seconds)
    var buffer = [UInt8](repeating: 0, count: 70_000)
    while ContinuousClock.now < deadline {
      guard !Poll.one(socket.raw, .readable, milliseconds: 100).isEmpty else { continue }
      let count = recv(socket.raw, &buffer, buffer.count, Int32(MSG_DONTWAIT))
      if count >= 14, buffer[12] == 0x88, buffer[13] == 0xb5 { return Array(buffer.prefix(count)) }
      if count >= 14, buffer[12] == 0x80, buffer[13] == 0x35 { return Array(buffer.prefix(count)) }
    }
    return nil
  }

  func set(up: Bool) throws {
    guard clx_link_set_up(socket.raw, tap.name, up ? 1 : 0) == 0 else {
      throw HostError.system(call: "set up", code: errno)
    }
  }

  /// Sends a frame to the guest.
  func give(_ frame: [UInt8]) {
    let count = frame.withUnsafeBytes { Glibc.send(socket.raw, $0.baseAddress, $0.count, 0) }
    #expect(count == frame.count)
  }
}
