// A Unix socket that front-ends connect to. Made before the sandbox closes; accepting is the control thread's.

import CLinux
import Glibc

public struct UnixListener: ~Copyable, Sendable {
  private let descriptor: OwnedFD
  public var raw: Int32 { descriptor.raw }
  /// The path we made, and the file we made there; nil for an inherited socket.
  private let made: (path: String, device: UInt64, inode: UInt64)?

  /// Takes over a socket that listens already.
  public init(adopting descriptor: consuming OwnedFD) {
    self.descriptor = descriptor
    made = nil
  }

  /// Listens at a path. A stale socket there is replaced; a live one, and anything else, is refused untouched.
  ///
  /// The socket is bound under a name of its own in the same folder, given its mode and group there, and renamed: so
  /// nobody can connect under other permissions than those asked for. The folder is locked meanwhile: of two programs that
  /// start at once, the later one finds the earlier one listening.
  public init(path: String, mode: UInt32 = 0o600, group: UInt32? = nil) throws(HostError) {
    let address = try UnixAddress(path)
    let folder = path.lastIndex(of: "/").map { String(path[...$0]) } ?? ""
    // SAFETY: a NUL-terminated copy. Without the lock (an unreadable folder) all but the race still holds.
    let lock = unsafe OwnedFD(adopting: clx_open(folder.isEmpty ? "." : folder, O_RDONLY | O_CLOEXEC, 0))
    _ = flock(lock.raw, LOCK_EX)
    try Self.refuseOccupied(path, address)
    let (name, bound) = try Self.draft(in: folder, for: path)
    let socket = try UnixAddress.socket()
    // SAFETY (all calls below): NUL-terminated copies of Swift strings.
    unsafe unlink(name)
    let mask = umask(0o777)
    let code = unsafe bound.withPointer { unsafe bind(socket.raw, $0, $1) }
    let failure = errno
    umask(mask)
    guard code == 0 else { throw .system(call: "bind '\(path)'", code: failure) }
    do {
      if let group { try Self.check(unsafe chown(name, uid_t.max, group), "chown '\(path)'") }
      try Self.check(unsafe chmod(name, mode), "chmod '\(path)'")
      try Self.check(listen(socket.raw, 128), "listen")
      try Self.check(unsafe rename(name, path), "rename to '\(path)'")
    } catch {
      unsafe unlink(name)
      throw error
    }
    var facts = stat()
    try Self.check(unsafe lstat(path, &facts), "lstat '\(path)'")
    descriptor = socket
    made = (path, UInt64(facts.st_dev), UInt64(facts.st_ino))
  }

  /// A name to bind first, in the same folder: the path with our process id, or that alone where this is too long.
  private static func draft(
    in folder: String, for path: String
  ) throws(HostError) -> (name: String, address: UnixAddress) {
    for name in [path + ".\(getpid())", folder + ".\(getpid())"] {
      if let address = try? UnixAddress(name) { return (name, address) }
    }
    throw .pathTooLong(path: path, limit: UnixAddress.limit)
  }

  private static func check(_ code: Int32, _ call: String) throws(HostError) {
    if code != 0 { throw .last(call) }
  }

  /// Leaves a path alone that has anything but a stale socket.
  private static func refuseOccupied(_ path: String, _ address: UnixAddress) throws(HostError) {
    var facts = stat()
    // SAFETY: fills the local value.
    guard unsafe lstat(path, &facts) == 0 else {
      if errno == ENOENT { return }
      throw .last("socket path '\(path)'")
    }
    guard facts.st_mode & S_IFMT == S_IFSOCK else { throw .notASocket(path: path) }
    let probe = try UnixAddress.socket()
    _ = clx_fcntl_int(probe.raw, F_SETFL, Int(O_NONBLOCK))
    // A full backlog (EAGAIN) is a live listener too; without permission we cannot know, and leave it.
    let code = unsafe address.withPointer { unsafe connect(probe.raw, $0, $1) }
    if code == 0 || errno == EAGAIN || errno == EINPROGRESS || errno == EACCES { throw .pathInUse(path: path) }
  }

  /// The next connection; nil where none waits. Throws EMFILE, ENFILE, ENOMEM, ECONNABORTED for the caller to back off.
  public func accept() throws(HostError) -> OwnedFD? {
    while true {
      // A listener we inherited may block: look first.
      guard Poll.one(raw, .readable, milliseconds: 0).contains(.readable) else { return nil }
      let connection = clx_accept4(raw, Int32(SOCK_CLOEXEC.rawValue))
      if connection >= 0 { return OwnedFD(adopting: connection) }
      if errno == EAGAIN { return nil }
      if errno != EINTR { throw .last("accept4") }
    }
  }

  /// Removes the socket's file, if it is still the one we made.
  public func unlinkPath() {
    guard let made else { return }
    var facts = stat()
    // SAFETY: fills the local value; NUL-terminated copies of a Swift string.
    guard unsafe lstat(made.path, &facts) == 0, UInt64(facts.st_dev) == made.device,
      UInt64(facts.st_ino) == made.inode
    else { return }
    unsafe unlink(made.path)
  }
}

/// What an inherited descriptor is.
public enum InheritedSocket: Sendable, Equatable {
  case listening, connected, neither

  public init(_ raw: Int32) {
    var accepts: Int32 = 0
    var family: Int32 = 0
    var length = socklen_t(MemoryLayout<Int32>.size)
    // SAFETY: each fills one local Int32.
    guard unsafe getsockopt(raw, SOL_SOCKET, SO_DOMAIN, &family, &length) == 0, family == AF_UNIX,
      unsafe getsockopt(raw, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &length) == 0
    else {
      self = .neither
      return
    }
    self = accepts != 0 ? .listening : .connected
  }
}
