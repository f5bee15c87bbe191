// The way of a listening socket to its path, and those who connect to it.

import CLinux
import Foundation
import HostIO
import Testing

/// A socket that is bound to a path, and listens where asked.
private func foreignSocket(_ path: String, kind: __socket_type = SOCK_STREAM, backlog: Int32? = nil) throws
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

private func facts(_ path: String) -> stat {
  var facts = stat()
  return lstat(path, &facts) == 0 ? facts : stat()
}

private func listenError(_ path: String, mode: UInt32 = 0o600, group: UInt32? = nil) -> HostError? {
  do { _ = try UnixListener(path: path, mode: mode, group: group) } catch { return error }
  return nil
}

private func connectError(_ path: String, timeout: Duration = .seconds(5)) -> HostError? {
  do { _ = try UnixStream(connectingTo: path, timeout: timeout) } catch { return error }
  return nil
}

@Suite struct UnixListenerTests {
  @Test("A connection is accepted, carries bytes both ways, and is closed on exec")
  func accepts() throws {
    let folder = try TemporaryFolder()
    let listener = try UnixListener(path: folder.file("s"))
    if try listener.accept() != nil { Issue.record("a connection before anybody connected") }
    let client = try UnixStream(connectingTo: folder.file("s"))
    #expect(Poll.one(listener.raw, .readable, milliseconds: 10_000) == .readable)
    guard let accepted = try listener.accept() else {
      Issue.record("nothing to accept")
      return
    }
    #expect(isCloseOnExec(accepted.raw))
    #expect(isCloseOnExec(listener.raw))
    let server = UnixStream(adopting: accepted)
    try client.send([1, 2])
    try server.send([3])
    let got = (try server.receive(2).bytes, try client.receive(1).bytes)
    #expect(got == ([1, 2], [3]))
  }

  @Test("Connections wait in the backlog in their order")
  func backlog() throws {
    let folder = try TemporaryFolder()
    let listener = try UnixListener(path: folder.file("s"))
    for i in 0..<3 {
      let client = try UnixStream(connectingTo: folder.file("s"))
      try client.send([UInt8(i)])
    }
    var order: [UInt8] = []
    while let accepted = try listener.accept() {
      order += try UnixStream(adopting: accepted).receive(1).bytes
    }
    #expect(order == [0, 1, 2])
  }

  @Test("Only the owner may connect unless told otherwise, and the permissions never were others")
  func permissions() throws {
    let folder = try TemporaryFolder()
    let watch = OwnedFD(
      adopting: try libraryCall("inotify_init1", as: (@convention(c) (Int32) -> Int32).self)(
        Int32(O_NONBLOCK)))
    let add = try libraryCall(
      "inotify_add_watch", as: (@convention(c) (Int32, UnsafePointer<CChar>, UInt32) -> Int32).self)
    #expect(add(watch.raw, folder.path, 0xfff) >= 0)
    let listener = try UnixListener(path: folder.file("s"))
    #expect(facts(folder.file("s")).st_mode & 0o7777 == 0o600)
    #expect(facts(folder.file("s")).st_mode & S_IFMT == S_IFSOCK)
    var events: [UInt32] = []
    var buffer = [UInt8](repeating: 0, count: 65536)
    let count = read(watch.raw, &buffer, buffer.count)
    var at = 0
    while at + 16 <= count {
      let event = buffer.withUnsafeBytes {
        (
          $0.loadUnaligned(fromByteOffset: at + 4, as: UInt32.self),
          $0.loadUnaligned(fromByteOffset: at + 12, as: UInt32.self)
        )
      }
      events.append(event.0)
      at += 16 + Int(event.1)
    }
    let (attributes, movedFrom, movedTo, created) = (UInt32(4), UInt32(0x40), UInt32(0x80), UInt32(0x100))
    // Made, and moved to its place; nothing was set on it in between, so it was made as it is.
    #expect(events.filter { $0 & 0xfff != 0 && $0 & 0x4000_0000 == 0 } == [created, movedFrom, movedTo])
    #expect(!events.contains { $0 & attributes != 0 })
    listener.unlinkPath()
  }

