// One end of a socket pair whose other end QEMU holds: the command port and the monitor. Used on one thread.

import Foundation

/// Writes text, reads what comes up to a separator, both with a deadline.
final class LineChannel {
  private let name: String
  private let descriptor: Int32
  /// What was read and not yet returned.
  private var pending = [UInt8]()

  init(name: String, descriptor: Int32) {
    self.name = name
    self.descriptor = descriptor
  }

  deinit { close(descriptor) }

  /// Makes a channel and the descriptor that the other program gets, which the caller closes.
  static func pair(name: String) throws -> (channel: LineChannel, other: Int32) {
    var ends: [Int32] = [-1, -1]
    let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
    guard socketpair(AF_UNIX, type, 0, &ends) == 0 else {
      throw HarnessError("socketpair: \(String(cString: strerror(errno)))")
    }
    return (LineChannel(name: name, descriptor: ends[0]), ends[1])
  }

  /// Throws away what has arrived: the answers to questions of another boot.
  func discard() { pending.removeAll() }

  func write(_ text: String, by deadline: Deadline) throws {
    var rest = Array(text.utf8)[...]
    while !rest.isEmpty {
      let count = rest.withUnsafeBytes {
        send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
      }
      if count > 0 {
        rest = rest.dropFirst(count)
      } else if errno == EAGAIN {
        guard ready(POLLOUT, deadline) || !deadline.hasPassed else {
          throw HarnessError("\(name): nobody reads what is written")
        }
      } else if errno != EINTR {
        throw HarnessError("\(name): write: \(String(cString: strerror(errno)))")
      }
    }
  }

  /// The bytes before the next `separator`, which is consumed. Calls `check` about once a second while it waits,
  /// so that a guest that has died is noticed before the deadline, and with true when the channel is closed.
  func read(upTo separator: [UInt8], by deadline: Deadline, check: (_ closed: Bool) throws -> Void) throws
    -> [UInt8]
  {
    var searched = 0
    while true {
      if let start = find(separator, from: searched) {
        let found = Array(pending[..<start])
        pending.removeFirst(start + separator.count)
        return found
      }
      searched = max(0, pending.count - separator.count)
      if !ready(POLLIN, deadline) {
        try check(false)
        guard !deadline.hasPassed else {
          throw HarnessError(
            "\(name): no answer in time", logs: [(name, String(decoding: pending, as: UTF8.self))])
        }
        continue
      }
      var buffer = [UInt8](repeating: 0, count: 65536)
      let count = recv(descriptor, &buffer, buffer.count, Int32(MSG_DONTWAIT))
      if count > 0 {
        pending += buffer[..<count]
      } else if count == 0 || (errno != EAGAIN && errno != EINTR) {
        try check(true)
        throw HarnessError("\(name) is closed", logs: [(name, String(decoding: pending, as: UTF8.self))])
      }
    }
  }

  func readLine(by deadline: Deadline, check: (_ closed: Bool) throws -> Void) throws -> String {
    String(decoding: try read(upTo: [UInt8(ascii: "\n")], by: deadline, check: check), as: UTF8.self)
  }

  private func find(_ separator: [UInt8], from start: Int) -> Int? {
    guard pending.count >= separator.count else { return nil }
    for index in start...(pending.count - separator.count) where pending[index...].starts(with: separator) {
      return index
    }
    return nil
  }

  private func ready(_ events: Int32, _ deadline: Deadline) -> Bool {
    var entry = pollfd(fd: descriptor, events: Int16(events), revents: 0)
    return poll(&entry, 1, deadline.pollTimeout(slice: 1)) > 0
  }
}
