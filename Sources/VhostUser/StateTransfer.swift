// One way of a device's state through a pipe or socket that the front-end has made. On the control thread, which it never holds
// up: what goes out fits into an empty pipe, what comes in is taken as it comes and is short or no state.

import CLinux
import Glibc
import HostIO

/// A transfer, from the channel's arrival until the front-end has asked how it went.
final class StateTransfer {
  /// The channel of a state that is still coming.
  private var channel: OwnedFD?
  private var received: [UInt8] = []
  private(set) var succeeded = false

  /// Nil, or how to wait for more.
  var incoming: Int32? { channel?.raw }

  /// Writes a whole state and closes the channel. Throws where the channel does not take it at once.
  init(sending bytes: [UInt8], to channel: consuming OwnedFD) throws(HostError) {
    Self.neverBlock(channel)
    // SAFETY: writes from the array's own storage. No SIGPIPE: every thread of ours has it blocked or ignored.
    let count = unsafe bytes.withUnsafeBytes { unsafe write(channel.raw, $0.baseAddress, $0.count) }
    // A pipe takes 4096 bytes as one piece or not at all.
    guard count == bytes.count else { throw .system(call: "write", code: count < 0 ? errno : EAGAIN) }
    succeeded = true
  }

  init(receivingFrom channel: consuming OwnedFD) {
    Self.neverBlock(channel)
    self.channel = consume channel
  }

  /// Who shares the channel could take that back, and would then hold up nobody but its own session.
  private static func neverBlock(_ channel: borrowing OwnedFD) {
    let flags = clx_fcntl_int(channel.raw, F_GETFL, 0)
    _ = clx_fcntl_int(channel.raw, F_SETFL, Int(flags | O_NONBLOCK))
  }

  /// Takes what is there. The whole state once its sender has closed the channel, else nil; where it is none, the channel is
  /// closed, so that its sender sees that nobody reads.
  func receive() -> [UInt8]? {
    var buffer = [UInt8](repeating: 0, count: 4096)
    while let raw = incoming {
      // SAFETY: fills the array's own storage.
      let count = unsafe buffer.withUnsafeMutableBytes { unsafe read(raw, $0.baseAddress, $0.count) }
      switch count {
      case 0:
        channel = nil
        return received
      case 1...:
        received += buffer[..<count]
        if received.count > StateFormat.limit { channel = nil }
      default:
        if errno == EAGAIN { return nil }
        if errno != EINTR { channel = nil }
      }
    }
    return nil
  }

  /// What came was a state of this device, and is in use.
  func succeed() { succeeded = true }

  /// Nothing more is waited for.
  func giveUp() { channel = nil }
}
