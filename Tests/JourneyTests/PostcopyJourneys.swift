// A guest whose memory comes after it: this test is the front-end that brings the pages, and sometimes does not.

import CLinux
import Foundation
import HostIO
import Testing
import VhostFrontend

/// A disk whose data buffers are missing, and who brings them.
private struct ComingDisk {
  let image: Image
  let backend: Backend
  let driver: DeviceDriver
  let queue: BlockQueue
  let faults: FrontendDescriptor
  /// Where the arena begins in the back-end.
  let base: UInt64
  var connection: FrontendConnection { driver.connection }

  static func options() -> DiskOptions {
    .with {
      $0.driver.protocolFeatures = Habit.plain.protocolFeatures | ProtocolBits.pageFault
      $0.depth = 8
    }
  }

  init(packed: Bool = false) throws {
    image = try Image()
    backend = try Backend(try image.device(), postcopy: true)
    var options = Self.options()
    options.driver.packed = packed
    let arena = try GuestArena(bytes: options.arenaBytes())
    driver = DeviceDriver(try .connect(to: backend.socket), arena: arena, options.driver)
    try driver.connect()
    faults = try driver.connection.postcopyAdvise()
    try driver.connection.postcopyListen().accepted(.postcopyListen)
    try driver.play(.setFeatures)
    let bases = try driver.connection.setMemTablePostcopy(arena.table, descriptors: arena.descriptors)
    base = try #require(bases.first)
    try driver.connection.acknowledgeMemTable().accepted(.setMemTable)
    try driver.play(.rings([.num, .base, .address, .call, .err, .kick, .enable]))
    queue = try BlockQueue(driver.queues[0], depth: 8, dataBytes: options.dataBytes, arena: arena)
  }

  /// Takes the pages of a slot's data away, as if they had not come.
  func lose(_ slot: UInt16, bytes: Int) throws {
    let address = queue.dataAddress(of: slot)
    let region = driver.arena.regions[0]
    let file = try #require(driver.arena.files[region.file]).raw
    let mode = Int32(CLX_FALLOC_PUNCH_HOLE | CLX_FALLOC_KEEP_SIZE)
    try #require(
      clx_fallocate(file, mode, Int64(region.fileOffset + address - region.guestAddress), Int64(bytes)) == 0)
  }

  /// The guest address of the next fault; nil where none comes.
  func nextFault(within milliseconds: Int32 = 20_000) throws -> UInt64? {
    guard !Poll.one(faults.raw, .readable, milliseconds: milliseconds).isEmpty else { return nil }
    // struct uffd_msg: {u8 event, …; @16 u64 address}; event 0x12 is a page fault.
    var message = [UInt64](repeating: 0, count: 4)
    let count = message.withUnsafeMutableBytes { read(faults.raw, $0.baseAddress, $0.count) }
    guard count == 32 else { return nil }
    #expect(message[0] & 0xff == 0x12)
    let region = driver.arena.regions[0]
    let address = message[2]
    try #require(address >= base && address - base < UInt64(region.bytes), "outside of what was announced")
    return region.guestAddress + (address - base)
  }

  /// Brings the page of an address, and wakes who waits.
  func bring(_ page: [UInt8], at address: UInt64) throws {
    let start = address & ~4095
    try driver.arena.write(page, at: start)
    let here = base + (start - driver.arena.regions[0].guestAddress)
    #expect(clx_userfault_wake(faults.raw, UnsafeMutableRawPointer(bitPattern: UInt(here)), 4096) == 0)
  }

  /// The status of the next request that ends.
  func waitUsed() throws -> UInt8 {
    let deadline = ContinuousClock.now + .seconds(20)
    while ContinuousClock.now < deadline {
      if let completion = queue.poll() { return completion.status }
      _ = queue.queue.call.wait(timeout: .milliseconds(10))
    }
    throw FrontendError.timedOut(waitingFor: "a request's end")
  }

  /// A new front-end of the same back-end gets along with it.
  func requireNextFrontEnd() throws {
    let next = try BlockDriver(path: backend.socket, .with { $0.driver.queues = 1 })
    #expect(try next.read(sector: 99, bytes: 512) == [UInt8](repeating: 99, count: 512))
    next.disconnect()
  }
}

@Suite(
  "postcopy", .enabled(if: (try? UserFaultSource()) != nil, "this process may have no userfaultfd"),
  .timeLimit(.minutes(2)))
