// Landlock: what of the file system, of TCP, and of other processes this one may still reach. Holds for the thread that
// restricts itself and those it starts from then on: the main thread, before there is another. What is open already stays
// as it is.

import CLinux
import Glibc

/// A set of Landlock rules in the making.
struct Landlock {
  /// The kernel's version; 0: none, or not switched on.
  static var version: Int { Int(clx_landlock_version()) }

  /// Every right that a version can take away.
  private static func rights(_ version: Int) -> UInt64 {
    var rights = UInt64(CLX_LANDLOCK_VERSION_1)
    if version >= 2 { rights |= UInt64(CLX_LANDLOCK_REFER) }
    if version >= 3 { rights |= UInt64(CLX_LANDLOCK_TRUNCATE) }
    if version >= 5 { rights |= UInt64(CLX_LANDLOCK_IOCTL_DEVICE) }
    return rights
  }

  /// Takes everything away but what `needs` names. Throws what the kernel says.
  static func restrict(to needs: SandboxNeeds) throws(HostError) {
    let version = Self.version
    let raw = clx_landlock_create(
      rights(version), version >= 4 ? UInt64(CLX_LANDLOCK_TCP) : 0,
      version >= 6 ? UInt64(CLX_LANDLOCK_SCOPES) : 0, Int32(clamping: version))
    guard raw >= 0 else { throw .last("landlock_create_ruleset") }
    let rules = OwnedFD(adopting: raw)
    for folder in needs.removesIn { try allow(UInt64(CLX_LANDLOCK_REMOVE_FILE), in: folder, rules) }
    for folder in needs.readsIn { try allow(UInt64(CLX_LANDLOCK_READ_FILE), in: folder, rules) }
    guard clx_landlock_restrict(rules.raw) == 0 else { throw .last("landlock_restrict_self") }
  }

  /// A folder that is not there, or is not for us, has nothing in it that we could use. Any other failure to open it (no
  /// room for a descriptor) would silently take away what is needed.
  private static func allow(_ rights: UInt64, in folder: String, _ rules: borrowing OwnedFD) throws(HostError)
  {
    // SAFETY: a NUL-terminated copy of the path.
    let place = unsafe OwnedFD(adopting: clx_open(folder, clx_O_PATH | O_DIRECTORY | O_CLOEXEC, 0))
    guard place.raw >= 0 else {
      guard [ENOENT, ENOTDIR, EACCES, ELOOP].contains(errno) else { throw .last("open '\(folder)'") }
      return
    }
    guard clx_landlock_allow(rules.raw, place.raw, rights) == 0 else {
      throw .last("landlock_add_rule '\(folder)'")
    }
  }
}
