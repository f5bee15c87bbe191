// The driver side in a program: `disk-check SOCKET` connects to a vhost-user disk, writes a pattern over split and packed rings in
// several framings, reads it back, and says what it found. Shows `VhostFrontend`; run inside a guest it shows that a back-end works
// on that guest's kernel.

import Glibc
import VhostFrontend

@main
struct DiskCheck {
  static func main() {
    guard CommandLine.arguments.count == 2 else {
      write("usage: disk-check SOCKET\n")
      exit(2)
    }
    do {
      for packed in [false, true] { try check(CommandLine.arguments[1], packed: packed) }
      write("disk-check: all was read as it was written\n")
    } catch {
      write("disk-check: \(error)\n")
      exit(1)
    }
  }

  /// One session: patterns over both queues, direct and indirect, then all of it again.
  private static func check(_ socket: String, packed: Bool) throws {
    let disk = try BlockDriver(
      path: socket,
      .with {
        $0.driver.packed = packed
        $0.driver.queues = 2
      })
    let framings: [Framing] = [.classic, .dataPieces(7), .classic.indirect, .statusWithData]
    for (i, framing) in framings.enumerated() {
      let data = BytePattern(seed: UInt64(i + (packed ? 100 : 0))).bytes(at: 0, count: 32768)
      try disk.write(sector: UInt64(64 * i), data, framing, queue: i % 2)
    }
    try disk.flush()
    for i in framings.indices {
      let data = BytePattern(seed: UInt64(i + (packed ? 100 : 0))).bytes(at: 0, count: 32768)
      guard try disk.read(sector: UInt64(64 * i), bytes: 32768, framings[i], queue: (i + 1) % 2) == data
      else {
        write("disk-check: other bytes came back at sector \(64 * i)\n")
        exit(1)
      }
    }
    _ = try disk.stop()
    disk.disconnect()
  }

  private static func write(_ text: String) {
    // SAFETY: writes from the string's own storage.
    unsafe text.withCString { unsafe _ = Glibc.write(STDOUT_FILENO, $0, strlen($0)) }
  }
}
