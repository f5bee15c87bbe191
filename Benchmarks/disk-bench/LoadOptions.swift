// What a run of the load generator is to do, from the command line. The main thread.

import Foundation
import VhostFrontend

enum LoadError: Error, CustomStringConvertible {
  case usage(String)
  case diskTooSmall(bytes: UInt64)
  case badStatus(UInt8)
  case stalled

  var description: String {
    switch self {
    case .usage(let text): "\(text); see --help"
    case .diskTooSmall(let bytes): "the disk has \(bytes) bytes: no room for one request"
    case .badStatus(let status): "a request came back with status \(status)"
    case .stalled: "no request came back for 10 s"
    }
  }
}

struct LoadOptions {
  static let usage = """
    disk-bench SOCKET [--depth N] [--queues N] [--size BYTES] [--op read|write|mixed] [--client poll|sleep]
               [--order random|sequential] [--seconds S] [--warmup S] [--span BYTES] [--packed] [--idle] [--server PID]

    depth      requests in flight on each queue, 1 to 1024 (32)
    size       bytes of each, a multiple of 512 (4096)
    client     poll: looks at the rings all the time and asks for no calls; sleep: asks, and waits in poll(2)
    span       the part of the disk that is used, from its start (all of it)
    idle       after the warm-up nothing is asked for the time: what a connected device costs
    server     the back-end's process, whose time on the processor and context switches are counted
    """

  enum Operation: String { case read, write, mixed }
  enum Client: String { case poll, sleep }
  enum Order: String { case random, sequential }

  var socket = ""
  var depth = 32
  var queues = 1
  var bytes = 4096
  var operation = Operation.read
  var client = Client.poll
  var order = Order.random
  var time: UInt64 = 1_000_000_000
  var warmup: UInt64 = 100_000_000
  var span: UInt64?
  var packed = false
  var idle = false
  var server: Int32?
  var help = false

  init(_ arguments: [String]) throws(LoadError) {
    var rest = arguments[...]
    while let word = rest.popFirst() {
      switch word {
      case "--help", "-h": help = true
      case "--packed": packed = true
      case "--idle": idle = true
      default:
        guard word.hasPrefix("--") else {
          socket = word
          continue
        }
        guard let value = rest.popFirst() else { throw .usage("\(word) needs a value") }
        try set(word, value)
      }
    }
    if socket.isEmpty, !help { throw .usage("no socket was named") }
  }

  private mutating func set(_ word: String, _ value: String) throws(LoadError) {
    switch word {
    case "--depth": depth = try Self.number(word, value, 1...1024)
    case "--queues": queues = try Self.number(word, value, 1...64)
    case "--size": bytes = try Self.number(word, value, 512...(16 << 20)) / 512 * 512
    case "--op": operation = try Self.choice(word, value)
    case "--client": client = try Self.choice(word, value)
    case "--order": order = try Self.choice(word, value)
    case "--seconds": time = try Self.seconds(word, value)
    case "--warmup": warmup = try Self.seconds(word, value)
    case "--span": span = UInt64(try Self.number(word, value, 512...Int.max))
    case "--server": server = Int32(try Self.number(word, value, 1...Int(Int32.max)))
    default: throw .usage("unknown option \(word)")
    }
  }

  private static func number(_ word: String, _ value: String, _ range: ClosedRange<Int>) throws(LoadError)
    -> Int
  {
    guard let number = Int(value), range.contains(number) else {
      throw .usage("\(word) \(value): expected \(range.lowerBound) to \(range.upperBound)")
    }
    return number
  }

  private static func seconds(_ word: String, _ value: String) throws(LoadError) -> UInt64 {
    guard let number = Double(value), number >= 0, number <= 3600 else {
      throw .usage("\(word) \(value): expected seconds, up to 3600")
    }
    return UInt64(number * 1e9)
  }

  private static func choice<T: RawRepresentable<String>>(_ word: String, _ value: String) throws(LoadError)
    -> T
  {
    guard let choice = T(rawValue: value) else { throw .usage("\(word) \(value)") }
    return choice
  }

  var disk: DiskOptions {
    .with {
      $0.driver.queues = queues
      // Three descriptors a request, in the ring itself.
      $0.driver.queueSize = UInt16(max(128, (depth * 3).nextPowerOfTwo))
      $0.driver.packed = packed
      $0.driver.indirectCapacity = 0
      $0.driver.features &= ~VirtioBits.indirect
      $0.depth = depth
      $0.dataBytes = bytes
    }
  }
}

extension Int {
  fileprivate var nextPowerOfTwo: Int { self <= 1 ? 1 : 1 << (Int.bitWidth - (self - 1).leadingZeroBitCount) }
}
