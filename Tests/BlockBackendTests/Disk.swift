// A disk whose queue is driven by hand: image file, device, thread and queue for one test.

import BlockBackend
import CLinux
import DeviceKit
import Foundation
import HostIO
import Testing
import TestSupport
import VirtQueue

final class Disk {
  static let sectors = 2048
  let device: BlockDevice
  let host: DeviceHost
  let thread: QueueThread
  let queue: TinyQueue
  let path: String
  private let folder: String

  /// A disk of 1 MiB whose sector n is filled with the byte n, negotiated as asked.
  init(
    readOnly: Bool = false, null: Bool = false, serial: String = "a serial",
    features: FeatureSet = [.init(bit: 9), .init(bit: 11), .init(bit: 13), .init(bit: 14)],
    queueSize: Int = 64,
    at place: String = NSTemporaryDirectory(), direct: Bool = false,
    change: (inout BlockDevice.Options) -> Void = { _ in }
  ) throws {
    folder = place + "/blk-" + UUID().uuidString
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    path = folder + "/disk.img"
    var bytes = Data(count: Self.sectors * 512)
    for sector in 0..<Self.sectors {
      bytes.replaceSubrange(
        sector * 512..<(sector + 1) * 512, with: repeatElement(UInt8(truncatingIfNeeded: sector), count: 512))
    }
    try bytes.write(to: URL(fileURLWithPath: path))
    let image =
      null
      ? try BlockImage(nullBytes: UInt64(Self.sectors * 512))
      : try BlockImage(path: path, readOnly: readOnly, direct: direct)
    var options = BlockDevice.Options(serial: serial, queueLimit: 1)
    change(&options)
    device = BlockDevice(image: image, options: options)
    thread = try QueueThread(name: "disk", cpus: [], policy: .adaptive, seats: 1, files: 1, helped: true)
    host = try DeviceHost(device: device, threads: [thread])
    _ = try thread.start()
    queue = try TinyQueue(size: queueSize)
    device.negotiated(features)
    let map = try GuestMemoryMap(
      generation: 1,
      regions: [
        GuestRegion(
          guestAddress: TinyQueue.guestBase, size: UInt64(queue.memory.length),
          userAddress: TinyQueue.userBase,
          host: queue.memory.base, owner: queue.memory)
      ])
    let failure = host.start(
      0,
      QueueSetup(
        layout: RingLayout(
          size: UInt16(queueSize), descriptorArea: queue.descriptorArea, driverArea: queue.availableArea,
          deviceArea: queue.usedArea, base: 0, indirect: false, eventIndex: false),
        features: features, map: map, enabled: true, kick: queue.kick.raw, call: queue.call.raw,
        onFault: { _ in }))
    guard failure == nil else { throw HostError.system(call: "start", code: 0) }
  }

  deinit {
    _ = host.stop([0])
    thread.finish()
    try? FileManager.default.removeItem(atPath: folder)
  }

  var contents: Data { (try? Data(contentsOf: URL(fileURLWithPath: path))) ?? Data() }

  // Offsets in the queue's memory: the header, the status, and data from here on.
  var header: Int { (queue.dataOffset + 4095) / 4096 * 4096 }
  var status: Int { header + 64 }
  var data: Int { header + 4096 }

  func writeHeader(_ type: UInt32, sector: UInt64) {
    queue.pointer(header).storeBytes(of: type, as: UInt32.self)
    queue.pointer(header).storeBytes(of: 0, toByteOffset: 4, as: UInt32.self)
    queue.pointer(header).storeBytes(of: sector, toByteOffset: 8, as: UInt64.self)
    queue.pointer(status).storeBytes(of: 0xee, as: UInt8.self)
  }

  var statusByte: UInt8 { queue.pointer(status).load(as: UInt8.self) }
  func bytes(_ offset: Int, _ count: Int) -> [UInt8] {
    Array(UnsafeRawBufferPointer(start: queue.pointer(offset), count: count))
  }
  func fill(_ offset: Int, _ count: Int, _ byte: UInt8) {
    memset(queue.pointer(offset), Int32(byte), count)
  }

  /// Sends one chain and waits for it; the used length, or nil when nothing came back.
  func send(_ pieces: [(offset: Int, length: Int, writable: Bool)]) throws -> UInt32 {
    let head = queue.add(pieces)
    queue.sendKick()
    let used = try #require(queue.waitUsed())
    #expect(used.head == head)
    return used.length
  }

  /// A request in the classic form: header, data, status. Returns status and used length.
  func request(
    _ type: UInt32, sector: UInt64 = 0, data length: Int = 0, writable: Bool = true
  ) throws -> (status: UInt8, used: UInt32) {
    writeHeader(type, sector: sector)
    var pieces: [(Int, Int, Bool)] = [(header, 16, false)]
    if length > 0 { pieces.append((data, length, writable)) }
    pieces.append((status, 1, true))
    let used = try send(pieces)
    return (statusByte, used)
  }
}
