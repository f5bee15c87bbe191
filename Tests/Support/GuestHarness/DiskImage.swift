// An image file on the host, and what it holds. Used on any thread.

import Foundation

/// A raw image in a folder of its own, removed with the last reference.
public final class DiskImage: Sendable {
  public let path: String
  private let folder: TemporaryFolder

  /// A sparse image of `mebibytes`.
  public init(mebibytes: Int) throws {
    folder = try TemporaryFolder()
    path = folder.file("disk.img")
    let descriptor = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { throw HarnessError("\(path): \(String(cString: strerror(errno)))") }
    defer { close(descriptor) }
    guard ftruncate(descriptor, mebibytes << 20) == 0 else {
      throw HarnessError("\(path): \(String(cString: strerror(errno)))")
    }
  }

  /// Fills the whole image with bytes that no other image has.
  public func fillRandomly() throws {
    let size = try FileManager.default.attributesOfItem(atPath: path)[.size] as? Int ?? 0
    try Tool.run(
      "dd", ["if=/dev/urandom", "of=\(path)", "bs=1M", "count=\(size >> 20)", "conv=notrunc", "status=none"])
  }

  /// The SHA-256 of the whole image, in hexadecimal, as the guest's `sha256sum` prints it.
  public func checksum() throws -> String { try sha256(of: path) }

  /// Has the host's e2fsck look at the ext4 file system on it, changing nothing; throws when it finds fault.
  public func requireSoundFileSystem() throws { try Tool.run("e2fsck", ["-f", "-n", path]) }

  /// The SHA-256 of a file on its ext4 file system, read with the host's own tools.
  public func checksum(ofFile name: String) throws -> String {
    let copy = folder.file("extracted")
    try Tool.run("debugfs", ["-R", "dump \(name) \(copy)", path])
    return try sha256(of: copy)
  }

  private func sha256(of path: String) throws -> String {
    String(try Tool.run("sha256sum", [path]).prefix(64))
  }
}
