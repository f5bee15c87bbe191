// A Unix socket that front-ends connect to. Made before the sandbox closes; accepting is the control
// thread's.

import CLinux
import Glibc

public struct UnixListener: ~Copyable, Sendable {
  private let descriptor: OwnedFD
  public var raw: Int32 { descriptor.raw }
  /// The path we made, and the file we made there; nil for an inherited socket.
  private let made: (path: String, file: SocketFile)?

  /// Takes over a socket that listens already. Makes it non-blocking, for whoever else has it too.
  public init(adopting descriptor: consuming OwnedFD) {
    let flags = clx_fcntl_int(descriptor.raw, F_GETFL, 0)
    if flags >= 0 { _ = clx_fcntl_int(descriptor.raw, F_SETFL, Int(flags | O_NONBLOCK)) }
    self.descriptor = descriptor
    made = nil
  }

  /// Listens at a path, with these permissions and, if one is given, this group.
  ///
  /// A stale socket at the path is replaced. Throws `pathInUse` where somebody listens there, `notASocket`
  /// for anything else, `pathTooLong`, or what the system says; the path is then as it was.
  ///
  /// The socket gets its permissions before it has a name, is bound under a name of its own in the same
  /// folder, listens, and only then moves to its path: whoever sees it there can connect, and nobody ever
  /// could under other permissions. The folder is locked from the look at the path to the move, so of several
  /// programs of ours that start at once the later ones find the first one listening.
  public init(path: String, mode: UInt32 = 0o600, group: UInt32? = nil) throws(HostError) {
    let address = try UnixAddress(path)
    let socket = try UnixAddress.socket()
    // The file is made with the permissions of the socket, less the umask.
    try Self.check(fchmod(socket.raw, mode & 0o777), "fchmod")
    let lock = Self.lock(path)
    defer { flock(lock.raw, LOCK_UN) }
    _ = try Self.isStale(path, address)
    let draft = try Self.bind(socket, beside: path)
    do {
      let file = try Self.dress(draft, path, mode: mode & 0o777, group: group)
      try Self.check(listen(socket.raw, 128), "listen")
      try Self.move(draft, to: path, address)
      descriptor = socket
      made = (path, file)
    } catch {
      // SAFETY: a NUL-terminated copy.
      unsafe unlink(draft)
      throw error
    }
  }

  /// The next connection, close-on-exec; nil where none waits. Throws EMFILE, ENFILE, ENOMEM, ECONNABORTED:
  /// the listener stays readable while the connection waits on, so the caller pauses before it looks again.
  public func accept() throws(HostError) -> OwnedFD? {
    while true {
      let connection = clx_accept4(raw, Int32(SOCK_CLOEXEC.rawValue))
      if connection >= 0 { return OwnedFD(adopting: connection) }
      if errno == EAGAIN { return nil }
      if errno != EINTR { throw .last("accept4") }
    }
  }

  /// Makes the socket's file a user's, if it is still the one we made. Not by its path: who may write to the folder could
  /// put another file there meanwhile.
  public func give(to user: UInt32) throws(HostError) {
    guard let made else { return }
    // SAFETY (both calls): NUL-terminated copies.
    let file = unsafe OwnedFD(adopting: clx_open(made.path, clx_O_PATH | O_NOFOLLOW | O_CLOEXEC, 0))
    guard file.raw >= 0, try SocketFile(open: file) == made.file else { return }
    guard unsafe fchownat(file.raw, "", user, gid_t.max, Int32(CLX_AT_EMPTY_PATH)) == 0 else {
      throw .last("chown '\(made.path)'")
    }
  }

  /// Removes the socket's file, if it is still the one we made.
  public func unlinkPath() {
    guard let made, (try? SocketFile(at: made.path)) == made.file else { return }
    // SAFETY: a NUL-terminated copy.
    unsafe unlink(made.path)
  }
}

/// Which file a path names.
private struct SocketFile: Equatable {
  let device: UInt64
  let inode: UInt64
  let mode: UInt32

  /// The permissions are free to change.
  static func == (one: SocketFile, other: SocketFile) -> Bool {
    one.device == other.device && one.inode == other.inode
  }

  /// Nil where there is none.
  init?(at path: String) throws(HostError) {
    var facts = stat()
    // SAFETY: fills the local value.
    guard unsafe lstat(path, &facts) == 0 else {
      if errno == ENOENT { return nil }
      throw .last("socket path '\(path)'")
    }
    self.init(facts)
  }

