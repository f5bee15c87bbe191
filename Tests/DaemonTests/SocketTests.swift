// The socket that front-ends connect to: where it cannot be made, who may use it, and what becomes of it.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("The socket")
struct SocketTests {
  private let folder: TemporaryFolder
  private let image: Image

  init() throws {
    folder = try TemporaryFolder()
    image = try Image.make(in: folder, bytes: 64 << 10)
  }

  private var disk: [String] { ["blk", "--blk-file", image.path] }
  private func mode(_ path: String) -> mode_t {
    var facts = stat()
    return lstat(path, &facts) == 0 ? facts.st_mode & 0o7777 : 0
  }

  /// A path in the folder with exactly so many bytes.
  private func path(bytes: Int) -> String {
    folder.path + "/" + String(repeating: "p", count: bytes - folder.path.utf8.count - 1)
  }

  @Test(
    "SP33 A socket path too long, without a folder, or of something else is named in one line, with status 1")
  func unusablePaths() throws {
    try Data("mine".utf8).write(to: URL(fileURLWithPath: folder.file("file")))
    try FileManager.default.createDirectory(atPath: folder.file("dir"), withIntermediateDirectories: false)
    #expect(mkfifo(folder.file("fifo"), 0o600) == 0)
    #expect(symlink("nowhere", folder.file("dangling")) == 0)
    let place = try Untouched(folder)
    for (path, says) in [
      (path(bytes: 108), "107"), (path(bytes: 5000), "107"), (folder.file("none/s"), "No such file"),
      (folder.file("file/s"), "Not a directory"), (folder.file("file"), "not a socket"),
      (folder.file("dir"), "not a socket"), (folder.file("fifo"), "not a socket"),
      (folder.file("dangling"), "not a socket"), (folder.path + "/", "not a socket"),
    ] {
      for option in ["--socket-path", "--socket-path="] {
        let given = option.hasSuffix("=") ? [option + path] : [option, path]
        let run = try Run(disk + given + ["--stats", "{folder}/stats"], in: folder)
        run.expectFailure(1, naming: [path, says])
        try place.expectSame()
      }
    }
    try Run(disk + ["--connect", path(bytes: 108)], in: folder).expectFailure(1, naming: ["107", "108"])
  }

  @Test("A path of 107 bytes, the longest there is, works")
  func longestPath() throws {
    let path = path(bytes: 107)
    let daemon = try Daemon(disk + ["--socket-path", path], in: folder, listens: false)
    let driver = try BlockDriver(path: path, waiting: .seconds(20), options())
    #expect(try driver.read(sector: 1, bytes: 512) == image.read(sector: 1, count: 512))
    driver.disconnect()
    #expect(daemon.process.terminate() == .status(0))
    #expect(access(path, F_OK) != 0)
  }

  @Test(
    "A folder that the program may not write to is named",
    .enabled(if: Ordinary.isPossible, "needs root, setpriv and a program that everybody may run"))
  func folderPermissions() throws {
    chmod(folder.path, 0o755)
    chown(image.path, Ordinary.user, Ordinary.user)
    let place = try Untouched(folder)
    let run = try Run(disk + ["--socket-path", "{folder}/s"], in: folder, prefix: Ordinary.prefix)
    run.expectFailure(1, naming: [folder.file("s"), "Permission denied"])
    try place.expectSame()
  }

  @Test("SP33 A socket that a live process listens at is not taken from it, served or not")
  func inUse() throws {
    let daemon = try Daemon.disk(in: folder)
    let other = try Image.make(in: folder, "other.img", bytes: 64 << 10)
    let second = ["blk", "--socket-path", "{folder}/s", "--blk-file", other.path]
    try Run(second, in: folder).expectFailure(1, naming: [daemon.socket, "in use"])
    let driver = try daemon.connect()
    try Run(second, in: folder).expectFailure(1, naming: [daemon.socket, "in use"])
    try driver.write(sector: 0, [UInt8](repeating: 3, count: 512))
    driver.disconnect()
    _ = try daemon.connect().read(sector: 0, bytes: 512)
    try daemon.stop()
  }

