// Requests that lie side by side on the storage and are moved by one operation: each still means what it means by itself.

import BlockBackend
import DeviceKit
import Foundation
import Testing

@Suite("merging")
struct MergeTests {
  /// One request of a batch.
  private struct Request {
    var type: UInt32 = 0
    var sector: Int
    var bytes = 4096
    /// The first byte that is written, all of them in a run.
    var fill: UInt8 = 0
  }

  private struct Answer {
    var status: UInt8
    var used: UInt32
    var data: [UInt8]
  }

  /// Sends requests so that the queue's thread finds them in one turn; their answers, in the requests' order.
  private func send(_ requests: [Request], _ disk: Disk) throws -> [Answer] {
    disk.host.setEnabled(0, false)
    var heads: [UInt16] = []
    for (i, request) in requests.enumerated() {
      let header = disk.header + 32 * i
      disk.queue.pointer(header).storeBytes(of: request.type, as: UInt32.self)
      disk.queue.pointer(header).storeBytes(of: UInt64(request.sector), toByteOffset: 8, as: UInt64.self)
      disk.queue.pointer(header + 24).storeBytes(of: 0xee, as: UInt8.self)
      disk.fill(place(i, disk), request.bytes, request.type == 1 ? request.fill : 0xdd)
      heads.append(
        disk.queue.add([
          (header, 16, false), (place(i, disk), request.bytes, request.type == 0), (header + 24, 1, true),
        ]))
    }
    disk.host.setEnabled(0, true)
    var used: [UInt16: UInt32] = [:]
    for _ in requests {
      let element = try #require(disk.queue.waitUsed())
      used[element.head] = element.length
    }
    return try requests.indices.map { i in
      Answer(
        status: disk.bytes(disk.header + 32 * i + 24, 1)[0], used: try #require(used[heads[i]]),
        data: disk.bytes(place(i, disk), requests[i].bytes))
    }
  }

  private func place(_ index: Int, _ disk: Disk) -> Int { disk.data + index * (136 << 10) }

  private func merged(_ disk: Disk) throws -> UInt64 {
    try #require(disk.host.counters[0].snapshot.first { $0.name == "merged" }).value
  }

  /// What sector `n` holds at the beginning.
  private func content(_ sector: Int, _ bytes: Int) -> [UInt8] {
    (0..<bytes).map { UInt8(truncatingIfNeeded: sector + $0 / 512) }
  }

  @Test("reads side by side are one operation, and each gets its own bytes", arguments: [false, true])
  func reads(direct: Bool) throws {
    let disk = try Disk(direct: direct)
    let sectors = [8, 16, 24, 32, 104, 112, 8, 304]
    let answers = try send(sectors.map { Request(sector: $0) }, disk)
    for (sector, answer) in zip(sectors, answers) {
      #expect(answer.status == 0 && answer.used == 4097)
      #expect(answer.data == content(sector, 4096))
    }
    #expect(try merged(disk) == 4)
  }

  @Test(
    "writes side by side are one operation, in place too",
    arguments: [("", false), ("", true), ("/dev/shm", false)])
  func writes(folder: String, direct: Bool) throws {
    let disk = try Disk(at: folder.isEmpty ? NSTemporaryDirectory() : folder, direct: direct)
    let requests = (0..<6).map { Request(type: 1, sector: 40 + 8 * $0, fill: UInt8(0x40 + $0)) }
    for answer in try send(requests, disk) { #expect(answer.status == 0 && answer.used == 1) }
    #expect(try merged(disk) == 5)
    let file = disk.contents
    for (i, request) in requests.enumerated() {
      let start = request.sector * 512
      #expect(file[start..<start + 4096].allSatisfy { $0 == UInt8(0x40 + i) })
    }
    #expect(file[39 * 512] == 39 && file[88 * 512] == 88)
  }

  @Test("what goes wrong is told of the request that it happened to, and of no other")
  func truncated() throws {
    let disk = try Disk()
    try FileHandle(forWritingTo: URL(fileURLWithPath: disk.path)).truncate(atOffset: 3 * 4096 + 512)
    let answers = try send((0..<6).map { Request(sector: 8 * $0) }, disk)
    #expect(answers.map(\.status) == [0, 0, 0, 1, 1, 1])
    for i in 0..<3 { #expect(answers[i].data == content(8 * i, 4096) && answers[i].used == 4097) }
    #expect(try merged(disk) == 5)
  }

  @Test("reads and writes are not mixed, nor does an operation grow without bound")
  func bounds() throws {
    let disk = try Disk()
    let mixed = [
      Request(sector: 0), Request(type: 1, sector: 8, fill: 7), Request(sector: 16), Request(sector: 0),
    ]
    for answer in try send(mixed, disk) { #expect(answer.status == 0) }
    #expect(try merged(disk) == 0)
    let large = (0..<3).map { Request(sector: 256 * $0 + 256, bytes: 128 << 10) }
    for (request, answer) in zip(large, try send(large, disk)) {
      #expect(answer.status == 0 && answer.data == content(request.sector, 128 << 10))
    }
    #expect(try merged(disk) == 1)
  }
}