struct PostcopyJourneys {
  @Test("a request waits for the pages it touches, and then has what came", arguments: [false, true])
  func pagesCome(packed: Bool) throws {
    let disk = try ComingDisk(packed: packed)
    for round in 0..<4 {
      let sector = UInt64(16 * round)
      // The slot that is free next is the one that is given out.
      let data = BytePattern(seed: UInt64(round)).bytes(at: 0, count: 8192)
      let slot = try #require(disk.queue.submit(type: 1, sector: sector, bytes: 8192, deviceWrites: false))
      try disk.lose(slot, bytes: 8192)
      disk.queue.publish()
      for _ in 0..<2 {
        let address = try #require(try disk.nextFault())
        let offset = Int(address & ~4095) - Int(disk.queue.dataAddress(of: slot))
        #expect(disk.queue.poll() == nil, "it waits")
        try disk.bring(Array(data[offset..<(offset + 4096)]), at: address)
      }
      #expect(try disk.waitUsed() == 0)
      #expect(try disk.image.bytes(sector: Int(sector), count: 8192) == data)
    }
    // All has come: what is not there now is never to come, and nobody is asked.
    try disk.connection.postcopyEnd().accepted(.postcopyEnd)
    let slot = try #require(disk.queue.submit(type: 1, sector: 200, bytes: 4096, deviceWrites: false))
    try disk.lose(slot, bytes: 4096)
    disk.queue.publish()
    #expect(try disk.waitUsed() == 0)
    #expect(try disk.image.bytes(sector: 200, count: 4096) == [UInt8](repeating: 0, count: 4096))
    disk.driver.disconnect()
    try disk.requireNextFrontEnd()
  }

  @Test(
    "a front-end that goes while a request waits for its page leaves no zeros on the disk, and no thread that waits",
    arguments: [false, true])
  func frontEndGoes(controlWaits: Bool) throws {
    let disk = try ComingDisk()
    let slot = try #require(disk.queue.submit(type: 1, sector: 40, bytes: 4096, deviceWrites: false))
    try disk.lose(slot, bytes: 4096)
    disk.queue.publish()
    _ = try #require(try disk.nextFault())
    // The control thread waits for the queue thread, which waits for the page.
    if controlWaits {
      try disk.connection.send(.getVringBase, payload: WireVringState(index: 0, num: 0).bytes)
    }
    disk.driver.disconnect()
    try disk.requireNextFrontEnd()
    let untouched = (40..<48).flatMap { [UInt8](repeating: $0, count: 512) }
    #expect(try disk.image.bytes(sector: 40, count: 4096) == untouched)
  }

  @Test("LISTEN or END without ADVISE, LISTEN with memory, an acknowledgement of nothing: refused, no more")
  func refusals() throws {
    let backend = try Backend(try Image().device(), postcopy: true)
    let options = ComingDisk.options()
    let arena = try GuestArena(bytes: options.arenaBytes())
    let driver = DeviceDriver(try .connect(to: backend.socket), arena: arena, options.driver)
    try driver.connect()
    #expect(driver.offeredProtocolFeatures & ProtocolBits.configureMemSlots == 0, "they exclude each other")
    #expect(try driver.connection.postcopyListen().isNack)
    #expect(try driver.connection.postcopyEnd().isNack)
    #expect(try driver.connection.acknowledgeMemTable().isNack)
    _ = try driver.connection.postcopyAdvise()
    // Another one replaces it.
    _ = try driver.connection.postcopyAdvise()
    try driver.start()
    #expect(try driver.connection.postcopyListen().isNack, "memory is there")
    driver.disconnect()
  }

  @Test(
    "memory that was announced is not touched before it is acknowledged, and another table may come instead")
  func announcedTwice() throws {
    let backend = try Backend(try Image().device(), postcopy: true)
    let options = ComingDisk.options()
    let arena = try GuestArena(bytes: options.arenaBytes())
    let driver = DeviceDriver(try .connect(to: backend.socket), arena: arena, options.driver)
    try driver.connect()
    _ = try driver.connection.postcopyAdvise()
    try driver.connection.postcopyListen().accepted(.postcopyListen)
    try driver.play(.setFeatures)
    for _ in 0..<100 {
      _ = try driver.connection.setMemTablePostcopy(arena.table, descriptors: arena.descriptors)
    }
    try driver.play(.rings([.num, .base, .address, .call]))
    #expect(try driver.connection.setVringKick(0, driver.queues[0].kick).isNack, "there is no memory yet")
    try driver.connection.acknowledgeMemTable().accepted(.setMemTable)
    try driver.play(.rings([.kick, .enable]))
    driver.disconnect()
  }

  @Test("without having been asked for it is not offered")
  func off() throws {
    let backend = try Backend(try Image().device())
    let connection = try FrontendConnection.connect(to: backend.socket)
    _ = try connection.getFeatures()
    #expect(try connection.getProtocolFeatures() & ProtocolBits.pageFault == 0)
    connection.disconnect()
  }
}
