// Many devices in one process, whose front-ends come and go: what one of them does is nothing to the others.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("Many devices in one process")
struct NeighbourTests {
  private static let devices = 64
  private static let depth = 8

  /// A process that serves so many disks of a mebibyte, each on a socket and a thread of its own.
  private func serve(in folder: TemporaryFolder) throws -> Daemon {
    let disks = try (0..<Self.devices).map { index -> [String: Any] in
      let image = try Image.make(in: folder, "\(index).img", bytes: 1 << 20)
      return [
        "device": "blk", "socket-path": folder.file("s\(index)"), "blk-file": image.path, "num-queues": 1,
      ]
    }
    let file = folder.file("config")
    try JSONSerialization.data(withJSONObject: ["devices": disks]).write(to: URL(fileURLWithPath: file))
    return try Daemon(["serve", "--config", file], in: folder, listens: false)
  }

  private func connect(_ folder: TemporaryFolder, _ index: Int) throws -> BlockDriver {
    try BlockDriver(
      path: folder.file("s\(index)"), waiting: .seconds(60), options { $0.depth = Self.depth })
  }

  /// What a round writes to a place of a device: no two are alike.
  private func data(_ index: Int, _ slot: Int, round: Int) -> [UInt8] {
    BytePattern(seed: UInt64(round << 16 | index << 8 | slot)).bytes(at: 0, count: 4096)
  }

  private func submit(_ driver: BlockDriver, _ index: Int, round: Int) throws -> [UInt16] {
    let slots = try (0..<Self.depth).map {
      try driver.queues[0].add(.write(sector: UInt64(8 * $0), data(index, $0, round: round)))
    }
    driver.queues[0].publish()
    return slots
  }

  @Test("LC14 of 64 front-ends half go at once under load: the others get every answer, and the right one")
  func halfOfThemGo() throws {
    let folder = try TemporaryFolder()
    let daemon = try serve(in: folder)
    var drivers = try (0..<Self.devices).map { try connect(folder, $0) }
    for round in 1...Environment.rounds(3) {
      let going = Set((0..<Self.devices).shuffled().prefix(Self.devices / 2))
      var staying: [(index: Int, slots: [UInt16])] = []
      for (index, driver) in drivers.enumerated() {
        let slots = try submit(driver, index, round: round)
        if going.contains(index) { driver.disconnect() } else { staying.append((index, slots)) }
      }
      for (index, slots) in staying {
        for slot in slots {
          #expect(try drivers[index].queues[0].wait(for: slot).status == DiskRequest.ok)
        }
        for place in 0..<Self.depth {
          let found = try drivers[index].read(sector: UInt64(8 * place), bytes: 4096)
          #expect(found == data(index, place, round: round), "device \(index), round \(round)")
        }
      }
      // What those wrote that are gone is there or is not, whole, and the next ones are served.
      for index in going {
        drivers[index] = try connect(folder, index)
        for place in 0..<Self.depth {
          let written = data(index, place, round: round)
          try drivers[index].write(sector: UInt64(8 * place), written)
          #expect(try drivers[index].read(sector: UInt64(8 * place), bytes: 4096) == written)
        }
      }
    }
    for driver in drivers { driver.disconnect() }
    daemon.process.signal(SIGTERM)
    #expect(try daemon.process.waitExit(within: 60) == .status(0), "\(daemon.log)")
  }
}
