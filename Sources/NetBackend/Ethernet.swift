// Addresses and frames of Ethernet, as far as this module looks into them. Values, any thread.

/// A hardware address.
public struct MACAddress: Sendable, Hashable, CustomStringConvertible {
  /// The six bytes, the first one lowest.
  public let value: UInt64

  public init(value: UInt64) { self.value = value & 0xffff_ffff_ffff }

  /// From `52:54:00:12:34:56`; nil where it is no such thing.
  public init?(_ text: String) {
    let parts = text.split(separator: ":", omittingEmptySubsequences: false)
    guard parts.count == 6 else { return nil }
    var value: UInt64 = 0
    for (index, part) in parts.enumerated() {
      guard part.utf8.count == 2, part.utf8.allSatisfy(Self.isDigit), let byte = UInt8(part, radix: 16) else {
        return nil
      }
      value |= UInt64(byte) << (8 * UInt64(index))
    }
    self.value = value
  }

  private static func isDigit(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "a")...UInt8(ascii: "f"),
      UInt8(ascii: "A")...UInt8(ascii: "F"):
      true
    default: false
    }
  }

  public var bytes: [UInt8] { (0..<6).map { UInt8(truncatingIfNeeded: value >> (8 * UInt64($0))) } }
  /// A group's address, broadcast among them: no sender's.
  public var isMulticast: Bool { value & 1 == 1 }

  public var description: String {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: ":")
  }
}

public enum EthernetFrame {
  /// Destination, source, type.
  public static let headerBytes = 14
  /// The shortest frame on a wire, without its checksum.
  static let shortest = 60

  /// A broadcast that tells every switch where a guest is: RARP's request, as QEMU sends it after a migration.
  package static func announcement(of address: MACAddress) -> [UInt8] {
    let mac = address.bytes
    var frame = [UInt8](repeating: 0xff, count: 6) + mac + [0x80, 0x35]
    // Ethernet and IPv4, 6 and 4 bytes of address, "request reverse"; no protocol addresses.
    frame += [0, 1, 8, 0, 6, 4, 0, 3] + mac + [0, 0, 0, 0] + mac + [0, 0, 0, 0]
    return frame + [UInt8](repeating: 0, count: max(0, shortest - frame.count))
  }
}
