// The disk's control side: features, configuration space, cache mode; and images that cannot be served.

import BlockBackend
import DeviceKit
import Foundation
import Testing

@Suite("block device")
struct DeviceTests {
  static let flush = FeatureSet(bit: 9)
  static let cacheMode = FeatureSet(bit: 11)

  static func device(queues: Int = 4) throws -> BlockDevice {
    BlockDevice(image: try BlockImage(nullBytes: 1 << 20), options: .init(serial: "s", queueLimit: queues))
  }

  static func config(_ device: BlockDevice) -> [UInt8] {
    var out = ConfigWriter()
    device.readConfig(&out)
    return out.bytes
  }

  static func setWriteback(_ device: BlockDevice, _ value: UInt8, at offset: Int = 32) throws {
    let bytes: [UInt8] = [value]
    try device.writeConfig(bytes.span.bytes, at: offset)
  }

  @Test("the configuration space has each field at its place (virtio 1.3 §5.2.4)")
  func configuration() throws {
    let bytes = Self.config(try Self.device())
    #expect(Array(bytes[0..<8]) == [0, 8, 0, 0, 0, 0, 0, 0])  // 2048 sectors
    #expect(Array(bytes[8..<12]) == [0, 0, 0, 0])  // size_max is not offered
    #expect(Array(bytes[12..<16]) == [126, 0, 0, 0])
    #expect(Array(bytes[20..<24]) == [0, 2, 0, 0])
    #expect(bytes[32] == 1)
    #expect(Array(bytes[34..<36]) == [4, 0])
  }

  @Test("SIZE_MAX is never offered, MQ only with several queues")
  func features() throws {
    #expect(!(try Self.device().features.contains(FeatureSet(bit: 1))))
    #expect(try Self.device().features.contains(FeatureSet(bit: 12)))
    #expect(!(try Self.device(queues: 1).features.contains(FeatureSet(bit: 12))))
  }

  @Test("the cache mode is the driver's, and only that (SP25)")
  func writeConfig() throws {
    let device = try Self.device()
    device.negotiated([Self.flush, Self.cacheMode])
    try Self.setWriteback(device, 0)
    #expect(Self.config(device)[32] == 0)
    for offset in [0, 31, 33, 34] {
      #expect(throws: DeviceError.self) { try Self.setWriteback(device, 1, at: offset) }
    }
    #expect(throws: DeviceError.self) { try Self.setWriteback(device, 2) }
    #expect(Self.config(device)[32] == 0)
    // The same features again, as some front-ends send them, change nothing.
    device.negotiated([Self.flush, Self.cacheMode])
    #expect(Self.config(device)[32] == 0)
    device.reset()
    #expect(Self.config(device)[32] == 1)
  }

  @Test("CONFIG_WCE without FLUSH starts as write-through (virtio 1.3 §5.2.5.2)")
  func cacheModeAlone() throws {
    let device = try Self.device()
    device.negotiated([Self.cacheMode])
    #expect(Self.config(device)[32] == 0)
  }

  @Test("images that cannot be served are refused, each for its reason")
  func images() throws {
    let folder = NSTemporaryDirectory() + "img-" + UUID().uuidString
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: folder) }
    let odd = folder + "/odd"
    try Data(count: 1000).write(to: URL(fileURLWithPath: odd))
    let empty = folder + "/empty"
    try Data().write(to: URL(fileURLWithPath: empty))
    let fifo = folder + "/fifo"
    #expect(mkfifo(fifo, 0o600) == 0)
    func opening(_ path: String, readOnly: Bool = false) -> BlockImageError? {
      do throws(BlockImageError) {
        _ = try BlockImage(path: path, readOnly: readOnly)
        return nil
      } catch { return error }
    }
    #expect(opening(odd) == .oddSize(path: odd, bytes: 1000))
    #expect(opening(empty) == .oddSize(path: empty, bytes: 0))
    #expect(opening(folder) == .notAnImage(path: folder, what: "a directory"))
    #expect(opening(folder, readOnly: true) == .notAnImage(path: folder, what: "a directory"))
    #expect(opening(fifo) == .notAnImage(path: fifo, what: "a FIFO"))
    #expect(opening("/dev/null") == .notAnImage(path: "/dev/null", what: "a character device"))
    #expect(opening(folder + "/none") == .cannotOpen(path: folder + "/none", code: ENOENT))
    #expect(!FileManager.default.fileExists(atPath: folder + "/none"))
  }
}
