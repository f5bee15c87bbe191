// userfaultfd(2): memory whose missing pages somebody else brings. A touch of a missing page, by us or by the kernel for us,
// waits until whoever holds the descriptor has put the page there. The source is opened on the main thread, before the sandbox;
// the rest is called by the control thread and by who watches over it.

import CLinux
import Glibc
import Synchronization

/// Where descriptors come from once the sandbox is closed.
public final class UserFaultSource: Sendable {
  /// /dev/userfaultfd (Linux 6.1): as many as are wanted. Below 0: none.
  private let device: OwnedFD
  /// Without it one is made now, and it is the only one.
  private let spare = Mutex<OwnedFD?>(nil)

  /// Throws EPERM where this process may have none, ENOSYS where the kernel has none.
  public init() throws(HostError) {
    // SAFETY: a constant path.
    device = unsafe OwnedFD(adopting: clx_open("/dev/userfaultfd", O_RDWR | O_CLOEXEC, 0))
    if device.raw >= 0 {
      // It is there and open, and yet may be of no use.
      _ = try make()
      return
    }
    let made = clx_userfault()
    guard made >= 0 else { throw .last("userfaultfd") }
    spare.withLock { $0 = OwnedFD(adopting: made) }
  }

  /// Requests of ioctl(2) that serving needs.
  public static let controls: Set<UInt32> = Set(
    [
      clx_USERFAULTFD_NEW, clx_USERFAULT_API, clx_USERFAULT_REGISTER, clx_USERFAULT_UNREGISTER,
      clx_USERFAULT_WAKE,
    ].map { UInt32(truncatingIfNeeded: $0) })

  /// One for a session; throws EBUSY where the only one is gone.
  public func make() throws(HostError) -> UserFaults {
    if device.raw >= 0 {
      let made = OwnedFD(adopting: clx_userfault_from(device.raw))
      guard made.raw >= 0 else { throw .last("USERFAULTFD_IOC_NEW") }
      return try UserFaults(made)
    }
    guard let last = spare.withLock({ $0.take() }) else { throw .system(call: "userfaultfd", code: EBUSY) }
    return try UserFaults(last)
  }
}

/// One descriptor, and the mappings whose faults it tells. Any thread.
public final class UserFaults: Sendable {
  private struct Watched { weak var mapping: Mapping? }
  private struct State: ~Copyable {
    var descriptor: OwnedFD?
    var watched: [Watched] = []
  }
  private let state: Mutex<State>

  fileprivate init(_ descriptor: consuming OwnedFD) throws(HostError) {
    guard clx_userfault_begin(descriptor.raw) == 0 else { throw .last("UFFDIO_API") }
    // Released and adopted again: a closure cannot take it over.
    let raw = descriptor.release()
    state = Mutex(State(descriptor: OwnedFD(adopting: raw)))
  }

  /// The descriptor once more, for who brings the pages. Whoever has it can do more than that: it is power over all memory
  /// of this process that nobody has touched yet.
  public func share() throws(HostError) -> OwnedFD {
    try state.withLock { state throws(HostError) in
      try OwnedFD.duplicate(of: state.descriptor?.raw ?? -1)
    }
  }

  /// Has touches of missing pages of a mapping wait, and then lets it be touched (`Mapping.init(… closed: true)`).
  public func watch(_ mapping: Mapping) throws(HostError) {
    let code = state.withLock { state -> Int32 in
      guard let raw = state.descriptor?.raw else { return EBADF }
      state.watched.removeAll { $0.mapping == nil }
      // Whole pages of the file's own size: the mapping's own.
      // SAFETY: a mapping of ours, which the caller holds.
      guard unsafe clx_userfault_register(raw, mapping.base, UInt64(mapping.length)) == 0 else {
        return errno
      }
      state.watched.append(Watched(mapping: mapping))
      return 0
    }
    guard code == 0 else { throw .system(call: "UFFDIO_REGISTER", code: code) }
    try mapping.open()
  }

  /// All pages are there: nothing waits any more.
  public func end() {
    settle { raw, mapping in
      // SAFETY: a mapping of ours, held here.
      _ = unsafe clx_userfault_unregister(raw, mapping.base, UInt64(mapping.length))
    }
  }

  /// Nobody brings pages any more, and some are missing: the memory is gone, as where a file was cut off. Touches that wait, and
  /// those to come, find that out: to let them go on would show zeros that nobody wrote.
  public func abandon() {
    settle { raw, mapping in
      mapping.cutOff()
      // SAFETY: as above.
      _ = unsafe clx_userfault_wake(raw, mapping.base, UInt64(mapping.length))
    }
  }

  /// Does a last thing to each mapping that is still there, and closes the descriptor.
  private func settle(_ body: (Int32, Mapping) -> Void) {
    state.withLock { state in
      guard let descriptor = state.descriptor.take() else { return }
      for watched in state.watched { if let mapping = watched.mapping { body(descriptor.raw, mapping) } }
      state.watched = []
    }
  }

  deinit { abandon() }
}
