// The other direction: the front-end listens and the back-end connects (`--connect`, QEMU's `server=on`). Any
// thread.

import CLinux
import Glibc

/// A listening socket; its file goes when it goes.
public final class FrontendListener {
  public let path: String
  public let socket: FrontendDescriptor

  /// Listens at `path`, which must not exist.
  public init(path: String) throws(FrontendError) {
    let socket = try StreamSocket.make()
    // SAFETY: address and length are those of one sockaddr_un.
    let failed = unsafe try StreamSocket.withAddress(path) { unsafe bind(socket.raw, $0, $1) }
    guard failed == 0 else { throw .last("bind") }
    guard listen(socket.raw, 16) == 0 else { throw .last("listen") }
    // Only now: deinit removes the file, and until here it could be somebody else's.
    self.path = path
    self.socket = socket
  }

  deinit {
    // SAFETY: the string lives through the call.
    _ = unsafe unlink(path)
  }

  /// The next back-end that connects.
  public func accept(timeout: Duration = .seconds(10)) throws(FrontendError) -> FrontendConnection {
    guard Deadline(timeout).wait(for: POLLIN, on: socket.raw) != 0 else {
      throw .timedOut(waitingFor: "connection at \(path)")
    }
    let raw = clx_accept4(socket.raw, Int32(SOCK_CLOEXEC.rawValue))
    guard raw >= 0 else { throw .last("accept4") }
    return FrontendConnection(adopting: FrontendDescriptor(adopting: raw), timeout: timeout)
  }
}
