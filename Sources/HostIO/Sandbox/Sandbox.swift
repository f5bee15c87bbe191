// Closes what this process could reach, in the order that works (docs/ARCHITECTURE.md, "The sandbox"):
//
//   1. everything is opened: images, sockets, taps, the statistics file; rings are made, disabled
//   2. `closeFiles`: no new privileges, the user, no capabilities, Landlock; there is one thread yet
//   3. rings are restricted (`IOUring.restrict`), threads are started, and each enables its ring
//   4. `closeCalls`: seccomp for all threads; only now is a front-end listened to
//
// Called by the main thread.

import CLinux
import Glibc

/// How the sandbox is used.
public enum SandboxMode: String, Sendable, CaseIterable {
  case on
  /// Denies nothing; what seccomp would have denied goes to the kernel's log.
  case log
  case off
}

public struct Sandbox: Sendable {
  public let mode: SandboxMode
  private let needs: SandboxNeeds
  private let identity: UserIdentity?
  /// Whom the process becomes; nil: stays who it is.
  public var user: UInt32? { identity?.user }
  /// What the kernel lacks, in words, to be told once.
  public private(set) var gaps: [String] = []

  /// `identity`: whom to become; only root can.
  public init(_ mode: SandboxMode, _ needs: SandboxNeeds, identity: UserIdentity? = nil) {
    self.mode = mode
    self.needs = needs
    self.identity = identity
  }

  /// Takes privileges and files away from this thread and those it starts. Throws where the user cannot be had, or where
  /// a part that is there does not work.
  public mutating func closeFiles() throws(HostError) {
    if mode != .off { try Self.check(clx_prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs") }
    if mode == .on { try Self.check(clx_drop_bounding_capabilities(), "dropping the bounding set") }
    try identity?.assume()
    if mode != .off { Self.readLibraryFiles() }
    guard mode == .on else { return }
    try Self.check(clx_drop_capabilities(), "dropping capabilities")
    guard Landlock.version > 0 else {
      gaps.append("Landlock is not in this kernel, or off: files are kept from us by seccomp alone")
      return
    }
    try Landlock.restrict(to: needs)
  }

  /// Takes system calls away from all threads there are.
  public mutating func closeCalls() throws(HostError) {
    guard mode != .off else { return }
    let filter = SeccompFilter(SeccompRule.serving(needs), otherwise: mode == .log ? .log : .refuse)
    do {
      try filter.install()
    } catch {
      // EINVAL: no filters in this kernel, or no thread synchronisation (before 3.17).
      guard error.code == EINVAL || error.code == ENOSYS else { throw error }
      gaps.append("seccomp filters are not in this kernel: system calls are not restricted")
    }
  }

  /// Lets the C library read now what it would read later: the time zone, for the first line of the log. Afterwards it only
  /// asks whether that has changed, by stat.
  private static func readLibraryFiles() {
    var now = time(nil)
    // SAFETY: reads the local value; the result is not used. There is one thread yet.
    _ = unsafe localtime(&now)
  }

  /// Whether this process, as it is now, may remove files from a folder.
  public static func mayRemove(in folder: String) -> Bool {
    // SAFETY: a NUL-terminated copy of the path.
    unsafe faccessat(AT_FDCWD, folder, W_OK | X_OK, AT_EACCESS) == 0
  }

  private static func check(_ code: Int32, _ call: String) throws(HostError) {
    if code != 0 { throw .system(call: call, code: code > 0 ? code : errno) }
  }
}
