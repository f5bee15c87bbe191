// A device's own state on its way from one back-end to another, and what is none.

import BlockBackend
import DeviceKit
import Foundation
import NetBackend
import Testing
import VhostFrontend

@Suite("a device's state")
struct StateJourneys {
  private static func options(flush: Bool = true) -> DriverOptions {
    .with {
      $0.features = (VirtioBits.driven | DiskBits.driven) & (flush ? .max : ~DiskBits.flush)
      $0.protocolFeatures = Habit.plain.protocolFeatures | ProtocolBits.deviceState
    }
  }

  /// A driver that has negotiated, and runs no ring.
  private static func driver(_ backend: Backend, flush: Bool = true) throws -> DeviceDriver {
    let driver = DeviceDriver(
      try .connect(to: backend.socket), arena: try GuestArena(bytes: 1 << 20), options(flush: flush))
    try driver.connect()
    return driver
  }

  /// Asks for the state through a pipe of our own.
  private static func save(_ driver: DeviceDriver) throws -> [UInt8] {
    let pipe = Pipe()
    let answer = try driver.connection.setDeviceStateFD(
      direction: 0, descriptor: pipe.fileHandleForWriting.fileDescriptor)
    #expect(answer.value == 0x100)
    #expect(answer.descriptor == nil)
    pipe.fileHandleForWriting.closeFile()
    let bytes = Array(pipe.fileHandleForReading.readDataToEndOfFile())
    #expect(try driver.connection.checkDeviceState() == 0)
    return bytes
  }

  /// Gives a state to a device; what CHECK_DEVICE_STATE says of it.
  private static func load(_ bytes: [UInt8], _ driver: DeviceDriver) throws -> UInt64 {
    let pipe = Pipe()
    let answer = try driver.connection.setDeviceStateFD(
      direction: 1, descriptor: pipe.fileHandleForReading.fileDescriptor)
    #expect(answer.value == 0x100)
    pipe.fileHandleForReading.closeFile()
    pipe.fileHandleForWriting.write(Data(bytes))
    pipe.fileHandleForWriting.closeFile()
    return try driver.connection.checkDeviceState()
  }

  @Test(
    "the cache mode goes along, whether features are chosen before it comes or after, with flushes or without",
    arguments: [false, true], [false, true])
  func cacheMode(writeback: Bool, flush: Bool) throws {
    let (image, other) = (try Image(), try Image())
    let (source, target) = (try other.device(), try image.device())
    let here = try Backend(source)
    let driver = try Self.driver(here, flush: flush)
    try driver.start()
    try driver.connection.setConfig(offset: 32, [writeback ? 1 : 0]).accepted(.setConfig)
    try driver.stop()
    let state = try Self.save(driver)

    let there = try Backend(target)
    let arrived = try Self.driver(there, flush: flush)
    #expect(try Self.load(state, arrived) == 0)
    try arrived.start()
    #expect(try arrived.connection.getConfig(offset: 32, size: 1) == [writeback ? 1 : 0])
    #expect(target.mustBeDurable == !writeback)
    // What the driver chooses from then on is not undone by another start.
    try arrived.connection.setConfig(offset: 32, [writeback ? 0 : 1]).accepted(.setConfig)
    try arrived.stop()
    try arrived.start()
    #expect(target.mustBeDurable == writeback)
  }

