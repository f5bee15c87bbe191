// A network card whose queues are driven by hand: for one test.

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
  let thread: QueueThread
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
