// A guest that runs here before its memory has come (vhost-user, postcopy): what a server has for it before the sandbox closes, and who
// watches that nobody waits for pages of a front-end that has gone.

import HostIO
import Synchronization

/// What one server needs to take guests in by postcopy.
///
/// A queue thread that touches a page which has not come waits for it, and the control thread may wait for that queue thread: so
/// a thread of its own sees that the front-end has gone, and ends the waiting.
public final class Postcopy: Sendable {
  private struct Guarded: ~Copyable {
    /// The session's socket once more.
    var socket: OwnedFD?
    var faults: UserFaults?
    var isOver = false
  }
  let source: UserFaultSource
  private let wake: EventFD
  private let guarded = Mutex(Guarded())

  /// Before the sandbox. The source may be several servers'.
  public init(source: UserFaultSource) throws(HostError) {
    self.source = source
    wake = try EventFD()
  }

  /// Starts the thread that watches; before the sandbox. Ends with `finish`.
  func start() throws(HostError) { _ = try PinnedThread(name: "postcopy", cpus: []) { [self] in run() } }

  func finish() {
    guarded.withLock { $0.isOver = true }
    wake.signal()
  }

  /// From now on, the end of this socket's peer is the end of the faults.
  func watch(_ socket: Int32, _ faults: UserFaults) throws(HostError) {
    let copy = try OwnedFD.duplicate(of: socket).release()
    guarded.withLock { guarded in
      guarded.socket = OwnedFD(adopting: copy)
      guarded.faults = faults
    }
    wake.signal()
  }

  func unwatch() {
    guarded.withLock { guarded in
      guarded.socket = nil
      guarded.faults = nil
    }
    wake.signal()
  }

  private func run() {
    while true {
      let (socket, isOver) = guarded.withLock { ($0.socket?.raw ?? -1, $0.isOver) }
      if isOver { return }
      let ready = Poll.any([(wake.raw, .readable), (socket, [])], milliseconds: -1)
      if !ready[0].isEmpty {
        wake.drain()
      } else if !ready[1].isEmpty {
        let faults = guarded.withLock { guarded in
          guarded.socket = nil
          return guarded.faults.take()
        }
        faults?.abandon()
      }
    }
  }
}
