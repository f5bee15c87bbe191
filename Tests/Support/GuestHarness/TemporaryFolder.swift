// A folder of a test's own. Made and used on any thread.

import Foundation

/// A new folder, removed with its contents when the last reference goes, unless `VHOST_SWIFTD_KEEP_LOGS` is set.
/// In `$TMPDIR` where that is short, else in /tmp: socket paths end at 107 bytes.
public final class TemporaryFolder: Sendable {
  public let path: String

  public init() throws {
    let given = Environment.value("TMPDIR").flatMap { $0.utf8.count <= 60 ? $0 : nil }
    let parent = given ?? "/tmp"
    var template = Array("\(parent)/vhost-guest.XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else {
      throw HarnessError("mkdtemp in \(parent): \(String(cString: strerror(errno)))")
    }
    path = String(decoding: template.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
  }

  deinit {
    if Environment.value("VHOST_SWIFTD_KEEP_LOGS") == nil {
      try? FileManager.default.removeItem(atPath: path)
    }
  }

  /// The path of a file in it.
  public func file(_ name: String) -> String { path + "/" + name }
}