  @Test(
    "Other permissions are given as asked, whatever the umask is",
    arguments: [0o666, 0o660, 0o000, 0o777] as [UInt32])
  func otherPermissions(mode: UInt32) throws {
    let folder = try TemporaryFolder()
    let listener = try UnixListener(path: folder.file("s"), mode: mode)
    #expect(facts(folder.file("s")).st_mode & 0o7777 == mode)
    listener.unlinkPath()
  }

  @Test("A group is given as asked, the owner stays")
  func group() throws {
    let folder = try TemporaryFolder()
    let group: UInt32 = getuid() == 0 ? 12345 : getgid()
    let listener = try UnixListener(path: folder.file("s"), mode: 0o660, group: group)
    #expect(facts(folder.file("s")).st_gid == group)
    #expect(facts(folder.file("s")).st_uid == getuid())
    #expect(facts(folder.file("s")).st_mode & 0o7777 == 0o660)
    listener.unlinkPath()
  }

  @Test("Whoever sees the socket can connect to it")
  func neverRefuses() throws {
    let folder = try TemporaryFolder()
    for round in 0..<50 {
      let path = folder.file("s\(round)")
      let errors = Reply<Set<Int32>>()
      let thread = try PinnedThread(name: "client", cpus: []) {
        var seen: Set<Int32> = []
        let deadline = ContinuousClock.now + .seconds(30)
        while ContinuousClock.now < deadline, let error = connectError(path) { seen.insert(error.code ?? -1) }
        errors.fulfil(seen)
      }
      let listener = try UnixListener(path: path)
      #expect(errors.wait(timeout: .seconds(60))?.subtracting([ENOENT]) == [])
      thread.join()
      listener.unlinkPath()
    }
  }

  @Test("A stale socket is replaced")
  func stale() throws {
    let folder = try TemporaryFolder()
    do { _ = try foreignSocket(folder.file("s"), backlog: 1) }
    #expect(connectError(folder.file("s"))?.code == ECONNREFUSED)
    let listener = try UnixListener(path: folder.file("s"))
    #expect(connectError(folder.file("s")) == nil)
    #expect(folder.names == ["s"])
    listener.unlinkPath()
    #expect(folder.names == [])
  }

  enum Live: CaseIterable { case listening, fullBacklog, datagram, sequence }

  @Test("A socket that somebody has is left alone", arguments: Live.allCases)
  func live(kind: Live) throws {
    let folder = try TemporaryFolder()
    let path = folder.file("s")
    let owner =
      switch kind {
      case .listening: try foreignSocket(path, backlog: 5)
      case .fullBacklog: try foreignSocket(path, backlog: 0)
      case .datagram: try foreignSocket(path, kind: SOCK_DGRAM)
      case .sequence: try foreignSocket(path, kind: SOCK_SEQPACKET, backlog: 5)
      }
    if kind == .fullBacklog {
      let waiting = try UnixStream(connectingTo: path)
      #expect(waiting.raw >= 0)
      #expect(connectError(path, timeout: .milliseconds(20))?.code == EAGAIN)
      #expect(listenError(path) == .pathInUse(path: path))
    }
    let before = facts(path)
    #expect(listenError(path) == .pathInUse(path: path))
    #expect(facts(path).st_ino == before.st_ino)
    #expect(facts(path).st_ctim.tv_nsec == before.st_ctim.tv_nsec)
    #expect(folder.names == ["s"])
    #expect(owner.raw >= 0)
  }

  @Test("What is not a socket is left alone: a file, a folder, a link, even one to a stale socket")
  func notASocket() throws {
    let folder = try TemporaryFolder()
    try Data("precious".utf8).write(to: URL(fileURLWithPath: folder.file("file")))
    try FileManager.default.createDirectory(atPath: folder.file("folder"), withIntermediateDirectories: false)
    do { _ = try foreignSocket(folder.file("stale"), backlog: 1) }
    #expect(symlink("nowhere", folder.file("dangling")) == 0)
    #expect(symlink("stale", folder.file("link")) == 0)
    let before = folder.names
    for name in ["file", "folder", "dangling", "link"] {
      #expect(listenError(folder.file(name)) == .notASocket(path: folder.file(name)))
    }
    #expect(folder.names == before)
    #expect(try String(contentsOfFile: folder.file("file"), encoding: .utf8) == "precious")
  }

