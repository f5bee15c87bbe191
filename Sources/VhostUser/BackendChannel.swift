// The way from us to the front-end (VHOST_USER_SET_BACKEND_REQ_FD): messages that nobody here waits on. A front-end may
// answer a change of configuration by asking for it on the main socket first, so that waiting would be waiting for
// ourselves. Any thread.

import CLinux
import Glibc
import HostIO
import Synchronization
import VirtQueue

final class BackendChannel: Sendable {
  private struct State: ~Copyable {
    var descriptor: OwnedFD?
    /// A change that the front-end has not been told of, or was told of when it did not listen.
    var hasNews = false
    /// What came of an answer so far.
    var received: [UInt8] = []
  }
  private let state = Mutex(State())

  /// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, version 1, without a payload, asking for no answer.
  private static let configChange: [UInt8] = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]

  /// The session's channel; nil: it has none any more.
  func set(_ new: consuming sending OwnedFD?) {
    var new = new
    state.withLock { state in
      swap(&state.descriptor, &new)
      state.received = []
    }
  }

  /// The channel's descriptor, or -1. Good until the next `set`.
  var raw: Int32 { state.withLock { $0.descriptor?.raw ?? -1 } }

  /// Asks for a translation (VHOST_USER_BACKEND_IOTLB_MSG, a miss). False where there is no channel, or no room in it now.
  func ask(_ miss: TranslationMiss, needsReply: Bool) -> Bool {
    var message = PayloadWriter()
    for word: UInt32 in [1, needsReply ? 9 : 1, 32] { message.u32(word) }
    for word in [miss.address, 0, 0] { message.u64(word) }
    message.u64(UInt64(miss.access.rawValue) | 1 << 8)
    let bytes = message.bytes
    return state.withLock { state in
      guard let raw = state.descriptor?.raw else { return false }
      // SAFETY: sends from the array's own storage. A socket takes so little as a whole or not at all.
      return unsafe bytes.withUnsafeBytes {
        unsafe send(raw, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)) == $0.count
      }
    }
  }

  /// The answers that have come, in the order of what was asked: 0 is good. A channel that its peer closed is let go of.
  func takeAnswers() -> [UInt64] {
    state.withLock { state in
      guard let raw = state.descriptor?.raw else { return [] }
      var bytes = [UInt8](repeating: 0, count: 4096)
      // SAFETY: receives into the array's own storage. Descriptors that come with it are closed by the kernel. The
      // sandbox knows recvmsg, and not recv.
      let count = unsafe bytes.withUnsafeMutableBytes { buffer in
        var vector = unsafe iovec(iov_base: buffer.baseAddress, iov_len: buffer.count)
        return unsafe withUnsafeMutablePointer(to: &vector) { vector in
          var message = unsafe msghdr()
          unsafe message.msg_iov = unsafe vector
          unsafe message.msg_iovlen = 1
          return unsafe recvmsg(raw, &message, Int32(MSG_DONTWAIT))
        }
      }
      guard count > 0 else {
        if count == 0 || errno != EAGAIN && errno != EINTR { state.descriptor = nil }
        return []
      }
      state.received += bytes[..<count]
      return Self.answers(in: &state.received)
    }
  }

  /// Takes whole messages off the front; of those with 8 bytes or more, the number in them.
  private static func answers(in bytes: inout [UInt8]) -> [UInt64] {
    var values: [UInt64] = []
    while bytes.count >= MessageHeader.byteCount {
      let header = MessageHeader(Array(bytes[..<MessageHeader.byteCount]))
      // No answer is longer: what follows cannot be told apart any more.
      guard header.size <= MessageHeader.payloadLimit else {
        bytes = []
        break
      }
      let end = MessageHeader.byteCount + Int(header.size)
      guard bytes.count >= end else { break }
      var reader = PayloadReader(Array(bytes[MessageHeader.byteCount..<end]))
      // Flags: version 1, and the reply mark. Anything else answers nothing.
      if header.request == 1, header.flags == 5, header.size == 8 { values.append(reader.u64()) }
      bytes.removeFirst(end)
    }
    return values
  }

  /// Tells the front-end that the configuration space has changed.
  func configChanged() { state.withLock { Self.tell(&$0) } }

  /// Some front-ends listen only while a device runs: says again, when a ring has started, what was said before.
  func repeatNews() { state.withLock { if $0.hasNews { Self.tell(&$0) } } }

  /// What is new now has been read.
  func newsRead() { state.withLock { $0.hasNews = false } }

  private static func tell(_ state: inout State) {
    state.hasNews = true
    guard let raw = state.descriptor?.raw else { return }
    // A channel that is full or closed is the front-end's loss; it reads the configuration anew when it starts.
    // SAFETY: sends from the array's own storage.
    _ = unsafe configChange.withUnsafeBytes {
      unsafe send(raw, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
    }
  }
}
