// Block devices as storage: their own calls for discard and zeroes, and blocks that are larger than what drivers ask for.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

/// A loop device over a file of its own, gone when the last who has it open closes it.
private final class LoopDevice {
  static let isPossible: Bool = (try? LoopDevice(bytes: 1 << 20, sectorBytes: 4096)) != nil

  let descriptor: Int32
  let name: String
  private let folder: TemporaryFolder
  /// The file underneath.
  let image: Image

  init(bytes: Int, sectorBytes: Int) throws {
    folder = try TemporaryFolder()
    image = try Image.make(in: folder, bytes: bytes)
    name = try Tool.run(
      "losetup", ["--find", "--show", "--sector-size", "\(sectorBytes)", image.path]
    ).trimmingCharacters(in: .whitespacesAndNewlines)
    descriptor = open(name, O_RDWR | O_CLOEXEC)
    // While it is open this only says that the last to close it ends it.
    try Tool.run("losetup", ["--detach", name])
    guard descriptor >= 0 else { throw HarnessError("cannot open \(name)") }
  }

  deinit { close(descriptor) }

  var allocatedBytes: Int {
    var facts = stat()
    return stat(image.path, &facts) == 0 ? Int(facts.st_blocks) * 512 : -1
  }
}

@Suite(
  "Block devices",
  .enabled(if: LoopDevice.isPossible, "needs loop devices and the right to make them: run as root"))
struct BlockDeviceTests {
  private func serve(_ device: LoopDevice, _ options: [String]) throws -> Daemon {
    try Daemon(
      ["blk", "--socket-path", "{folder}/s", "--blk-file", HeldDisk.pathInChild, "--num-queues", "2"]
        + options,
      descriptors: [device.descriptor])
  }

