// The way from us to the front-end (VHOST_USER_SET_BACKEND_REQ_FD): messages that nobody here waits on. A front-end may
// answer a change of configuration by asking for it on the main socket first, so that waiting would be waiting for
// ourselves. Any thread.

import CLinux
import Glibc
import HostIO
import Synchronization

final class BackendChannel: Sendable {
  private struct State: ~Copyable {
    var descriptor: OwnedFD?
    /// A change that the front-end has not been told of, or was told of when it did not listen.
    var hasNews = false
  }
  private let state = Mutex(State())

  /// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, version 1, without a payload, asking for no answer.
  private static let configChange: [UInt8] = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]

  /// The session's channel; nil: it has none any more.
  func set(_ new: consuming sending OwnedFD?) {
    var new = new
    state.withLock { state in swap(&state.descriptor, &new) }
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