  @Test("A path that is too long by a byte is refused by name, the longest possible one works")
  func lengths() throws {
    let folder = try TemporaryFolder()
    let longest = folder.path + "/" + String(repeating: "x", count: 107 - folder.path.utf8.count - 1)
    #expect(listenError(longest + "x") == .pathTooLong(path: longest + "x", limit: 107))
    #expect(connectError(longest + "x") == .pathTooLong(path: longest + "x", limit: 107))
    let listener = try UnixListener(path: longest)
    #expect(connectError(longest) == nil)
    listener.unlinkPath()
    #expect(folder.names == [])
    // No room for more than one letter in the folder.
    let deep = folder.path + "/" + String(repeating: "d", count: 107 - folder.path.utf8.count - 3)
    try FileManager.default.createDirectory(atPath: deep, withIntermediateDirectories: false)
    let narrow = try UnixListener(path: deep + "/s")
    #expect(connectError(deep + "/s") == nil)
    narrow.unlinkPath()
  }

  @Test("A path that cannot be is an error with the system's reason")
  func impossible() throws {
    let folder = try TemporaryFolder()
    #expect(listenError("")?.code == EINVAL)
    #expect(listenError("a\u{0}b")?.code == EINVAL)
    #expect(listenError(folder.file("absent/s"))?.code == ENOENT)
    try Data().write(to: URL(fileURLWithPath: folder.file("file")))
    #expect(listenError(folder.file("file/s"))?.code == ENOTDIR)
    #expect(folder.names == ["file"])
  }

