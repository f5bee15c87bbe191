// Sockets that the program is started with, and the other direction: the front-end listens.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("Inherited sockets, and front-ends that listen")
struct InheritedTests {
  private let folder: TemporaryFolder
  private let image: Image

  init() throws {
    folder = try TemporaryFolder()
    image = try Image.make(in: folder)
  }

  private func serve(_ descriptor: Int32, _ options: [String] = []) throws -> Daemon {
    try Daemon(
      ["blk", "--fd", "3", "--blk-file", image.path] + options, in: folder, descriptors: [descriptor],
      listens: false)
  }

  /// Reads, writes and reads again.
  private func exercise(_ driver: BlockDriver, seed: UInt64) throws {
    let data = BytePattern(seed: seed).bytes(at: 0, count: 8192)
    #expect(try driver.read(sector: 100, bytes: 512) == image.read(sector: 100, count: 512))
    try driver.write(sector: 8, data)
    #expect(try driver.read(sector: 8, bytes: data.count) == data)
    try driver.flush()
    #expect(try image.read(sector: 8, count: data.count) == data)
  }

  @Test("An inherited connection is served, and its end is the program's, with 0", arguments: [true, false])
  func connected(ends: Bool) throws {
    var pair = Optional(try FrontendConnection.pair())
    let daemon = try serve(try #require(pair).back.raw, ["--stats", "{folder}/stats"])
    let connection = try #require(pair).front
    // The child has its own now.
    pair = nil
    try exercise(BlockDriver(connection, options()), seed: 2)
    if ends { connection.disconnect() } else { daemon.process.signal(SIGTERM) }
    #expect(try daemon.process.waitExit(within: 30) == .status(0), "\(daemon.log)")
    let stats = try String(contentsOfFile: folder.file("stats"), encoding: .utf8)
    #expect(stats.contains(#""flushes":1"#), "\(stats)")
  }

  @Test("An inherited listening socket is served to one front-end after another, and stays at the end")
  func listening() throws {
    let listener = try FrontendListener(path: folder.file("s"))
    let daemon = try serve(listener.socket.raw)
    for round in 0..<3 {
      let driver = try daemon.connect()
      try exercise(driver, seed: UInt64(round))
      driver.disconnect()
    }
    daemon.process.signal(SIGTERM)
    #expect(try daemon.process.waitExit(within: 30) == .status(0), "\(daemon.log)")
    #expect(access(listener.path, F_OK) == 0, "whose it is takes it away")
  }

  @Test("A descriptor that is no such socket is named, with status 1")
  func otherDescriptors() throws {
    var streams: [Int32] = [-1, -1]
    var datagrams: [Int32] = [-1, -1]
    var pipes: [Int32] = [-1, -1]
    #expect(socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue), 0, &streams) == 0)
    #expect(socketpair(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0, &datagrams) == 0)
    #expect(pipe(&pipes) == 0)
    let others = [
      socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0), socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0),
      open(image.path, O_RDWR), open(folder.path, O_RDONLY), open("/dev/null", O_RDWR),
      dup(try Doorbell().raw),
    ]
    let all = streams + datagrams + pipes + others
    defer { for descriptor in all { close(descriptor) } }
    let place = try Untouched(folder)
    for descriptor in all {
      let run = try Run(
        ["blk", "--fd", "3", "--blk-file", image.path], in: folder, descriptors: [descriptor])
      run.expectFailure(1, naming: ["--fd 3", "socket"])
    }
    for number in ["3", "2147483647"] {
      try Run(["blk", "--fd", number, "--blk-file", image.path], in: folder)
        .expectFailure(1, naming: ["--fd \(number)", "socket"])
    }
    try place.expectSame()
  }

  @Test("--connect finds a front-end that listens, again after it has gone, and after its socket was away")
  func connects() throws {
    let path = folder.file("front")
    var listener = Optional(try FrontendListener(path: path))
    let daemon = try Daemon(
      ["blk", "--connect", path, "--blk-file", image.path], in: folder, listens: false)
    for round in 0..<2 {
      let driver = try BlockDriver(#require(listener).accept(timeout: .seconds(30)), options())
      try exercise(driver, seed: UInt64(round))
      driver.disconnect()
    }
    listener = nil
    try daemon.process.wait(until: "it misses the front-end", within: 30) {
      daemon.log.contains("waiting for a front-end at '\(path)'")
    }
    listener = try FrontendListener(path: path)
    let driver = try BlockDriver(#require(listener).accept(timeout: .seconds(30)), options())
    try exercise(driver, seed: 7)
    daemon.process.signal(SIGTERM)
    #expect(try daemon.process.waitExit(within: 30) == .status(0), "\(daemon.log)")
    #expect(access(path, F_OK) == 0, "the front-end's socket is not ours to remove")
    #expect(daemon.log.split(separator: "\n").count == 1, "one line for all its attempts: \(daemon.log)")
  }

  @Test("--connect waits for a front-end that is not there yet, at little cost, and SIGTERM ends that with 0")
  func waits() throws {
    let path = folder.file("front")
    let daemon = try Daemon(
      ["blk", "--connect", path, "--blk-file", image.path], in: folder, listens: false)
    try daemon.process.wait(until: "it misses the front-end", within: 30) { daemon.log.contains("waiting") }
    let load = ProcessFacts(daemon.process).load(over: 1000)
    #expect(load < 0.05, "\(load) of a processor")
    daemon.process.signal(SIGTERM)
    #expect(try daemon.process.waitExit(within: 30) == .status(0), "\(daemon.log)")
  }

  @Test("SIGTERM ends it with 0 where the front-end accepts and says nothing, or does not even accept")
  func silentFrontends() throws {
    for accepts in [true, false] {
      let listener = try FrontendListener(path: folder.file("front"))
      var fillers: [FrontendConnection] = []
      if !accepts {
        // Room for one connection, which is taken: the next one has to wait.
        #expect(listen(listener.socket.raw, 0) == 0)
        while let filler = try? FrontendConnection.connect(to: listener.path) { fillers.append(filler) }
      }
      let daemon = try Daemon(
        ["blk", "--connect", listener.path, "--blk-file", image.path, "--drain-timeout", "1"], in: folder,
        listens: false)
      let silent = accepts ? try listener.accept(timeout: .seconds(30)) : nil
      try daemon.process.wait(until: "its control thread runs", within: 30) {
        ProcessFacts(daemon.process).threadTimes["control"] != nil
      }
      daemon.process.signal(SIGTERM)
      #expect(try daemon.process.waitExit(within: 30) == .status(0), "\(daemon.log)")
      try silent?.expectClosed()
    }
  }
}
