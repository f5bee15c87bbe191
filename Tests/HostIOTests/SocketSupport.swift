// Sockets that are not ours, and what comes of listening and connecting, as values.

import CLinux
import Foundation
import HostIO

/// A socket that is bound to a path, and listens where asked.
func foreignSocket(_ path: String, kind: __socket_type = SOCK_STREAM, backlog: Int32? = nil) throws
  -> OwnedFD
{
  let socket = OwnedFD(adopting: Glibc.socket(AF_UNIX, Int32(kind.rawValue), 0))
  var address = sockaddr_un()
  address.sun_family = sa_family_t(AF_UNIX)
  withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
  let code = withUnsafePointer(to: &address) {
    $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
      bind(socket.raw, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
    }
  }
  guard code == 0 else { throw HostError.system(call: "bind", code: errno) }
  if let backlog {
    guard listen(socket.raw, backlog) == 0 else { throw HostError.system(call: "listen", code: errno) }
  }
  return socket
}

func facts(_ path: String) -> stat {
  var facts = stat()
  return lstat(path, &facts) == 0 ? facts : stat()
}

func listenError(_ path: String, mode: UInt32 = 0o600, group: UInt32? = nil) -> HostError? {
  do { _ = try UnixListener(path: path, mode: mode, group: group) } catch { return error }
  return nil
}

/// Runs on a thread that, where we are root, has another user's rights to files.
func asNobody<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) throws -> Value {
  try onThread {
    // Of this thread alone, unlike setuid(2) as the C library makes it.
    _ = try libraryCall("setfsuid", as: (@convention(c) (UInt32) -> Int32).self)(
      getuid() == 0 ? 65534 : getuid())
    return try body()
  }
}

func connectError(_ path: String, timeout: Duration = .seconds(5)) -> HostError? {
  do { _ = try UnixStream(connectingTo: path, timeout: timeout) } catch { return error }
  return nil
}
