// Stands between a front-end and a back-end, passes everything on with its descriptors, and notes what the front-end
// sends. Made and read on any thread; works on one of its own.

import Foundation
import GuestHarness
import VhostFrontend

// SAFETY (Sendable): what changes is behind `lock`.
final class Relay: @unchecked Sendable {
  /// Where a front-end connects.
  let socket: String
  private let folder: TemporaryFolder
  private let backend: String
  private let listener: FrontendListener
  private let lock = NSLock()
  private var notes: [String] = []
  private var isOver = false

  /// A relay to the back-end that listens at `backend`.
  init(to backend: String) throws {
    folder = try TemporaryFolder()
    socket = folder.file("relay")
    self.backend = backend
    listener = try FrontendListener(path: socket)
    let work = Work(relay: self)
    Thread { work.run() }.start()
  }

  deinit { lock.withLock { isOver = true } }

  /// What the front-end has sent since the last call: the names of its messages, with the value where it matters.
  func take() -> [String] {
    lock.withLock {
      defer { notes = [] }
      return notes
    }
  }

  /// The thread's part; it ends soon after the relay is let go.
  private struct Work: @unchecked Sendable {
    weak var relay: Relay?

    func run() {
      while let listener = relay?.listener {
        var one = pollfd(fd: listener.socket.raw, events: Int16(POLLIN), revents: 0)
        guard poll(&one, 1, 200) > 0, let relay else { continue }
        guard let front = try? listener.accept(timeout: .seconds(20)) else { continue }
        guard let back = try? FrontendConnection.connect(to: relay.backend, waiting: .seconds(20)) else {
          continue
        }
        pump(front, back)
      }
    }

    /// Both ways until one of them ends.
    private func pump(_ front: FrontendConnection, _ back: FrontendConnection) {
      while relay != nil {
        var both = [front, back].map { pollfd(fd: $0.socket.raw, events: Int16(POLLIN), revents: 0) }
        guard poll(&both, 2, 200) > 0 else { continue }
        do {
          if both[0].revents != 0 { try pass(from: front, to: back, noting: true) }
          if both[1].revents != 0 { try pass(from: back, to: front, noting: false) }
        } catch {
          break
        }
      }
      front.disconnect()
      back.disconnect()
    }

    private func pass(
      from: FrontendConnection, to: FrontendConnection, noting: Bool
    ) throws(FrontendError) {
      let message = try from.receiveAny(timeout: .seconds(20))
      // Before it is answered, so that who has the answer finds the note.
      if noting { note(message) }
      try to.sendRaw(
        request: message.header.request, flags: message.header.flags, payload: message.payload,
        descriptors: message.descriptors.map(\.raw))
    }

    private func note(_ message: FrontendReply) {
      let request = FrontendRequest(rawValue: message.header.request)
      var name = request.description
      if request == .setVringEnable { name += " \(message.payload[4])" }
      if request == .getConfig { name += " \(message.payload[4])" }
      relay?.lock.withLock { relay?.notes.append(name) }
    }
  }
}
