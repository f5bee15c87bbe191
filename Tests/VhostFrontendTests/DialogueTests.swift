// Drivers against the toy back-end: the order of each habit's messages, and requests over every ring and
// framing.

import Foundation
import Testing
import VhostFrontend

@Suite("Dialogue") struct DialogueTests {
  func makeDisk(
    _ settings: ToyBackend.Settings = .init(), _ change: (inout DiskOptions) -> Void = { _ in }
  ) throws -> (BlockDriver, ToyBackend) {
    var options = DiskOptions.with { $0.driver.timeout = .seconds(10) }
    change(&options)
    let (front, back) = try FrontendConnection.pair()
    let arena = try GuestArena(bytes: options.arenaBytes())
    let toy = ToyBackend(back, arena: arena, settings)
    return (try BlockDriver(front, arena: arena, options), toy)
  }

  /// What QEMU 7.2.22 was seen to send for a vhost-user-blk device with two queues (`!`: with NEED_REPLY).
  static let qemu72 = """
    GET_FEATURES GET_PROTOCOL_FEATURES SET_PROTOCOL_FEATURES GET_QUEUE_NUM GET_MAX_MEM_SLOTS \
    SET_BACKEND_REQ_FD! SET_OWNER GET_FEATURES SET_VRING_CALL_0 SET_VRING_ERR_0 SET_VRING_CALL_1 \
    SET_VRING_ERR_1 GET_CONFIG SET_FEATURES GET_STATUS SET_STATUS GET_INFLIGHT_FD SET_INFLIGHT_FD \
    SET_VRING_CALL_0 SET_VRING_CALL_1 SET_FEATURES ADD_MEM_REG! SET_VRING_NUM_0 SET_VRING_BASE_0 \
    SET_VRING_ADDR_0 SET_VRING_KICK_0 SET_VRING_NUM_1 SET_VRING_BASE_1 SET_VRING_ADDR_1 SET_VRING_KICK_1 \
    SET_VRING_ENABLE_0 SET_VRING_ENABLE_1 GET_STATUS SET_STATUS SET_STATUS SET_VRING_ENABLE_0 \
    SET_VRING_ENABLE_1 GET_VRING_BASE_0 GET_VRING_BASE_1
    """
  /// libblkio: features before protocol features, and an answer to everything after them.
  static let libblkio = """
    GET_FEATURES SET_FEATURES GET_PROTOCOL_FEATURES SET_PROTOCOL_FEATURES SET_OWNER! GET_QUEUE_NUM \
    GET_MAX_MEM_SLOTS GET_CONFIG ADD_MEM_REG! SET_VRING_NUM_0! SET_VRING_BASE_0! SET_VRING_ADDR_0! \
    SET_VRING_KICK_0! SET_VRING_CALL_0! SET_VRING_ENABLE_0! SET_VRING_NUM_1! SET_VRING_BASE_1! \
    SET_VRING_ADDR_1! SET_VRING_KICK_1! SET_VRING_CALL_1! SET_VRING_ENABLE_1! SET_VRING_ENABLE_0! \
    SET_VRING_ENABLE_1! GET_VRING_BASE_0 GET_VRING_BASE_1
    """
  /// crosvm never asks for an acknowledgement; cloud-hypervisor sends every NUM first.
  static let crosvm = """
    SET_OWNER GET_FEATURES GET_PROTOCOL_FEATURES SET_PROTOCOL_FEATURES GET_QUEUE_NUM GET_CONFIG \
    SET_FEATURES SET_MEM_TABLE SET_VRING_NUM_0 SET_VRING_ADDR_0 SET_VRING_BASE_0 SET_VRING_CALL_0 \
    SET_VRING_KICK_0 SET_VRING_ENABLE_0 SET_VRING_NUM_1 SET_VRING_ADDR_1 SET_VRING_BASE_1 \
    SET_VRING_CALL_1 SET_VRING_KICK_1 SET_VRING_ENABLE_1 SET_VRING_ENABLE_0 SET_VRING_ENABLE_1 \
    GET_VRING_BASE_0 GET_VRING_BASE_1
    """
  static let cloudHypervisor = """
    SET_OWNER GET_FEATURES GET_PROTOCOL_FEATURES SET_PROTOCOL_FEATURES GET_QUEUE_NUM GET_CONFIG \
    SET_FEATURES! SET_MEM_TABLE! SET_VRING_NUM_0! SET_VRING_NUM_1! GET_INFLIGHT_FD SET_INFLIGHT_FD! \
    SET_VRING_ADDR_0! SET_VRING_BASE_0! SET_VRING_CALL_0! SET_VRING_KICK_0! SET_VRING_ADDR_1! \
    SET_VRING_BASE_1! SET_VRING_CALL_1! SET_VRING_KICK_1! SET_VRING_ENABLE_0! SET_VRING_ENABLE_1! \
    SET_VRING_ENABLE_0! SET_VRING_ENABLE_1! GET_VRING_BASE_0 GET_VRING_BASE_1
    """
  static let plain = """
    GET_FEATURES GET_PROTOCOL_FEATURES SET_PROTOCOL_FEATURES SET_OWNER! GET_QUEUE_NUM GET_MAX_MEM_SLOTS \
    SET_BACKEND_REQ_FD! GET_CONFIG SET_FEATURES! ADD_MEM_REG! GET_INFLIGHT_FD SET_INFLIGHT_FD! \
    SET_VRING_NUM_0! SET_VRING_BASE_0! SET_VRING_ADDR_0! SET_VRING_CALL_0! SET_VRING_ERR_0! \
    SET_VRING_KICK_0! SET_VRING_NUM_1! SET_VRING_BASE_1! SET_VRING_ADDR_1! SET_VRING_CALL_1! \
    SET_VRING_ERR_1! SET_VRING_KICK_1! SET_VRING_ENABLE_0! SET_VRING_ENABLE_1! SET_VRING_ENABLE_0! \
    SET_VRING_ENABLE_1! GET_VRING_BASE_0 GET_VRING_BASE_1
    """