  @Test("SP33 A killed process leaves its socket, and the next one replaces it")
  func stale() throws {
    let first = try Daemon.disk(in: folder)
    let driver = try first.connect()
    try driver.write(sector: 5, [UInt8](repeating: 5, count: 512))
    #expect(first.process.kill() == .signal(SIGKILL))
    #expect(access(first.socket, F_OK) == 0)
    let second = try Daemon(
      ["blk", "--socket-path", "{folder}/s", "--blk-file", folder.file("disk.img")], in: folder,
      listens: false)
    let next = try second.connect()
    #expect(try next.read(sector: 5, bytes: 512) == [UInt8](repeating: 5, count: 512))
    next.disconnect()
    try second.stop()
  }

  @Test("A socket that another process has put in the place of ours stays when we end")
  func replaced() throws {
    let first = try Daemon.disk(in: folder)
    #expect(unlink(first.socket) == 0)
    let listener = try FrontendListener(path: first.socket)
    #expect(first.process.terminate() == .status(0))
    #expect(access(listener.path, F_OK) == 0)
  }

  @Test(
    "RS11: the socket is its owner's alone, or has the mode and the group that were asked for, whatever the umask"
  )
  func permissions() throws {
    let group = otherGroup()
    for (options, mode) in [
      ([], 0o600), (["--socket-mode", "660"], 0o660), (["--socket-mode", "0777"], 0o777),
      (["--socket-mode", "0"], 0), (["--socket-group", "\(group)"], 0o600),
    ] as [([String], mode_t)] {
      for umask in ["000", "077"] {
        let daemon = try Daemon.disk(
          options, image: image.path, in: folder, prefix: ["sh", "-c", "umask \(umask); exec \"$@\"", "sh"])
        var facts = stat()
        #expect(lstat(daemon.socket, &facts) == 0)
        #expect(facts.st_mode & 0o7777 == mode, "\(options), umask \(umask)")
        if options.first == "--socket-group" { #expect(facts.st_gid == group) }
        try daemon.stop()
      }
    }
  }

  @Test("RS11: a group by its name is the group's number")
  func groupName() throws {
    let entry = try #require(getgrgid(getegid()))
    let name = String(cString: entry.pointee.gr_name)
    let daemon = try Daemon.disk(["--socket-group", name], image: image.path, in: folder)
    var facts = stat()
    #expect(lstat(daemon.socket, &facts) == 0 && facts.st_gid == getegid())
    try daemon.stop()
  }

  @Test(
    "RS11: a group that the program may not give is refused, and leaves nothing",
    .enabled(if: Ordinary.isPossible, "needs root, setpriv and a program that everybody may run"))
  func forbiddenGroup() throws {
    chmod(folder.path, 0o777)
    chown(image.path, Ordinary.user, Ordinary.user)
    let place = try Untouched(folder)
    let run = try Run(
      disk + ["--socket-path", "{folder}/s", "--socket-group", "0", "--stats", "{folder}/stats"], in: folder,
      prefix: Ordinary.prefix)
    run.expectFailure(1, naming: [folder.file("s"), "not permitted"])
    try place.expectSame()
  }

  @Test("Without room for its descriptors a start fails in one line and leaves nothing, however far it came")
  func startWithoutDescriptors() throws {
    let place = try Untouched(folder)
    var failures = 0
    for limit in 3..<40 {
      let daemon = try Daemon(
        disk + ["--socket-path", "{folder}/s", "--stats", "{folder}/stats", "--num-queues", "1"],
        in: folder, prefix: ["prlimit", "--nofile=\(limit)"], listens: false)
      // Enough for a start: it serves. Its socket has its name earlier, before the last of what a start opens.
      let deadline = Deadline(seconds: 60)
      let facts = ProcessFacts(daemon.process)
      while daemon.process.exit == nil, !facts.threadTimes.keys.contains("control"), !deadline.hasPassed {
        _ = poll(nil, 0, 2)
      }
      guard let exit = daemon.process.exit else {
        try daemon.stop()
        break
      }
      failures += 1
      let log = daemon.log
      try FileManager.default.removeItem(atPath: daemon.process.logPath)
      // Below what the loader needs, it is the loader that complains.
      guard log.hasPrefix("vhost-swiftd: ") else { continue }
      #expect(exit == .status(1) && log.split(separator: "\n").count == 1, "\(log)")
      try place.expectSame()
    }
    #expect(failures > 5 && failures < 36, "\(failures)")
  }
}

/// A group other than this one that may be given away: any for root, else this one.
private func otherGroup() -> gid_t { getuid() == 0 ? 65534 : getegid() }