  @Test("A failure half way leaves neither the path nor a draft")
  func halfWay() throws {
    let folder = try TemporaryFolder()
    // A group that is none: chown(2) takes -1 for "as it is", so use one that only root may give; root is
    // given a folder that may not be written instead.
    if getuid() != 0 { #expect(listenError(folder.file("s"), group: 0)?.code == EPERM) }
    let (_, leaked) = try withOwnDescriptors { _ = listenError("/proc/self/s") }
    #expect(leaked == [])
    #expect(listenError("/proc/self/s") != nil)
    #expect(folder.names == [])
  }

  @Test("Of several that start at once on a stale path one gets it, and keeps it", arguments: [false, true])
  func startersRace(stale: Bool) throws {
    let folder = try TemporaryFolder()
    for round in 0..<30 {
      let path = folder.file("s\(round)")
      if stale { _ = try foreignSocket(path, backlog: 1) }
      let go = try EventFD()
      let over = try EventFD()
      let (start, end) = (go.raw, over.raw)
      let starters = try (0..<6).map { i in
        let result = Reply<HostError?>()
        let thread = try PinnedThread(name: "starter", cpus: []) {
          _ = Poll.one(start, .readable, milliseconds: 30_000)
          do throws(HostError) {
            let listener = try UnixListener(path: path)
            result.fulfil(nil)
            _ = Poll.one(end, .readable, milliseconds: 30_000)
            if listener.raw < 0 { return }
          } catch {
            result.fulfil(error)
          }
        }
        return (result, thread)
      }
      go.signal()
      let results = starters.map { $0.0.wait(timeout: .seconds(30)) }
      #expect(results.filter { $0 == .some(.none) }.count == 1)
      #expect(results.filter { $0 == .some(.pathInUse(path: path)) }.count == 5)
      #expect(connectError(path) == nil)
      over.signal()
      for starter in starters { starter.1.join() }
      #expect(folder.names.count == round + 1)
    }
  }

  @Test("Somebody else's lock on the folder delays the start, and no more")
  func lockedFolder() throws {
    let folder = try TemporaryFolder()
    let lock = OwnedFD(adopting: open(folder.path, O_RDONLY | O_CLOEXEC))
    #expect(flock(lock.raw, LOCK_EX) == 0)
    let path = folder.file("s")
    #expect(try onThread(seconds: 30) { listenError(path) } == nil)
  }

  @Test("Only our own socket is removed")
  func unlinks() throws {
    let folder = try TemporaryFolder()
    let path = folder.file("s")
    let first = try UnixListener(path: path)
    #expect(unlink(path) == 0)
    let second = try UnixListener(path: path)
    first.unlinkPath()
    #expect(connectError(path) == nil)
    second.unlinkPath()
    #expect(folder.names == [])
    second.unlinkPath()
    try Data().write(to: URL(fileURLWithPath: path))
    second.unlinkPath()
    #expect(folder.names == ["s"])
  }

  @Test("The socket goes with its listener, the file stays for the owner to remove")
  func closes() throws {
    let folder = try TemporaryFolder()
    let path = folder.file("s")
    let (_, leaked) = try withOwnDescriptors { _ = try UnixListener(path: path) }
    #expect(leaked == [])
    #expect(connectError(path)?.code == ECONNREFUSED)
  }

  @Test("A process that is out of descriptors is told so, and the connection waits on")
  func outOfDescriptors() throws {
    let folder = try TemporaryFolder()
    let path = folder.file("s")
    let (result, leaked) = try withOwnDescriptors { () -> (HostError?, Bool) in
      let listener = try UnixListener(path: path)
      let client = try UnixStream(connectingTo: path)
      var refused: HostError?
      do {
        let taken = try exhaustDescriptors()
        defer { for raw in taken { close(raw) } }
        do throws(HostError) { _ = try listener.accept() } catch { refused = error }
      }
      let accepted = try listener.accept()
      return (refused, accepted != nil && client.raw >= 0)
    }
    #expect(result.0 == .system(call: "accept4", code: EMFILE))
    #expect(result.1)
    #expect(leaked == [])
  }

  @Test("An inherited listener that blocks is made not to, and its file is not ours to remove")
  func inherited() throws {
    let folder = try TemporaryFolder()
    let path = folder.file("s")
    let accepted = try onThread { () -> [Bool] in
      let listener = UnixListener(adopting: try foreignSocket(path, backlog: 5))
      let none = try listener.accept()
      let client = try UnixStream(connectingTo: path)
      let one = try listener.accept()
      listener.unlinkPath()
      return [none != nil, one != nil, client.raw >= 0]
    }
    #expect(accepted == [false, true, true])
    #expect(folder.names == ["s"])
  }

  @Test("An inherited descriptor is told for what it is")
  func inheritedKinds() throws {
    let folder = try TemporaryFolder()
    let listening = try foreignSocket(folder.file("l"), backlog: 5)
    let bound = try foreignSocket(folder.file("b"))
    let datagram = try foreignSocket(folder.file("d"), kind: SOCK_DGRAM)
    let sequence = try foreignSocket(folder.file("q"), kind: SOCK_SEQPACKET, backlog: 5)
    let pair = try UnixStream.pair()
    let inet = OwnedFD(adopting: socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0))
    let file = try memoryFile()
    let kinds = [
      listening.raw, pair.first.raw, pair.second.raw, bound.raw, datagram.raw, sequence.raw, inet.raw,
      file.raw, -1,
    ].map { InheritedSocket($0) }
    #expect(
      kinds == [
        .listening, .connected, .connected, .neither, .neither, .neither, .neither, .neither, .neither,
      ])
  }

  @Test("Connecting says why it cannot")
  func connects() throws {
    let folder = try TemporaryFolder()
    #expect(connectError(folder.file("absent"))?.code == ENOENT)
    try Data().write(to: URL(fileURLWithPath: folder.file("file")))
    #expect(connectError(folder.file("file"))?.code == ECONNREFUSED)
    let (_, leaked) = try withOwnDescriptors { _ = connectError("/nowhere/at/all") }
    #expect(leaked == [])
  }

  @Test("A stream that connected sends and receives without blocking")
  func connectedDoesNotBlock() throws {
    let folder = try TemporaryFolder()
    let path = folder.file("s")
    let outcome = try onThread { () -> StreamOutcome in
      let listener = try UnixListener(path: path)
      let client = try UnixStream(connectingTo: path)
      defer { listener.unlinkPath() }
      return try client.receive(1, timeout: .milliseconds(20)).outcome
    }
    #expect(outcome == .timedOut)
  }
}