  @Test(
    "each habit sends its front-end's messages in their order",
    arguments: [
      (Habit.plain, plain), (.qemu72, qemu72), (.cloudHypervisor, cloudHypervisor), (.crosvm, crosvm),
      (.libblkio, libblkio),
    ])
  func habits(habit: Habit, expected: String) throws {
    let (disk, toy) = try makeDisk {
      $0.driver.habit = habit
      $0.driver.queues = 2
    }
    // crosvm's messages are not answered one by one: an answer says that all came.
    try disk.connection.barrier()
    try disk.stop()
    disk.disconnect()
    var heard = toy.dialogue.map { $0.replacing(" ", with: "_") }
    // The barrier.
    let index = try #require(heard.lastIndex(of: "GET_FEATURES"))
    heard.remove(at: index)
    #expect(heard == expected.split(separator: " ").map(String.init))
  }

  func makeDisk(_ change: (inout DiskOptions) -> Void) throws -> (BlockDriver, ToyBackend) {
    try makeDisk(ToyBackend.Settings(), change)
  }

  static let cuts: [Framing] = [
    .classic, .headerSplit(1), .headerSplit(7), .headerWithData, .statusWithData, .joined, .dataPieces(3),
    .dataCuts([1, 510, 2]), .crumbs,
  ]

  @Test("every framing carries reads and writes over both rings", arguments: [false, true], cuts)
  func framings(packed: Bool, framing: Framing) throws {
    let (disk, toy) = try makeDisk { $0.driver.packed = packed }
    var variants = [framing, framing.indirect]
    if !packed { variants += [framing.mixed(direct: 1), framing.mixed(direct: 2)] }
    for (number, variant) in variants.enumerated() {
      let data = BytePattern(seed: UInt64(number) + 7).bytes(count: 1024)
      let written = try disk.perform(.write(sector: 3, data), variant)
      #expect(written == DiskResult(status: 0, usedLength: 1, input: [], overrun: false))
      #expect(Array(toy.stored[1536..<2560]) == data)
      let read = try disk.perform(.read(sector: 3, bytes: 1024), variant)
      #expect(read == DiskResult(status: 0, usedLength: 1025, input: data, overrun: false))
      try disk.flush(variant)
      #expect(try disk.getID(variant) == "toy")
    }
  }

