// The options that limit what a device moves. The same for every device; which of them it has is its command's affair.

import ArgumentParser
import DeviceKit
import ServiceConfig

/// A rate as a person writes it: 5000, or 5000,burst=20000.
struct RateArgument: Equatable {
  let rate: Rate

  /// `number` reads one of its two numbers.
  private init(_ text: String, _ number: (String) throws -> UInt64) throws {
    let parts = text.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
    let perSecond = try number(parts[0])
    var burst: UInt64?
    if parts.count > 1 {
      guard parts.count == 2, parts[1].hasPrefix("burst=") else {
        throw ValidationError("expected a rate, or a rate and its burst: 5000,burst=20000")
      }
      burst = try number(String(parts[1].dropFirst("burst=".count)))
    }
    guard perSecond > 0, burst != 0 else { throw ValidationError("expected numbers above 0") }
    rate = Rate(perSecond: perSecond, burst: burst)
  }

  static func count(_ text: String) throws -> RateArgument {
    try RateArgument(text) { number in
      guard number.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }),
        let value = UInt64(number), value <= 1_000_000_000_000
      else { throw ValidationError("expected a number a second, such as 5000, up to 10^12") }
      return value
    }
  }

  static func bytes(_ text: String) throws -> RateArgument {
    try RateArgument(text) { number in
      let value = try ByteSize(parsing: number).bytes
      guard value <= 1_000_000_000_000_000 else {
        throw ValidationError("expected bytes a second, such as 100M, up to 10^15")
      }
      return value
    }
  }
}

/// Limits of a disk.
struct DiskLimitOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Requests a second at most, of all queues together; `,burst=N`: how many may go at once after a pause (default: what "
        + "0.1 s brings). A flush and the serial do not count.", valueName: "rate[,burst=n]"),
    transform: RateArgument.count)
  var iops: RateArgument?

  @Option(
    help: ArgumentHelp("The same, of reads.", valueName: "rate[,burst=n]"), transform: RateArgument.count)
  var iopsRead: RateArgument?

  @Option(
    help: ArgumentHelp("The same, of writes, discards and zeroings.", valueName: "rate[,burst=n]"),
    transform: RateArgument.count)
  var iopsWrite: RateArgument?

  @Option(
    help: ArgumentHelp("Bytes a second at most: 100M, or 100M,burst=1G.", valueName: "rate[,burst=n]"),
    transform: RateArgument.bytes)
  var bandwidth: RateArgument?

  @Option(
    help: ArgumentHelp("The same, of reads.", valueName: "rate[,burst=n]"), transform: RateArgument.bytes)
  var bandwidthRead: RateArgument?

  @Option(
    help: ArgumentHelp("The same, of writes.", valueName: "rate[,burst=n]"), transform: RateArgument.bytes)
  var bandwidthWrite: RateArgument?

  var limits: RateLimits {
    RateLimits(
      requests: .init(total: iops?.rate, read: iopsRead?.rate, write: iopsWrite?.rate),
      bytes: .init(total: bandwidth?.rate, read: bandwidthRead?.rate, write: bandwidthWrite?.rate))
  }
}

/// Limits of a network card.
struct NetLimitOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Frames a second at most, both ways and of all queues together; `,burst=N`: how many may go at once after a pause "
        + "(default: what 0.1 s brings). A frame that is yet to be cut into segments is one.",
      valueName: "rate[,burst=n]"),
    transform: RateArgument.count)
  var pps: RateArgument?

  @Option(
    help: ArgumentHelp("The same, of what the guest receives.", valueName: "rate[,burst=n]"),
    transform: RateArgument.count)
  var ppsReceive: RateArgument?

  @Option(
    help: ArgumentHelp("The same, of what the guest sends.", valueName: "rate[,burst=n]"),
    transform: RateArgument.count)
  var ppsSend: RateArgument?

  @Option(
    help: ArgumentHelp(
      "Bytes of frames a second at most: 100M, or 100M,burst=1G.", valueName: "rate[,burst=n]"),
    transform: RateArgument.bytes)
  var bandwidth: RateArgument?

  @Option(
    help: ArgumentHelp("The same, of what the guest receives.", valueName: "rate[,burst=n]"),
    transform: RateArgument.bytes)
  var bandwidthReceive: RateArgument?

  @Option(
    help: ArgumentHelp("The same, of what the guest sends.", valueName: "rate[,burst=n]"),
    transform: RateArgument.bytes)
  var bandwidthSend: RateArgument?

  var limits: RateLimits {
    RateLimits(
      requests: .init(total: pps?.rate, read: ppsReceive?.rate, write: ppsSend?.rate),
      bytes: .init(total: bandwidth?.rate, read: bandwidthReceive?.rate, write: bandwidthSend?.rate))
  }
}

/// What of a device's arguments may change while it runs.
enum Limits {
  private static let prefixes = ["--iops", "--pps", "--bandwidth"]

  /// The arguments that a running device cannot change.
  static func fixed(_ arguments: [String]) -> [String] {
    arguments.filter { argument in !prefixes.contains { argument.hasPrefix($0) } }
  }
}
