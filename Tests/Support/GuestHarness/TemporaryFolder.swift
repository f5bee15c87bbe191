// A folder of a test's own. Made and used on any thread.

import Foundation

/// A new folder under /tmp, with a short path because socket paths end at 107 bytes. Removed with its contents
/// when the last reference goes, unless `VHOST_SWIFTD_KEEP_LOGS` is set.
public final class TemporaryFolder: Sendable {
  public let path: String

  public init() throws {
    var template = Array("/tmp/vhost-guest.XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else {
      throw HarnessError("mkdtemp in /tmp: \(String(cString: strerror(errno)))")
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
