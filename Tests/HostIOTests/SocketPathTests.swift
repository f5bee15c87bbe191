// What a listener does about what is at its path already, and about paths that cannot be.

import CLinux
import Foundation
import HostIO
import Testing

@Suite struct SocketPathTests {
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
  }

  @Test(
    "A folder with room for one letter more will do, whatever the letter is",
    arguments: "abcdefghij0123456789")
  func narrowFolder(letter: Character) throws {
    let folder = try TemporaryFolder()
    let deep = folder.path + "/" + String(repeating: "d", count: 107 - folder.path.utf8.count - 3)
    try FileManager.default.createDirectory(atPath: deep, withIntermediateDirectories: false)
    for _ in 0..<20 {
      let listener = try UnixListener(path: deep + "/\(letter)")
      #expect(connectError(deep + "/\(letter)") == nil)
      listener.unlinkPath()
      #expect(try FileManager.default.contentsOfDirectory(atPath: deep) == [])
    }
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

  @Test("A failure half way leaves neither the path nor a draft, nor touches a stale socket")
  func halfWay() throws {
    let folder = try TemporaryFolder()
    #expect(chmod(folder.path, 0o777) == 0)
    let paths = [folder.file("fresh"), folder.file("stale")]
    do { _ = try foreignSocket(paths[1], backlog: 1) }
    #expect(chmod(paths[1], 0o777) == 0)
    let before = facts(paths[1]).st_ino
    let errors = try asNobody { paths.map { listenError($0, group: 12345)?.code } }
    #expect(errors == [EPERM, EPERM])
    #expect(folder.names == ["stale"])
    #expect(facts(paths[1]).st_ino == before)
  }

  @Test("A socket that we may not connect to is left alone")
  func forbidden() throws {
    let folder = try TemporaryFolder()
    #expect(chmod(folder.path, 0o777) == 0)
    let path = folder.file("s")
    let owner = try foreignSocket(path, backlog: 5)
    #expect(chmod(path, 0o000) == 0)
    #expect(try asNobody { listenError(path)?.code } == EACCES)
    #expect(folder.names == ["s"])
    #expect(owner.raw >= 0)
  }

  @Test("A folder that we may write but not read will do")
  func unreadableFolder() throws {
    let folder = try TemporaryFolder()
    #expect(chmod(folder.path, 0o333) == 0)
    let path = folder.file("s")
    #expect(try asNobody { listenError(path) } == nil)
    #expect(chmod(folder.path, 0o700) == 0)
    #expect(folder.names == ["s"])
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
}
