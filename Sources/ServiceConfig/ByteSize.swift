// A number of bytes as people write it, in options and in the configuration file. A value.

/// A number of bytes: 4096, 64K, 10M, 2G, 1T; powers of 1024.
public struct ByteSize: Equatable, Sendable {
  public let bytes: UInt64

  /// Nil where the text is no such number, or one that no file has: offsets are signed 64-bit numbers.
  public init?(_ text: String) {
    let units: [Character: UInt64] = ["K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40]
    let unit = text.last.flatMap { units[Character($0.uppercased())] }
    let digits = unit == nil ? Substring(text) : text.dropLast()
    guard digits.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }),
      let number = UInt64(digits)
    else { return nil }
    let (bytes, overflow) = number.multipliedReportingOverflow(by: unit ?? 1)
    guard !overflow, bytes <= UInt64(Int64.max) else { return nil }
    self.bytes = bytes
  }
}
