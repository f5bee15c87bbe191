// What can go wrong with the host: a system call by name and errno, or a path that cannot be used. Values.

import CLinux
import Glibc

/// A failure of the host side. `description` is one sentence for a person.
public enum HostError: Error, Equatable, Sendable, CustomStringConvertible {
  /// A system call failed with this errno.
  case system(call: String, code: Int32)
  /// A socket path of more bytes than an address holds.
  case pathTooLong(path: String, limit: Int)
  /// Somebody listens there.
  case pathInUse(path: String)
  /// Something that is not a socket has the path.
  case notASocket(path: String)
  /// More descriptors came with a message than there was room for.
  case tooManyDescriptors
  /// A processor list that does not parse, or names none.
  case badProcessorList(String)
  /// Processors that this process may not use: offline, absent, or kept from it.
  case processorsUnavailable([Int])

  /// The errno, where there is one.
  public var code: Int32? {
    if case .system(_, let code) = self { return code }
    return nil
  }

  public var description: String {
    switch self {
    case .system(let call, let code): "\(call): \(Self.text(of: code))"
    case .pathTooLong(let path, let limit):
      "socket path '\(path)' is too long: \(path.utf8.count) bytes, at most \(limit) are possible"
    case .pathInUse(let path): "socket '\(path)' is in use: another process listens there"
    case .notASocket(let path): "'\(path)' exists and is not a socket: give another path or remove it"
    case .tooManyDescriptors: "more descriptors in one message than a message may carry"
    case .badProcessorList(let list): "processor list '\(list)': expected numbers and ranges, such as 0,2-5"
    case .processorsUnavailable(let list):
      "processors \(list) cannot be used: offline, absent, or not allowed to this process"
    }
  }

  /// The system's words for an errno.
  public static func text(of code: Int32) -> String {
    // SAFETY: the buffer outlives the call; the GNU strerror_r may return a constant string instead.
    unsafe withUnsafeTemporaryAllocation(of: CChar.self, capacity: 256) { buffer in
      guard let base = buffer.baseAddress else { return "error \(code)" }
      return unsafe clx_strerror(code, base, buffer.count) == 0
        ? unsafe String(cString: base) : "error \(code)"
    }
  }

  /// The failure of the call that has just returned.
  static func last(_ call: String) -> HostError { .system(call: call, code: errno) }
}