  @Test("a state that is cut off, has another byte or more of them, is refused, and changes nothing")
  func damaged() throws {
    let image = try Image()
    let device = try image.device()
    let backend = try Backend(device)
    let driver = try Self.driver(backend)
    // Write-through is no device's beginning: a state that is taken by mistake shows.
    try driver.connection.setFeatures(driver.features).accepted(.setFeatures)
    try driver.connection.setConfig(offset: 32, [0]).accepted(.setConfig)
    let state = try Self.save(driver)
    try driver.connection.setConfig(offset: 32, [1]).accepted(.setConfig)
    for count in 0..<state.count { #expect(try Self.load(Array(state[..<count]), driver) == 1) }
    for index in state.indices {
      var other = state
      other[index] ^= 0x41
      #expect(try Self.load(other, driver) == 1)
    }
    #expect(try Self.load(state + [0], driver) == 1)
    #expect(try Self.load(state + state, driver) == 1)
    #expect(try Self.load([UInt8](repeating: 0, count: 4096), driver) == 1)
    #expect(!device.mustBeDurable)
    #expect(try Self.load(state, driver) == 0)
    #expect(device.mustBeDurable)
  }

  @Test("a state without an end is read no further than a state can be, and the session goes on")
  func endless() throws {
    signal(SIGPIPE, SIG_IGN)
    let backend = try Backend(try Image().device())
    let driver = try Self.driver(backend)
    let pipe = Pipe()
    let answer = try driver.connection.setDeviceStateFD(
      direction: 1, descriptor: pipe.fileHandleForReading.fileDescriptor)
    #expect(answer.value == 0x100)
    pipe.fileHandleForReading.closeFile()
    // More than a pipe holds: without a reader on the other side this would not come to an end.
    let part = [UInt8](repeating: 7, count: 65536)
    var written = 0
    while written < 16 << 20 {
      let count = part.withUnsafeBytes {
        write(pipe.fileHandleForWriting.fileDescriptor, $0.baseAddress, $0.count)
      }
      if count < 0 { break }
      written += count
    }
    #expect(written < 1 << 20)
    #expect(try driver.connection.checkDeviceState() == 1)
    try driver.start()
  }

  @Test("a state whose sender keeps the channel open is given up, and the session goes on")
  func unended() throws {
    let backend = try Backend(try Image().device())
    let driver = try Self.driver(backend)
    let pipe = Pipe()
    _ = try driver.connection.setDeviceStateFD(
      direction: 1, descriptor: pipe.fileHandleForReading.fileDescriptor)
    // Messages are served meanwhile.
    try driver.connection.barrier()
    #expect(try driver.connection.checkDeviceState() == 1)
    #expect(try driver.connection.checkDeviceState() == 1, "nothing was transferred")
    try driver.start()
  }

  @Test("another direction, another phase, rings that run, and channels that are none are errors, no more")
  func refusals() throws {
    let backend = try Backend(try Image().device())
    let driver = try Self.driver(backend)
    let pipe = Pipe()
    let (from, to) = (pipe.fileHandleForReading.fileDescriptor, pipe.fileHandleForWriting.fileDescriptor)
    for (direction, phase) in [(2, 0), (0, 1), (1, 1), (.max, .max)] as [(UInt32, UInt32)] {
      let answer = try driver.connection.setDeviceStateFD(direction: direction, phase: phase, descriptor: to)
      #expect(answer.value & 0xff != 0 && answer.value & 0x100 != 0, "direction \(direction), phase \(phase)")
      #expect(try driver.connection.checkDeviceState() == 1)
    }
    let bell = try Doorbell()
    // A file, an eventfd, and the wrong end of a pipe.
    for raw in [driver.arena.descriptors[0], bell.raw, from] {
      #expect(try driver.connection.setDeviceStateFD(direction: 0, descriptor: raw).value == 0x101)
    }
    // A pipe that takes nothing.
    _ = fcntl(to, F_SETFL, O_NONBLOCK)
    let page = [UInt8](repeating: 1, count: 4096)
    while write(to, page, page.count) > 0 {}
    #expect(try driver.connection.setDeviceStateFD(direction: 0, descriptor: to).value == 0x101)
    try driver.start()
    let other = Pipe()
    let channels: [(UInt32, FileHandle)] = [(0, other.fileHandleForWriting), (1, other.fileHandleForReading)]
    for (direction, handle) in channels {
      let answer = try driver.connection.setDeviceStateFD(
        direction: direction, descriptor: handle.fileDescriptor)
      #expect(answer.value == 0x101)
    }
  }

  @Test("another kind of device refuses a disk's state")
  func otherDevice() throws {
    let source = try Backend(try Image().device())
    let disk = try Self.save(try Self.driver(source))
    let card = try Backend(NetDevice(place: .sink, options: .init()))
    let driver = try Self.driver(card)
    #expect(try Self.load(disk, driver) == 1)
    let own = try Self.save(driver)
    #expect(own != disk)
    #expect(try Self.load(own, driver) == 0)
  }
}
