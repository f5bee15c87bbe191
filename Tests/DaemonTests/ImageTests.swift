// Images that cannot be served: one line, status 1, nothing touched and no socket left.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("Images that cannot be served")
struct ImageTests {
  private static let serve = ["blk", "--socket-path", "{folder}/s", "--blk-file"]

  @Test(
    "An image that is none, or cannot be opened, is named in one line with status 1, and nothing is touched",
    arguments: [
      ("missing", ["No such file"]), ("odd/below", ["Not a directory"]), (".", ["a directory"]),
      ("empty", ["0 bytes", "512"]), ("odd", ["1000 bytes", "512"]), ("fifo", ["a FIFO"]), ("socket", []),
      ("null", ["a character device"]), ("zero", ["a character device"]), ("loop", ["symbolic link"]),
      (String(repeating: "n", count: 300), ["name too long"]), ("dé\u{1F4BE}", ["No such file"]),
      ("line\nbreak", ["No such file"]),
    ])
  func unusable(name: String, says: [String]) throws {
    let folder = try TemporaryFolder()
    try Data().write(to: URL(fileURLWithPath: folder.file("empty")))
    try Data(count: 1000).write(to: URL(fileURLWithPath: folder.file("odd")))
    let listener = try FrontendListener(path: folder.file("socket"))
    #expect(mkfifo(folder.file("fifo"), 0o600) == 0)
    #expect(symlink("loop", folder.file("loop")) == 0)
    #expect(symlink("/dev/null", folder.file("null")) == 0)
    #expect(symlink("/dev/zero", folder.file("zero")) == 0)
    let place = try Untouched(folder)
    for options in [[], ["--read-only"]] {
      let run = try Run(Self.serve + ["{folder}/" + name] + options, in: folder)
      run.expectFailure(1, naming: says + [name.replacingOccurrences(of: "\n", with: #"\n"#)])
      try place.expectSame()
    }
    withExtendedLifetime(listener) {}
  }

  @Test("An image that is no multiple of the block size is named, with both")
  func blockSize() throws {
    let folder = try TemporaryFolder()
    try Data(count: 5 * 512).write(to: URL(fileURLWithPath: folder.file("small")))
    let place = try Untouched(folder)
    let run = try Run(Self.serve + ["{folder}/small", "--block-size", "4096"], in: folder)
    run.expectFailure(1, naming: ["2560", "4096"])
    try place.expectSame()
  }

  @Test(
    "An image whose permissions keep the program out is named; --read-only serves one that may be read",
    .enabled(if: Ordinary.isPossible, "needs root, setpriv and a program that everybody may run"))
  func permissions() throws {
    let folder = try TemporaryFolder()
    chmod(folder.path, 0o777)
    for (name, mode) in [("secret", mode_t(0o600)), ("public", 0o644)] {
      try Data(count: 64 << 10).write(to: URL(fileURLWithPath: folder.file(name)))
      chmod(folder.file(name), mode)
    }
    let place = try Untouched(folder)
    for (name, options) in [("secret", []), ("secret", ["--read-only"]), ("public", [])] {
      let run = try Run(Self.serve + ["{folder}/" + name] + options, in: folder, prefix: Ordinary.prefix)
      run.expectFailure(1, naming: [name, "Permission denied"])
      try place.expectSame()
    }
    let daemon = try Daemon(
      Self.serve + ["{folder}/public", "--read-only"], in: folder, prefix: Ordinary.prefix)
    let driver = try daemon.connect()
    #expect(try driver.read(sector: 0, bytes: 512) == [UInt8](repeating: 0, count: 512))
    driver.disconnect()
    try daemon.stop()
  }

  @Test("An image that another process writes to is refused, and that one goes on; --lock off ignores it")
  func locked() throws {
    let folder = try TemporaryFolder()
    let image = try Image.make(in: folder)
    let first = try Daemon.disk(image: image.path, in: folder)
    let driver = try first.connect()
    try driver.write(sector: 0, [UInt8](repeating: 1, count: 512))
    let other = ["blk", "--socket-path", "{folder}/t", "--blk-file", image.path, "--lock-wait", "0"]
    for options in [[], ["--read-only"]] {
      try Run(other + options, in: folder).expectFailure(1, naming: [image.path, "locked", "--lock off"])
    }
    #expect(access(folder.file("t"), F_OK) != 0)
    #expect(try driver.read(sector: 0, bytes: 512) == [UInt8](repeating: 1, count: 512))
    let second = try Daemon(other + ["--lock", "off", "--read-only"], in: folder, listens: false)
    let reader = try BlockDriver(path: folder.file("t"), waiting: .seconds(20), options())
    #expect(try reader.read(sector: 0, bytes: 512) == [UInt8](repeating: 1, count: 512))
    reader.disconnect()
    second.process.terminate()
    driver.disconnect()
    try first.stop()
  }

  @Test("A disk that keeps nothing may be as large as files can be, and requests at its end are answered")
  func huge() throws {
    let daemon = try Daemon(["blk", "--socket-path", "{folder}/s", "--null-size", "9223372036854775296"])
    let driver = try daemon.connect()
    let last = UInt64(9_223_372_036_854_775_296 / 512 - 1)
    #expect(driver.config.capacity == last + 1)
    #expect(try driver.perform(.read(sector: last, bytes: 512)).status == DiskRequest.ok)
    for sector in [last + 1, .max, .max / 512, 1 << 55] {
      #expect(try driver.perform(.read(sector: sector, bytes: 512)).status == DiskRequest.ioError)
    }
    driver.disconnect()
    try daemon.stop()
  }

  @Test("Starting, idling and ending changes nothing of an image, its times neither")
  func unchanged() throws {
    let place = try Untouched()
    let daemon = try Daemon.disk(image: place.folder.file("disk.img"))
    try daemon.stop()
    try place.expectSame()
  }
}

/// How to run the program as a user who may do nothing special.
enum Ordinary {
  static let user: uid_t = 65534
  static let prefix = ["setpriv", "--reuid", "\(user)", "--regid", "\(user)", "--clear-groups", "--"]

  static let isPossible: Bool = {
    guard getuid() == 0, let folder = try? TemporaryFolder(),
      let run = try? Run(["--version"], in: folder, prefix: prefix)
    else { return false }
    return run.exit == .status(0)
  }()
}