  /// What is open.
  init(open file: borrowing OwnedFD) throws(HostError) {
    var facts = stat()
    // SAFETY: fills the local value.
    guard unsafe fstat(file.raw, &facts) == 0 else { throw .last("fstat") }
    self.init(facts)
  }

  private init(_ facts: stat) {
    device = UInt64(facts.st_dev)
    inode = UInt64(facts.st_ino)
    mode = facts.st_mode
  }

  var isSocket: Bool { mode & S_IFMT == S_IFSOCK }
}

// MARK: The way to the path

extension UnixListener {
  private static func check(_ code: Int32, _ call: String) throws(HostError) {
    if code != 0 { throw .last(call) }
  }

  /// Locks the path's folder; no descriptor where that cannot be: then only the care for starts at once is
  /// lost. Others can lock the folder too, and keep it: that may cost us two seconds, not the start.
  private static func lock(_ path: String) -> OwnedFD {
    let folder = path.lastIndex(of: "/").map { String(path[...$0]) } ?? "."
    // SAFETY: a NUL-terminated copy.
    let lock = unsafe OwnedFD(adopting: clx_open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0))
    let deadline = Deadline(after: .seconds(2))
    while flock(lock.raw, LOCK_EX | LOCK_NB) != 0, errno == EWOULDBLOCK || errno == EINTR, !deadline.isOver {
      usleep(5000)
    }
    return lock
  }

  /// Whether a stale socket has the path; false where it is free. Throws for everything else.
  private static func isStale(_ path: String, _ address: UnixAddress) throws(HostError) -> Bool {
    guard let file = try SocketFile(at: path) else { return false }
    guard file.isSocket else { throw .notASocket(path: path) }
    // Only a refusal says that nobody has it open any more: a full backlog (EAGAIN) and one of another kind
    // (EPROTOTYPE) are somebody's.
    switch address.connect(try UnixAddress.socket()) {
    case ECONNREFUSED: return true
    case ENOENT: return false
    case EACCES:
      throw .system(call: "socket '\(path)' is there and cannot be asked whether it is stale", code: EACCES)
    default: throw .pathInUse(path: path)
    }
  }

  /// Gives the draft its name. Only a stale socket is overwritten, and that without a moment in which there
  /// is none.
  private static func move(_ draft: String, to path: String, _ address: UnixAddress) throws(HostError) {
    // SAFETY (all calls): NUL-terminated copies.
    if try isStale(path, address) { return try check(unsafe rename(draft, path), "rename to '\(path)'") }
    if unsafe clx_rename_new(draft, path) == 0 { return }
    // Not every file system has that call.
    if errno == EINVAL, unsafe link(draft, path) == 0 {
      unsafe unlink(draft)
      return
    }
    if errno == EEXIST { throw .pathInUse(path: path) }
    throw .last("rename to '\(path)'")
  }

  /// Binds the socket under a name of its own in the path's folder.
  private static func bind(_ socket: borrowing OwnedFD, beside path: String) throws(HostError) -> String {
    var code: Int32 = EADDRINUSE
    for _ in 0..<100 where code == EADDRINUSE {
      let name = draftName(beside: path)
      if name == path { continue }
      code = try UnixAddress(name).bind(socket)
      if code == 0 { return name }
    }
    throw .system(call: "bind '\(path)'", code: code)
  }

  /// The path with something random behind it, or that alone in its folder where this gets too long: at least
  /// one character then fits.
  private static func draftName(beside path: String) -> String {
    let letters = Array("abcdefghijklmnopqrstuvwxyz0123456789")
    let random = String((0..<6).compactMap { _ in letters.randomElement() })
    let long = "\(path).\(random)"
    if long.utf8.count <= UnixAddress.limit { return long }
    let folder = path.lastIndex(of: "/").map { String(path[...$0]) } ?? ""
    return folder + random.prefix(max(1, UnixAddress.limit - folder.utf8.count))
  }

  /// Gives a bound file its group and permissions, and says which file it is.
  private static func dress(
    _ draft: String, _ path: String, mode: UInt32, group: UInt32?
  ) throws(HostError) -> SocketFile {
    // SAFETY (all calls): NUL-terminated copies.
    if let group { try check(unsafe lchown(draft, uid_t.max, group), "chown '\(path)'") }
    guard let file = try SocketFile(at: draft), file.isSocket else {
      throw .system(call: "bind '\(path)'", code: ENOENT)
    }
    if file.mode & 0o777 != mode { try check(unsafe chmod(draft, mode), "chmod '\(path)'") }
    return file
  }
}
