// Notices that a device has changed from outside: a disk's size (a file by inotify, a block device by looking once a
// second), a network's link. SIGHUP asks too, without this.

import BlockBackend
import CLinux
import Glibc
import HostIO

/// What the program's main loop waits on for a device's sake, beside signals and the server's end.
struct SizeWatch: ~Copyable {
  /// Readable when the file changed; -1 where there is only the clock.
  private let events: OwnedFD
  /// How long to wait at most before looking again; nil: no clock.
  let interval: Duration?
  /// Looks; true where the device's configuration has changed.
  let refresh: () -> Bool

  /// Only SIGHUP asks.
  init(onRequest refresh: @escaping () -> Bool) {
    events = OwnedFD(adopting: -1)
    interval = nil
    self.refresh = refresh
  }

  /// Looks whenever a descriptor becomes readable too.
  init(events: consuming OwnedFD, refresh: @escaping () -> Bool) {
    self.events = events
    interval = nil
    self.refresh = refresh
  }

  /// Watches a path too.
  init(path: String, refresh: @escaping () -> Bool) throws {
    self.refresh = refresh
    var facts = stat()
    // SAFETY: fills the local value; NUL-terminated copies of the path.
    guard unsafe stat(path, &facts) == 0 else { throw HostError.system(call: "stat '\(path)'", code: errno) }
    if facts.st_mode & S_IFMT == S_IFBLK {
      events = OwnedFD(adopting: -1)
      interval = .seconds(1)
      return
    }
    let queue = OwnedFD(adopting: inotify_init1(Int32(IN_CLOEXEC) | Int32(IN_NONBLOCK)))
    guard queue.raw >= 0, unsafe inotify_add_watch(queue.raw, path, UInt32(IN_MODIFY | IN_ATTRIB)) >= 0 else {
      throw HostError.system(call: "inotify '\(path)'", code: errno)
    }
    events = consume queue
    interval = nil
  }

  var raw: Int32 { events.raw }

  /// Forgets the events that made `raw` readable.
  func drain() {
    var bytes = [UInt8](repeating: 0, count: 4096)
    // SAFETY: reads into the array's own storage.
    while unsafe bytes.withUnsafeMutableBytes({ unsafe read(raw, $0.baseAddress, $0.count) }) > 0 {}
  }
}
