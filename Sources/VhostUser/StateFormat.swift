// A device's state as it travels: bytes that say what they are, whose they are, how many, and whether they are whole. Values.
//
//    0  u64  "vhswstat"
//    8  u16  version, 1
//   10  u16  the virtio device id
//   12  u32  bytes in all
//   16       fields, by ascending number: {u16 number, u16 bytes, bytes}
//    …  u32  CRC-32 (IEEE) of all before it
//
// Another build must read it: a number that means something else, or a field that cannot be left out, is another version.

import DeviceKit

/// Why bytes are no state of a device.
package enum StateFormatError: Error, Equatable {
  case tooShort(Int)
  case notOurs
  case otherVersion(UInt16)
  case otherDevice(UInt16)
  case badLength(said: UInt32, got: Int)
  case badChecksum
  case badField(number: UInt16)
}

package enum StateFormat {
  private static let mark: UInt64 = 0x7461_7473_7773_6876
  private static let version: UInt16 = 1
  private static let headerBytes = 16
  /// No state is longer: a pipe takes so much in one piece.
  package static let limit = 4096

  package static func bytes(of state: DeviceState, device: UInt16) -> [UInt8] {
    var fields = PayloadWriter()
    for (number, bytes) in state.fields.sorted(by: { $0.key < $1.key }) {
      fields.u16(number)
      fields.u16(UInt16(bytes.count))
      fields.append(bytes)
    }
    var writer = PayloadWriter()
    writer.u64(mark)
    writer.u16(version)
    writer.u16(device)
    writer.u32(UInt32(headerBytes + fields.bytes.count + 4))
    writer.append(fields.bytes)
    writer.u32(checksum(writer.bytes[...]))
    return writer.bytes
  }

  package static func state(in bytes: [UInt8], device: UInt16) throws(StateFormatError) -> DeviceState {
    guard bytes.count >= headerBytes + 4, bytes.count <= limit else { throw .tooShort(bytes.count) }
    var reader = PayloadReader(bytes)
    guard reader.u64() == mark else { throw .notOurs }
    let (version, owner, length) = (reader.u16(), reader.u16(), reader.u32())
    guard version == Self.version else { throw .otherVersion(version) }
    guard owner == device else { throw .otherDevice(owner) }
    guard Int(length) == bytes.count else { throw .badLength(said: length, got: bytes.count) }
    let body = bytes[..<(bytes.count - 4)]
    var tail = PayloadReader(Array(bytes[body.endIndex...]))
    guard tail.u32() == checksum(body) else { throw .badChecksum }
    return try fields(in: Array(body[headerBytes...]))
  }

  private static func fields(in bytes: [UInt8]) throws(StateFormatError) -> DeviceState {
    var state = DeviceState()
    var at = 0
    while at < bytes.count {
      var reader = PayloadReader(Array(bytes[at..<min(bytes.count, at + 4)]))
      let (number, count) = (reader.u16(), Int(reader.u16()))
      guard bytes.count - at >= 4 + count, state.set(number, bytes: Array(bytes[(at + 4)..<(at + 4 + count)]))
      else { throw .badField(number: number) }
      at += 4 + count
    }
    return state
  }

  /// Told from a state that was cut, joined or mixed up, not from one that somebody made.
  private static func checksum(_ bytes: ArraySlice<UInt8>) -> UInt32 {
    ~bytes.reduce(UInt32.max) { sum, byte in
      (0..<8).reduce(sum ^ UInt32(byte)) { value, _ in
        value & 1 == 1 ? value >> 1 ^ 0xedb8_8320 : value >> 1
      }
    }
  }
}
