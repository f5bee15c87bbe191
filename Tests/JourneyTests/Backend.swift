// A back-end in this process: a device behind a server on a socket of its own, for one test.

import BlockBackend
import DeviceKit
import Foundation
import HostIO
import Logging
import Testing
import VhostFrontend
import VhostUser

final class Backend {
  let socket: String
  let host: DeviceHost
  private let threads: [QueueThread]
  let server: VhostUserServer
  private let folder: String

  init(
    _ device: any VirtioDevice, threads count: Int = 1, policy: PollPolicy = .adaptive, postcopy: Bool = false
  ) throws {
    folder = NSTemporaryDirectory() + "journey-" + UUID().uuidString.prefix(13)
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    socket = folder + "/s"
    let seats = DeviceHost.seats(for: device, threads: count)
    threads = try (0..<count).map {
      try QueueThread(
        name: "journey-\($0)", cpus: [], policy: policy, seats: seats, files: device.descriptors.count,
        helped: device.needsHelper)
    }
    host = try DeviceHost(device: device, threads: threads)
    var log = Logger(label: "journey") { StreamLogHandler.standardError(label: $0) }
    log.logLevel = .critical
    server = try VhostUserServer(
      host: host, endpoint: .listener(try UnixListener(path: socket)), log: log,
      postcopy: postcopy ? Postcopy(source: UserFaultSource()) : nil)
    for thread in threads { _ = try thread.start() }
    try server.start()
  }

  deinit {
    server.requestStop()
    server.finish()
    for thread in threads { thread.finish() }
    try? FileManager.default.removeItem(atPath: folder)
  }

  /// The sum of one counter over all queues.
  func counter(_ name: String) -> UInt64 {
    host.counters.reduce(0) { sum, queue in sum + (queue.snapshot.first { $0.name == name }?.value ?? 0) }
  }
}

/// A disk image on the host, whose sector n is filled with the byte n at first.
final class Image {
  let path: String
  let sectors: Int

  init(sectors: Int = 4096) throws {
    self.sectors = sectors
    path = NSTemporaryDirectory() + "image-" + UUID().uuidString
    var bytes = Data(count: sectors * 512)
    for sector in 0..<sectors {
      bytes.replaceSubrange(
        sector * 512..<(sector + 1) * 512, with: repeatElement(UInt8(truncatingIfNeeded: sector), count: 512))
    }
    try bytes.write(to: URL(fileURLWithPath: path))
  }

  deinit { try? FileManager.default.removeItem(atPath: path) }

  func device(
    readOnly: Bool = false, queues: Int = 4, lockWait: Duration = .seconds(10)
  ) throws -> BlockDevice {
    var options = BlockDevice.Options(serial: "journey", queueLimit: queues)
    options.lock.wait = lockWait
    return BlockDevice(image: try BlockImage(path: path, readOnly: readOnly), options: options)
  }

  func bytes(sector: Int, count: Int) throws -> [UInt8] {
    let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: path))
    try file.seek(toOffset: UInt64(sector * 512))
    return Array(try file.read(upToCount: count) ?? Data())
  }
}
