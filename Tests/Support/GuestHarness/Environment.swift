// Where things are: the repository, the guest image, the program under test. Read on any thread.

import Foundation

/// The places that tests use, each of which the environment can move.
public enum Environment {
  /// A variable that is set and not empty.
  public static func value(_ name: String) -> String? {
    ProcessInfo.processInfo.environment[name].flatMap { $0.isEmpty ? nil : $0 }
  }

  /// How often a test that endures does its round: `usual` in the suite, `$VHOST_SWIFTD_ROUNDS` under scripts/endure.
  public static func rounds(_ usual: Int) -> Int { value("VHOST_SWIFTD_ROUNDS").flatMap { Int($0) } ?? usual }

  /// The repository's folder, above this source file.
  public static let repository: String = {
    var folder = URL(fileURLWithPath: #filePath)
    for _ in 0..<4 { folder.deleteLastPathComponent() }
    return folder.path
  }()

  private static var guestFolder: String {
    (value("VHOST_SWIFTD_CACHE") ?? repository + "/.cache") + "/guest"
  }

  /// `$VHOST_SWIFTD_GUEST_KERNEL`, or what scripts/guest-image made.
  public static func guestKernel() throws -> String {
    try existing(value("VHOST_SWIFTD_GUEST_KERNEL") ?? guestFolder + "/vmlinuz", "run scripts/guest-image")
  }

  /// `$VHOST_SWIFTD_GUEST_INITRAMFS`, or what scripts/guest-image made.
  public static func guestInitramfs() throws -> String {
    try existing(
      value("VHOST_SWIFTD_GUEST_INITRAMFS") ?? guestFolder + "/initramfs", "run scripts/guest-image")
  }

  /// A program of this package: `$VHOST_SWIFTD_BIN` for `vhost-swiftd`, else beside the running test program.
  public static func program(_ name: String) throws -> String {
    if name == "vhost-swiftd", let given = value("VHOST_SWIFTD_BIN") {
      return try existing(given, "set by VHOST_SWIFTD_BIN")
    }
    var folder = try URL(
      fileURLWithPath: FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe"))
    folder.deleteLastPathComponent()
    return try existing(folder.appendingPathComponent(name).path, "build it, or set VHOST_SWIFTD_BIN")
  }

  private static func existing(_ path: String, _ remedy: String) throws -> String {
    guard FileManager.default.fileExists(atPath: path) else {
      throw HarnessError("\(path) does not exist: \(remedy)")
    }
    return path
  }

  /// What the host can run guests with: `kvm` only where a guest really boots with it. Asked once a process.
  public static let accelerator = Result { () throws -> String in
    let run = try Tool.run(repository + "/scripts/guest-accelerator", [], timeout: 120)
    return run.trimmingCharacters(in: .whitespacesAndNewlines)
  }
}
