// Requests as virtio 1.3 §5.2.6 has them, and as a hostile driver does (the BK lines of the hostile cases).

import BlockBackend
import DeviceKit
import Foundation
import Testing

@Suite("block requests")
struct RequestTests {
  @Test("a read returns the sector's bytes and counts them with the status")
  func read() throws {
    let disk = try Disk()
    let answer = try disk.request(0, sector: 7, data: 1024)
    #expect(answer == (0, 1025))
    #expect(
      disk.bytes(disk.data, 1024) == [UInt8](repeating: 7, count: 512) + [UInt8](repeating: 8, count: 512))
  }

  @Test("a write changes exactly its sectors")
  func write() throws {
    let disk = try Disk()
    let before = disk.contents
    disk.fill(disk.data, 512, 0xab)
    #expect(try disk.request(1, sector: 9, data: 512, writable: false) == (0, 1))
    var expected = before
    expected.replaceSubrange(9 * 512..<10 * 512, with: repeatElement(0xab, count: 512))
    #expect(disk.contents == expected)
  }

  @Test("a flush reaches the storage and is counted", arguments: [UInt32(4), 5])
  func flush(type: UInt32) throws {
    let disk = try Disk()
    #expect(try disk.request(type) == (0, 1))
    let syncs = disk.host.counters[0].snapshot.first { $0.name == "syncs" }
    #expect(syncs?.value == 1)
  }

  @Test("BK11 a flush with data and a sector is a flush")
  func flushWithData() throws {
    let disk = try Disk()
    let before = disk.contents
    #expect(try disk.request(4, sector: 5, data: 512, writable: false) == (0, 1))
    #expect(disk.contents == before)
  }

  @Test("BK01 a header in sixteen pieces works, a short one is an error")
  func headerPieces() throws {
    let disk = try Disk()
    disk.writeHeader(0, sector: 3)
    var pieces = (0..<16).map { (disk.header + $0, 1, false) }
    pieces += [(disk.data, 512, true), (disk.status, 1, true)]
    #expect(try disk.send(pieces) == 513)
    #expect(disk.statusByte == 0)
    #expect(disk.bytes(disk.data, 512) == [UInt8](repeating: 3, count: 512))

    disk.writeHeader(0, sector: 3)
    #expect(try disk.send([(disk.header, 15, false), (disk.data, 512, true), (disk.status, 1, true)]) == 0)
    #expect(disk.statusByte == 1)
  }

  @Test("BK01 a writable header is an error, with nothing moved")
  func writableHeader() throws {
    let disk = try Disk()
    disk.writeHeader(1, sector: 3)
    let before = disk.contents
    #expect(try disk.send([(disk.header, 16, true), (disk.status, 1, true)]) == 0)
    #expect(disk.statusByte == 1)
    #expect(disk.contents == before)
  }

  @Test("BK02 a chain with no byte to write comes back with length 0 and is counted")
  func noStatus() throws {
    let disk = try Disk()
    disk.writeHeader(0, sector: 0)
    #expect(try disk.send([(disk.header, 16, false)]) == 0)
    #expect(try disk.send([(disk.header, 16, false), (disk.data, 512, false), (disk.status, 1, false)]) == 0)
    #expect(disk.host.counters[0].snapshot.first { $0.name == "malformed" }?.value == 2)
  }

  @Test("BK02 the status may be the last byte of the data's descriptor")
  func statusInData() throws {
    let disk = try Disk()
    disk.writeHeader(0, sector: 5)
    disk.fill(disk.data, 513, 0xee)
    #expect(try disk.send([(disk.header, 16, false), (disk.data, 513, true)]) == 513)
    #expect(disk.bytes(disk.data, 513) == [UInt8](repeating: 5, count: 512) + [0])
  }

  @Test("header and data may share a descriptor, and data be cut at odd places")
  func oddPieces() throws {
    let disk = try Disk()
    let at = disk.data
    disk.writeHeader(1, sector: 11)
    memcpy(disk.queue.pointer(at), disk.queue.pointer(disk.header), 16)
    disk.fill(at + 16, 1024, 0x5a)
    #expect(
      try disk.send([
        (at, 16 + 7, false), (at + 23, 500, false), (at + 523, 517, false), (disk.status, 1, true),
      ]) == 1)
    #expect(disk.statusByte == 0)
    #expect(disk.contents[11 * 512..<13 * 512] == Data(repeating: 0x5a, count: 1024))
  }

  @Test(
    "BK03 nothing past the end of the disk is touched",
    arguments: [
      (UInt64(Disk.sectors), 512), (UInt64(Disk.sectors - 1), 1024), (UInt64.max, 512),
      (UInt64.max / 512, 512),
      (UInt64(1) << 55, 512), ((UInt64(1) << 55) - 1, 1024),
    ])
  func pastTheEnd(sector: UInt64, length: Int) throws {
    let disk = try Disk()
    let before = disk.contents
    #expect(try disk.request(0, sector: sector, data: length) == (1, 0))
    #expect(try disk.request(1, sector: sector, data: length, writable: false) == (1, 1))
    #expect(disk.contents == before)
  }

  @Test("the last sector can be read and written")
  func lastSector() throws {
    let disk = try Disk()
    #expect(try disk.request(0, sector: UInt64(Disk.sectors - 1), data: 512) == (0, 513))
    #expect(try disk.request(1, sector: UInt64(Disk.sectors - 1), data: 512, writable: false) == (0, 1))
  }

  @Test("BK04 data that is no multiple of 512 is an error and writes nothing", arguments: [1, 511, 513])
  func oddLength(length: Int) throws {
    let disk = try Disk()
    let before = disk.contents
    #expect(try disk.request(1, sector: 0, data: length, writable: false).status == 1)
    #expect(try disk.request(0, sector: 0, data: length).status == 1)
    #expect(disk.contents == before)
  }

  @Test(
    "BK05 BK19 unknown, SCSI, zoned, lifetime and erase requests are unsupported",
    arguments: [2, 3, 6, 7, 9, 10, 12, 14, 15, 16, 18, 20, 22, 24, 26, 0x7fff_ffff])
  func unsupported(type: UInt32) throws {
    let disk = try Disk()
    #expect(try disk.request(type, data: 512) == (2, 0))
  }

  @Test("BK05 the legacy barrier bit is passed over")
  func barrier() throws {
    let disk = try Disk()
    #expect(try disk.request(1 << 31, sector: 2, data: 512) == (0, 513))
  }

  @Test("BK06 a read-only disk refuses writes and stays as it is")
  func readOnly() throws {
    let disk = try Disk(readOnly: true)
    let before = try FileManager.default.attributesOfItem(atPath: disk.path)[.modificationDate] as? Date
    #expect(try disk.request(1, sector: 0, data: 512, writable: false) == (1, 1))
    let after = try FileManager.default.attributesOfItem(atPath: disk.path)[.modificationDate] as? Date
    #expect(before == after)
    #expect(disk.device.features.contains(FeatureSet(bit: 5)))
    #expect(try disk.request(0, sector: 1, data: 512) == (0, 513))
  }

  @Test("BK10 the serial fits what room there is, and the rest is zero", arguments: [0, 5, 19, 20, 21, 4096])
  func serial(room: Int) throws {
    let disk = try Disk(serial: "0123456789abcdefghijKLM")
    disk.fill(disk.data, 4096, 0xee)
    #expect(try disk.request(8, data: room) == (0, UInt32(room) + 1))
    let text = Array("0123456789abcdefghij".utf8) + [UInt8](repeating: 0, count: 4096)
    #expect(disk.bytes(disk.data, room) == Array(text.prefix(room)))
  }

  @Test("BK10 the serial may be scattered")
  func scatteredSerial() throws {
    let disk = try Disk(serial: "abc")
    disk.writeHeader(8, sector: 0)
    #expect(
      try disk.send([
        (disk.header, 16, false), (disk.data, 2, true), (disk.data + 100, 18, true), (disk.status, 1, true),
      ])
        == 21)
    #expect(disk.bytes(disk.data, 2) + disk.bytes(disk.data + 100, 3) == Array("abc".utf8) + [0, 0])
  }

  @Test("BK13 an image that was cut short under us is an I/O error, never a fault")
  func truncated() throws {
    let disk = try Disk()
    try FileHandle(forWritingTo: URL(fileURLWithPath: disk.path)).truncate(atOffset: 4096)
    #expect(try disk.request(0, sector: 100, data: 512) == (1, 0))
    #expect(try disk.request(0, sector: 0, data: 8192) == (1, 0))
    #expect(try disk.request(0, sector: 0, data: 4096) == (0, 4097))
  }

  @Test("BK18 data in the wrong direction is an error, and neither side changes")
  func wrongDirection() throws {
    let disk = try Disk()
    let before = disk.contents
    disk.fill(disk.data, 512, 0xcd)
    #expect(try disk.request(0, sector: 1, data: 512, writable: false) == (1, 1))
    #expect(try disk.request(1, sector: 1, data: 512, writable: true) == (1, 0))
    #expect(disk.contents == before)
    #expect(disk.bytes(disk.data, 512) == [UInt8](repeating: 0xcd, count: 512))
  }

  @Test("BK14 a request of more segments than were advertised is served")
  func manySegments() throws {
    let disk = try Disk(queueSize: 2048)
    disk.writeHeader(0, sector: 0)
    var pieces: [(Int, Int, Bool)] = [(disk.header, 16, false)]
    for i in 0..<1536 { pieces.append((disk.data + 512 * i, 512, true)) }
    pieces.append((disk.status, 1, true))
    #expect(try disk.send(pieces) == 1536 * 512 + 1)
    #expect(disk.statusByte == 0)
    #expect(disk.bytes(disk.data, 1536 * 512) == Array(disk.contents.prefix(1536 * 512)))
  }

  @Test("a disk without storage answers and moves nothing")
  func nullDisk() throws {
    let disk = try Disk(null: true)
    disk.fill(disk.data, 512, 0xcd)
    #expect(try disk.request(0, sector: 1, data: 512) == (0, 513))
    #expect(disk.bytes(disk.data, 512) == [UInt8](repeating: 0xcd, count: 512))
    #expect(try disk.request(1, sector: 1, data: 512, writable: false) == (0, 1))
    #expect(try disk.request(4) == (0, 1))
    #expect(try disk.request(0, sector: UInt64(Disk.sectors), data: 512).status == 1)
  }

  @Test("requests with no data at all succeed")
  func emptyRead() throws {
    let disk = try Disk()
    #expect(try disk.request(0, sector: 0) == (0, 1))
    #expect(try disk.request(1, sector: 0) == (0, 1))
  }
}
