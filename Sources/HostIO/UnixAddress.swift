// A socket path as the kernel takes it, and the socket to use it with. Any thread.

import CLinux
import Glibc

struct UnixAddress {
  /// Bytes of path that fit, the NUL left aside.
  static let limit = 107
  private var value = sockaddr_un()

  /// Throws `pathTooLong`; an empty path, or one with a NUL in it, is EINVAL.
  init(_ path: String) throws(HostError) {
    let bytes = Array(path.utf8)
    guard !bytes.isEmpty, !bytes.contains(0) else {
      throw .system(call: "socket path '\(path)'", code: EINVAL)
    }
    guard bytes.count <= Self.limit else { throw .pathTooLong(path: path, limit: Self.limit) }
    value.sun_family = sa_family_t(AF_UNIX)
    // SAFETY: at most 107 of 108 bytes; the rest stays zero.
    unsafe withUnsafeMutableBytes(of: &value.sun_path) { unsafe $0.copyBytes(from: bytes) }
  }

  /// 0, or the errno that bind(2) left.
  func bind(_ socket: borrowing OwnedFD) -> Int32 {
    let raw = socket.raw
    // SAFETY: the pointer holds for the call.
    return unsafe withPointer { unsafe Glibc.bind(raw, $0, $1) == 0 ? 0 : errno }
  }

  /// 0, or the errno that connect(2) left.
  func connect(_ socket: borrowing OwnedFD) -> Int32 {
    let raw = socket.raw
    // SAFETY: the pointer holds for the call.
    return unsafe withPointer { unsafe Glibc.connect(raw, $0, $1) == 0 ? 0 : errno }
  }

  private func withPointer(_ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32) -> Int32 {
    // SAFETY: a sockaddr_un is what an AF_UNIX call expects behind a sockaddr pointer.
    unsafe withUnsafePointer(to: value) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
  }

  /// A stream socket, close-on-exec and non-blocking.
  static func socket() throws(HostError) -> OwnedFD {
    let kind = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
    let raw = Glibc.socket(AF_UNIX, kind, 0)
    guard raw >= 0 else { throw .last("socket") }
    return OwnedFD(adopting: raw)
  }
}
