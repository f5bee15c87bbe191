// Requests that are others once they have been read: after the first, second, … look at its header, or at its ranges, both say
// something else. A device that looked once more, to check one value and use the other, would be seen by what it does.

import DeviceKit
import Foundation
import HostIO
import TestSupport
import Testing
import VirtQueue

@Suite("requests that change once they are read", .enabled(if: Trap.isSupported, "needs an x86-64 processor"))
struct DoubleFetchTests {
  /// Sends a chain whose header page changes after the queue thread's `turn`th look at it. Returns how many looks there were.
  private func send(
    _ disk: Disk, _ pieces: [(offset: Int, length: Int, writable: Bool)], turn: Int,
    change: @escaping () -> Void
  ) throws -> Int {
    let page = UnsafeMutableRawBufferPointer(start: disk.queue.pointer(disk.header), count: 4096)
    var looks = 0
    try Trap.watch(
      [page],
      on: { body in
        _ = disk.thread.attempt(
          SandboxAct("watch memory") {
            body()
            return 0
          })
      },
      after: { access in
        guard !access.isWrite else { return }
        looks += 1
        if looks == turn { change() }
      }
    ) { _ = try disk.send(pieces) }
    return looks
  }

  private func setHeader(_ disk: Disk, _ type: UInt32, _ sector: UInt64) {
    disk.queue.pointer(disk.header).storeBytes(of: type, as: UInt32.self)
    disk.queue.pointer(disk.header).storeBytes(of: sector, toByteOffset: 8, as: UInt64.self)
  }

  @Test("MM16: a write is checked and done by one look at its header", arguments: 1...4)
  func write(turn: Int) throws {
    let disk = try Disk()
    let before = disk.contents
    disk.fill(disk.data, 512, 0xab)
    disk.writeHeader(1, sector: 5)
    let looks = try send(
      disk, [(disk.header, 16, false), (disk.data, 512, false), (disk.status, 1, true)], turn: turn
    ) { setHeader(disk, 1, 1 << 20) }
    #expect((1...2).contains(looks), "\(looks) looks at 16 bytes")
    var after = before
    after.replaceSubrange(5 * 512..<6 * 512, with: repeatElement(0xab, count: 512))
    // The image has the size it had, in every case.
    #expect(disk.contents == (disk.statusByte == 0 ? after : before))
    #expect(disk.statusByte == (turn < looks ? disk.statusByte : 0))
  }

  @Test("MM16: a read never becomes a write", arguments: 1...4)
  func read(turn: Int) throws {
    let disk = try Disk()
    let before = disk.contents
    disk.fill(disk.data, 512, 0xcd)
    disk.writeHeader(0, sector: 5)
    let looks = try send(
      disk, [(disk.header, 16, false), (disk.data, 512, true), (disk.status, 1, true)], turn: turn
    ) { setHeader(disk, 1, 7) }
    #expect(disk.contents == before)
    if turn >= looks {
      #expect(disk.statusByte == 0 && disk.bytes(disk.data, 512) == [UInt8](repeating: 5, count: 512))
    }
  }

  @Test("MM16: ranges are checked and zeroed by one look at them", arguments: 1...6)
  func ranges(turn: Int) throws {
    let disk = try Disk()
    let before = disk.contents
    let range = disk.header + 128
    func setRange(_ sector: UInt64, _ sectors: UInt32) {
      disk.queue.pointer(range).storeBytes(of: sector, as: UInt64.self)
      disk.queue.pointer(range).storeBytes(of: sectors, toByteOffset: 8, as: UInt32.self)
      disk.queue.pointer(range).storeBytes(of: 0, toByteOffset: 12, as: UInt32.self)
    }
    setRange(5, 1)
    disk.writeHeader(13, sector: 0)
    let looks = try send(
      disk, [(disk.header, 16, false), (range, 16, false), (disk.status, 1, true)], turn: turn
    ) { setRange(2040, 4096) }
    var after = before
    after.replaceSubrange(5 * 512..<6 * 512, with: repeatElement(0, count: 512))
    #expect(disk.contents == (disk.statusByte == 0 ? after : before))
    if turn >= looks { #expect(disk.statusByte == 0) }
  }
}