  @Test("stop and resume, with every start of the indices", arguments: [false, true], [0, 5, 65533])
  func restart(packed: Bool, start: Int) throws {
    let (disk, _) = try makeDisk {
      $0.driver.packed = packed
      $0.driver.queueSize = 32
      $0.driver.start = packed ? (start == 65533 ? 0x001d : 0x8000 | UInt16(start)) : UInt16(start)
    }
    for round in 0..<40 {
      let data = [UInt8](repeating: UInt8(round + 1), count: 512)
      try disk.write(sector: UInt64(round), data)
      #expect(try disk.read(sector: UInt64(round), bytes: 512) == data)
      guard round % 8 == 7 else { continue }
      // The model counts chains, and knows no packed positions: the driver's own are used.
      try disk.stop()
      disk.device.bases = disk.queues.map(\.queue.ring.base)
      try disk.resume()
    }
  }

  @Test("a resumed start sets the rings up again, and keeps memory regions and the inflight region")
  func resumed() throws {
    let (disk, toy) = try makeDisk { $0.driver.habit = .qemu72 }
    try disk.flush()
    try disk.stop()
    try disk.resume()
    try disk.flush()
    try disk.connection.barrier()
    func count(_ message: String) -> Int { toy.dialogue.count { $0 == message } }
    for message in [
      "SET_VRING_NUM 0", "SET_VRING_BASE 0", "SET_VRING_ADDR 0", "SET_VRING_KICK 0", "SET_INFLIGHT_FD",
    ] {
      #expect(count(message) == 2, "\(message)")
    }
    for message in ["ADD_MEM_REG!", "GET_INFLIGHT_FD", "GET_CONFIG", "SET_OWNER"] {
      #expect(count(message) == 1, "\(message)")
    }
  }

  @Test("a refused message ends the dialogue with its name")
  func refusal() throws {
    let error = #expect(throws: FrontendError.self) {
      try makeDisk(.init(refuses: [FrontendRequest.setVringAddr.rawValue]))
    }
    #expect(error == .refused(request: FrontendRequest.setVringAddr.rawValue, value: 1))
  }

  @Test("what a habit cannot do without is missed by name")
  func required() throws {
    #expect(throws: FrontendError.notOffered(feature: "protocol features \(ProtocolBits.configureMemSlots)"))
    {
      try makeDisk(.init(protocolFeatures: 0x1_ffff & ~ProtocolBits.configureMemSlots)) {
        $0.driver.habit = .libblkio
      }
    }
    #expect(throws: FrontendError.notOffered(feature: "the packed ring")) {
      try makeDisk(.init(features: VirtioBits.driven)) { $0.driver.packed = true }
    }
    #expect(throws: FrontendError.notOffered(feature: "5 queues")) { try makeDisk { $0.driver.queues = 5 } }
  }

  @Test(
    "a back-end that dies is replaced, and what it held comes back from the next", arguments: [false, true])
  func reconnect(packed: Bool) throws {
    let (disk, first) = try makeDisk(.init(holdsRequests: true)) { $0.driver.packed = packed }
    let queue = disk.queues[0]
    let slots = try (0..<5).map {
      try queue.submit(.write(sector: UInt64($0), [UInt8](repeating: 7, count: 512)))
    }
    #expect(throws: FrontendError.timedOut(waitingFor: "used chain on queue 0")) {
      try queue.wait(for: slots[0], timeout: .milliseconds(10))
    }
    first.die()
    try disk.connection.expectClosed()

    let (front, back) = try FrontendConnection.pair()
    let second = ToyBackend(back, arena: disk.arena)
    try disk.device.reconnect(front)
    for slot in slots { #expect(try queue.wait(for: slot).status == 0) }
    #expect(Array(second.stored[0..<2560]) == [UInt8](repeating: 7, count: 2560))
    #expect(second.dialogue.contains("SET_INFLIGHT_FD!"))
    #expect(!second.dialogue.contains("GET_INFLIGHT_FD"))
  }

  @Test("a queue reported broken is an error of the wait")
  func broken() throws {
    let (disk, _) = try makeDisk(.init(holdsRequests: true)) { _ in }
    let queue = disk.queues[0]
    let slot = try queue.submit(.flush)
    queue.queue.error.ring()
    #expect(throws: FrontendError.queueBroken(index: 0)) { try queue.wait(for: slot) }
    queue.queue.error.ring()
    try queue.queue.expectError()
    #expect(throws: FrontendError.timedOut(waitingFor: "error on queue 0")) {
      try queue.queue.expectError(timeout: .milliseconds(5))
    }
  }
}
