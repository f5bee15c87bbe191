// What a service asks of the sandbox beside what every service does. A device says it where it is written
// (`VirtioDevice.sandboxNeeds`), an option where it is read; the process gets the union.

import CLinux

/// Room in the sandbox. Everything here is on top of serving rings and a socket that is open already, which needs none
/// of it. Adding a device: its calls on descriptors that it opened before, and nothing that opens one.
public struct SandboxNeeds: Sendable, Equatable {
  /// System calls on descriptors that are held already.
  public var calls: Set<SystemCall> = []
  /// Requests of ioctl(2), on descriptors that are held already.
  public var controls: Set<UInt32> = []
  /// Folders in which a file of ours is removed at the end.
  public var removesIn: Set<String> = []
  /// Folders in which a file is read again while we serve: one that is replaced is another file.
  public var readsIn: Set<String> = []
  /// Unix sockets are connected to.
  public var connects = false

  public init() {}

  /// A device's: calls and requests.
  public init(calls: Set<SystemCall>, controls: Set<UInt32> = []) {
    self.calls = calls
    self.controls = controls
  }

  public mutating func formUnion(_ other: SandboxNeeds) {
    calls.formUnion(other.calls)
    controls.formUnion(other.controls)
    removesIn.formUnion(other.removesIn)
    readsIn.formUnion(other.readsIn)
    connects = connects || other.connects
  }

  /// Adds the folder that a path is in.
  public static func folder(of path: String) -> String {
    guard let slash = path.lastIndex(of: "/") else { return "." }
    return slash == path.startIndex ? "/" : String(path[..<slash])
  }
}
