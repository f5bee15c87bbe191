// What happens to an image from outside: another size, another writer.

import BlockBackend
import DeviceKit
import Foundation
import Testing
import VhostFrontend

@Suite("images from outside")
struct ImageJourneys {
  @Test("a front-end is told of a new size, and can use it")
  func resize() throws {
    let image = try Image(sectors: 1024)
    let device = try image.device()
    let backend = try Backend(device)
    let disk = try BlockDriver(path: backend.socket, RingKind.all[0].options())
    let (channel, ack) = try disk.connection.openBackendChannel()
    #expect(!ack.isNack)
    #expect(!device.refreshSize())
    try FileHandle(forWritingTo: URL(fileURLWithPath: image.path)).truncate(atOffset: 2048 * 512 + 100)
    #expect(device.refreshSize())
    backend.server.configChanged()
    let message = try channel.receive(timeout: .seconds(20))
    #expect(message.request.rawValue == 2)
    #expect(message.payload.isEmpty)
    #expect(!message.needsReply)
    #expect(try disk.refreshConfig().capacity == 2048)
    let data = [UInt8](repeating: 5, count: 512)
    try disk.write(sector: 2047, data)
    #expect(try disk.read(sector: 2047, bytes: 512) == data)
    #expect(try disk.perform(.read(sector: 2048, bytes: 512)).status == 1)
  }

  @Test("LC12 a change that no front-end listens for harms nobody")
  func resizeUnheard() throws {
    let image = try Image()
    let backend = try Backend(try image.device())
    backend.server.configChanged()
    let disk = try BlockDriver(path: backend.socket, RingKind.all[0].options())
    backend.server.configChanged()
    #expect(try disk.read(sector: 1, bytes: 512) == [UInt8](repeating: 1, count: 512))
  }

  @Test("BK17 a second writer waits for the image, and gets it when the first has stopped")
  func oneWriter() throws {
    let image = try Image()
    let first = try Backend(try image.device())
    let second = try Backend(try image.device(lockWait: .milliseconds(200)))
    let one = try BlockDriver(path: first.socket, RingKind.all[0].options())
    #expect(throws: FrontendError.self) { try BlockDriver(path: second.socket, RingKind.all[0].options()) }
    #expect(try image.device(lockWait: .zero).isInUseElsewhere)
    // Stopped rings let go, whether the front-end leaves or not: so a migration hands over.
    _ = try one.stop()
    let two = try BlockDriver(path: second.socket, RingKind.all[0].options())
    #expect(try two.read(sector: 9, bytes: 512) == [UInt8](repeating: 9, count: 512))
    two.disconnect()
    let three = try BlockDriver(path: second.socket, RingKind.all[0].options())
    three.disconnect()
    try one.resume()
    #expect(try one.read(sector: 8, bytes: 512) == [UInt8](repeating: 8, count: 512))
  }

  @Test("readers share an image")
  func readers() throws {
    let image = try Image()
    let first = try Backend(try image.device(readOnly: true))
    let second = try Backend(try image.device(readOnly: true, lockWait: .zero))
    let one = try BlockDriver(path: first.socket, RingKind.all[0].options())
    let two = try BlockDriver(path: second.socket, RingKind.all[0].options())
    #expect(try one.read(sector: 8, bytes: 512) == two.read(sector: 8, bytes: 512))
  }
}
