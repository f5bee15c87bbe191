// Guest memory that is given back and taken again while a disk works in it: a balloon, virtio-mem, free page reporting. The
// pages that come back are others; whoever had pinned the old ones would read and write memory that nobody sees.

import CLinux
import Foundation
import Testing
import VhostFrontend

@Suite("holes in guest memory")
struct BalloonJourneys {
  /// Gives the data buffers of a queue back to the host; what the guest sees there are zeros.
  private func punch(_ disk: BlockDriver) throws {
    let queue = disk.queues[0]
    for slot in 0..<UInt16(queue.depth) {
      let address = queue.dataAddress(of: slot)
      let region = try #require(disk.arena.regions.last { $0.guestAddress <= address })
      let file = try #require(disk.arena.files[region.file]).raw
      let offset = Int64(region.fileOffset + address - region.guestAddress)
      let mode = Int32(CLX_FALLOC_PUNCH_HOLE | CLX_FALLOC_KEEP_SIZE)
      #expect(clx_fallocate(file, mode, offset, Int64(queue.dataBytes)) == 0)
      #expect(try disk.arena.read(at: address, count: 512) == [UInt8](repeating: 0, count: 512))
    }
  }

  @Test("reads and writes carry the right data after each hole", arguments: [false, true])
  func holes(packed: Bool) throws {
    let image = try Image()
    let backend = try Backend(try image.device())
    let disk = try BlockDriver(
      path: backend.socket, RingKind(packed: packed, eventIndex: true, size: 128).options())
    for round in 0..<20 {
      let data = BytePattern(seed: UInt64(round)).bytes(at: 0, count: 16384)
      try punch(disk)
      // Into pages that are new to both sides, and, the second time, into those of the request before.
      try disk.write(sector: UInt64(64 * round), data)
      #expect(try image.bytes(sector: 64 * round, count: 16384) == data)
      try punch(disk)
      #expect(try disk.read(sector: UInt64(64 * round), bytes: 16384) == data)
      #expect(try disk.read(sector: UInt64(64 * round), bytes: 16384) == data)
    }
    #expect(try disk.arena.damagedGuards().isEmpty)
    disk.disconnect()
  }
}
