// The way of a listening socket to its path, and those who connect to it.

import CLinux
import Foundation
import HostIO
import Testing

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
