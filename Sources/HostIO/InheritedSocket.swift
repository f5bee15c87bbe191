// What a descriptor is that the program was started with. Asked once, on the main thread.

import Glibc

/// A Unix stream socket that listens, one that is connected, or something else.
public enum InheritedSocket: Sendable, Equatable {
  case listening, connected, neither

  public init(_ raw: Int32) {
    guard Self.option(SO_DOMAIN, of: raw) == AF_UNIX,
      Self.option(SO_TYPE, of: raw) == Int32(SOCK_STREAM.rawValue),
      let accepts = Self.option(SO_ACCEPTCONN, of: raw)
    else {
      self = .neither
      return
    }
    var peer = sockaddr()
    var length = socklen_t(MemoryLayout<sockaddr>.size)
    if accepts != 0 {
      self = .listening
    } else {
      // SAFETY: fills the local value, at most its size.
      self = unsafe getpeername(raw, &peer, &length) == 0 ? .connected : .neither
    }
  }

  private static func option(_ name: Int32, of raw: Int32) -> Int32? {
    var value: Int32 = 0
    var length = socklen_t(MemoryLayout<Int32>.size)
    // SAFETY: fills the local value.
    return unsafe getsockopt(raw, SOL_SOCKET, name, &value, &length) == 0 ? value : nil
  }
}
