// Whom the process runs as: `--user`, and the end of its capabilities. On the main thread before there is another:
// capabilities are each thread's own.

import CLinux
import Glibc

/// A user with its groups, by numbers.
public struct UserIdentity: Sendable, Equatable {
  public let user: UInt32
  public let group: UInt32
  /// All groups, where the user was given by name; else only `group`.
  public let groups: [UInt32]

  /// A name of the user database, or numbers: "uid" or "uid:gid" (alone, the user's own group, or one of the same number).
  /// Nil: there is no such user.
  public init?(_ text: String) {
    let parts = text.split(separator: ":", omittingEmptySubsequences: false)
    if let user = Self.number(parts.first ?? "") {
      let given = parts.count > 1 ? Self.number(parts[1]) : nil
      guard parts.count == 1 || parts.count == 2 && given != nil else { return nil }
      self.user = user
      // SAFETY: the entry is read before any other call could replace it; there is one thread yet.
      let entry = unsafe getpwuid(user)
      let own = unsafe entry.map { unsafe $0.pointee.pw_gid } ?? user
      group = given ?? own
      groups = [group]
      return
    }
    // SAFETY: as above.
    guard parts.count == 1, let entry = unsafe getpwnam(text) else { return nil }
    user = unsafe entry.pointee.pw_uid
    group = unsafe entry.pointee.pw_gid
    var found = [UInt32](repeating: 0, count: 1024)
    // SAFETY: fills at most the array's count.
    let count = unsafe clx_groups_of(text, group, &found, found.count)
    groups = Array(found.prefix(max(0, Int(count))))
  }

  /// A user or group number; the highest one means "none" to the kernel.
  private static func number(_ text: Substring) -> UInt32? {
    guard !text.isEmpty, text.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }) else {
      return nil
    }
    return UInt32(text).flatMap { $0 == .max ? nil : $0 }
  }

  /// Makes the process that user's, for good.
  func assume() throws(HostError) {
    // SAFETY: reads the array.
    let code = unsafe clx_become(user, group, groups, groups.count)
    guard code == 0 else { throw .system(call: "becoming user \(user), group \(group)", code: code) }
  }
}