  @Test(
    "Requests of 512 bytes and their multiples work on a device of 4 KiB blocks, past the page cache and through it",
    arguments: [["--direct"], ["--direct", "--block-size", "512"], []], [Framing.classic, .dataPieces(3)])
  func smallRequests(options: [String], framing: Framing) throws {
    let device = try LoopDevice(bytes: 4 << 20, sectorBytes: 4096)
    let daemon = try serve(device, options)
    let driver = try daemon.connect()
    #expect(driver.config.blockSize == (options == ["--direct"] ? 4096 : 512))
    var model = try device.image.read(sector: 0, count: device.image.bytes)
    let sectors = device.image.bytes / 512
    var random = SplitMix(seed: 4096)
    for round in 0..<300 {
      let sector = Int(random.next() % UInt64(sectors - 32))
      let count = 1 + Int(random.next() % 24)
      let bytes = sector * 512..<(sector + count) * 512
      switch random.next() % 4 {
      case 0, 1:
        let data = BytePattern(seed: UInt64(round)).bytes(at: 0, count: bytes.count)
        #expect(
          try driver.perform(.write(sector: UInt64(sector), data), framing).status == DiskRequest.ok)
        model.replaceSubrange(bytes, with: data)
      case 2:
        let segment = DiskSegment(
          sector: UInt64(sector), sectors: UInt32(count), flags: UInt32(random.next() % 2))
        #expect(try driver.perform(.writeZeroes([segment])).status == DiskRequest.ok, "round \(round)")
        model.replaceSubrange(bytes, with: repeatElement(0, count: bytes.count))
      default:
        let result = try driver.perform(.read(sector: UInt64(sector), bytes: bytes.count), framing)
        #expect(result.status == DiskRequest.ok && result.input == Array(model[bytes]), "round \(round)")
      }
    }
    try driver.flush()
    #expect(try driver.read(sector: 0, bytes: model.count) == model)
    #expect(try device.image.read(sector: 0, count: model.count) == model)
    #expect(try daemon.counters().sum("bounced") > 100 || options.isEmpty)
    try daemon.stop()
  }

  @Test("Parts of one block that two queues write and zero at the same time do not undo each other")
  func neighbours() throws {
    let device = try LoopDevice(bytes: 1 << 20, sectorBytes: 4096)
    let daemon = try serve(device, ["--direct", "--threads", "2"])
    let driver = try daemon.connect { $0.driver.queues = 2 }
    var model = try device.image.read(sector: 0, count: device.image.bytes)
    for round in 0..<200 {
      let sector = round * 2 % 1024
      let data = BytePattern(seed: UInt64(round)).bytes(at: 0, count: 512)
      let zeroes = round % 3 == 0
      let first = try driver.queues[0].submit(.write(sector: UInt64(sector), data))
      let second = try driver.queues[1].submit(
        zeroes
          ? .writeZeroes([DiskSegment(sector: UInt64(sector + 1), sectors: 1)])
          : .write(sector: UInt64(sector + 1), data.reversed()))
      #expect(try driver.queues[0].wait(for: first).status == DiskRequest.ok)
      #expect(try driver.queues[1].wait(for: second).status == DiskRequest.ok)
      model.replaceSubrange(sector * 512..<(sector + 1) * 512, with: data)
      model.replaceSubrange(
        (sector + 1) * 512..<(sector + 2) * 512,
        with: zeroes ? [UInt8](repeating: 0, count: 512) : data.reversed())
    }
    #expect(try driver.read(sector: 0, bytes: model.count) == model)
    try daemon.stop()
  }

  @Test(
    "What is discarded, or zeroed with leave to unmap, returns to the file system underneath, whole blocks alone",
    arguments: [512, 4096], [["--direct"], []])
  func discards(sectorBytes: Int, options: [String]) throws {
    let device = try LoopDevice(bytes: 4 << 20, sectorBytes: sectorBytes)
    let daemon = try serve(device, options)
    let driver = try daemon.connect()
    let before = device.allocatedBytes
    #expect(before >= 4 << 20)
    // All sectors but the first and the last: neither the first nor the last block is whole where a block is 4 KiB.
    try driver.discard([DiskSegment(sector: 1, sectors: 8190)])
    try driver.flush()
    #expect(device.allocatedBytes < 1 << 20, "\(device.allocatedBytes) of \(before)")
    for sector in [0, 8191] {
      #expect(
        try driver.read(sector: UInt64(sector), bytes: 512) == device.image.read(sector: sector, count: 512))
      #expect(try driver.read(sector: UInt64(sector), bytes: 512)[0] == UInt8(truncatingIfNeeded: sector))
    }
    try driver.write(sector: 4096, [UInt8](repeating: 1, count: 1 << 20))
    try driver.flush()
    let written = device.allocatedBytes
    try driver.writeZeroes([DiskSegment(sector: 4096, sectors: 2048, flags: 1)])
    try driver.flush()
    #expect(try driver.read(sector: 4096, bytes: 1 << 20) == [UInt8](repeating: 0, count: 1 << 20))
    #expect(device.allocatedBytes <= written)
    // Less than a block is no error, and nothing is given back.
    try driver.discard([DiskSegment(sector: 6145, sectors: 1)])
    #expect(try daemon.counters().sum("errors") == 0)
    try daemon.stop()
  }

  @Test("With --watch-size a device that grows is noticed within seconds, and its new end can be used")
  func grows() throws {
    let device = try LoopDevice(bytes: 4 << 20, sectorBytes: 512)
    let daemon = try serve(device, ["--watch-size"])
    let driver = try daemon.connect {
      $0.driver.protocolFeatures = ProtocolBits.config | ProtocolBits.replyAck
    }
    #expect(driver.config.capacity == 8192)
    #expect(truncate(device.image.path, 6 << 20) == 0)
    try Tool.run("losetup", ["--set-capacity", device.name])
    try daemon.process.wait(until: "the new capacity", within: 30) {
      try driver.refreshConfig().capacity == 12288
    }
    try driver.write(sector: 12287, [UInt8](repeating: 5, count: 512))
    #expect(try driver.read(sector: 12287, bytes: 512) == [UInt8](repeating: 5, count: 512))
    try daemon.stop()
  }

  @Test("Memory that requests are copied through is kept out of core dumps, and is no more than a mebibyte")
  func bounceMemory() throws {
    let device = try LoopDevice(bytes: 16 << 20, sectorBytes: 4096)
    let daemon = try serve(device, ["--direct"])
    let driver = try daemon.connect { $0.dataBytes = 6 << 20 }
    let facts = ProcessFacts(daemon.process)
    /// How many private mappings of a mebibyte stay out of core dumps.
    func kept() -> Int {
      let smaps = facts.text("smaps")
      var isPrivate = false
      var isMebibyte = false
      return smaps.split(separator: "\n").reduce(0) { count, line in
        let words = line.split(separator: " ")
        if words.count >= 5, words[0].contains("-"), words[1].count == 4 {
          isPrivate = words[1] == "rw-p" && words.count == 5
        }
        if words.first == "Size:" { isMebibyte = words[1] == "1024" }
        return words.first == "VmFlags:" && isPrivate && isMebibyte && words.contains("dd")
          ? count + 1 : count
      }
    }
    #expect(kept() == 0)
    let own = facts.status("RssAnon") ?? 0
    let data = BytePattern(seed: 8).bytes(at: 0, count: 5 << 20)
    #expect(try driver.perform(.write(sector: 3, data)).status == DiskRequest.ok)
    let result = try driver.perform(.read(sector: 3, bytes: 5 << 20))
    #expect(result.status == DiskRequest.ok && result.input == data)
    #expect(kept() == 1)
    #expect((facts.status("RssAnon") ?? 0) - own < 2048, "kilobytes")
    try daemon.stop()
  }
}
