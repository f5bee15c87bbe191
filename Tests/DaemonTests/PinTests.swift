// Guest memory that is held in place for I/O (`--pin-guest-memory`), with the sandbox on.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

enum Pinning {
  /// A ring that lends its buffers to another: Linux 6.13.
  static let isPossible: Bool = {
    let release = (try? String(contentsOfFile: "/proc/sys/kernel/osrelease", encoding: .utf8)) ?? ""
    let numbers = release.split { !$0.isNumber }.compactMap { Int($0) }
    return numbers.count > 1 && (numbers[0], numbers[1]) >= (6, 13)
  }()
}

@Suite("Pinned memory", .enabled(if: Pinning.isPossible, "needs Linux 6.13"))
struct PinTests {
  private static let options = ["--direct", "--pin-guest-memory"]

  /// Kibibytes that the kernel holds in place for a process.
  private func pinned(_ daemon: Daemon) -> Int { ProcessFacts(daemon.process).status("VmPin") ?? -1 }

  /// Writes a pattern and reads it back; throws where it is another.
  private func transfer(_ driver: BlockDriver, _ byte: UInt8) throws {
    let data = [UInt8](repeating: byte, count: 16 << 10)
    try driver.write(sector: 64, data)
    #expect(try driver.read(sector: 64, bytes: data.count) == data)
  }

  @Test(
    "I/O goes by registered buffers while the front-end is there, whatever memory it shares, and then lets go of it"
  )
  func held() throws {
    let daemon = try Daemon.disk(Self.options)
    #expect(pinned(daemon) == 0)
    let driver = try daemon.connect()
    try transfer(driver, 1)
    let first = pinned(daemon)
    #expect(first >= 1024, "the guest's memory is held: \(first) KiB")
    let before = try daemon.counters().sum("pinned")
    #expect(before >= 2)
    // The same memory, mapped anew: what was registered names other addresses now.
    try driver.device.play(.memoryTable)
    try transfer(driver, 2)
    #expect(try daemon.counters().sum("pinned") >= before + 2)
    #expect(pinned(daemon) == first, "the memory before is let go of")
    #expect(try daemon.counters().sum("errors") == 0)
    _ = try driver.stop()
    driver.disconnect()
    try daemon.process.wait(until: "nothing is held any more", within: 30) { pinned(daemon) == 0 }
    try daemon.stop()
  }

  @Test("without it a ring takes no registered buffers, and none are made")
  func without() throws {
    let daemon = try Daemon.disk(["--direct"])
    let driver = try daemon.connect()
    try transfer(driver, 3)
    #expect(pinned(daemon) == 0)
    #expect(try daemon.counters().sum("pinned") == 0)
    driver.disconnect()
    try daemon.stop()
  }

  @Test("where the limit of locked memory is too low the guest is served all the same, and the log says why")
  func limited() throws {
    // Root without its capabilities has limits: enough for the rings, too little for the guest.
    let daemon = try Daemon.disk(
      Self.options,
      prefix: [
        "setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "prlimit", "--memlock=786432:786432",
      ])
    let driver = try daemon.connect()
    try transfer(driver, 4)
    #expect(try daemon.counters().sum("pinned") == 0)
    #expect(daemon.log.contains("RLIMIT_MEMLOCK"), "\(daemon.log)")
    driver.disconnect()
    try daemon.stop()
  }

  @Test("it goes with --direct")
  func usage() throws {
    let folder = try TemporaryFolder()
    let image = try Image.make(in: folder)
    try Run(
      ["blk", "--socket-path", "{folder}/s", "--blk-file", image.path, "--pin-guest-memory"], in: folder
    )
    .expectFailure(2, naming: ["--pin-guest-memory", "--direct"])
  }
}
