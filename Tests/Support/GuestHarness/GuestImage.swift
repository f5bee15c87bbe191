// Initramfs images with programs of ours inside. Used on any thread.

import Foundation

public enum GuestImage {
  /// Writes to `path` the usual initramfs with `programs` added in /usr/local/bin, their libraries with them.
  public static func adding(_ programs: [String], writtenTo path: String) throws {
    try Tool.run(
      Environment.repository + "/scripts/guest-image", ["--overlay", path] + programs, timeout: 120)
  }
}
