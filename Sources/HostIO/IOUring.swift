// One io_uring: made disabled by the control thread, enabled and from then on used by one queue thread only
// (SINGLE_ISSUER). Submission is in IOUring+Submit.swift, completions in IOUring+Complete.swift.

import CLinux
import CLiburing
import Glibc

/// A place in a ring's table of registered files. Operations name files by it, never by descriptor, so that the ring
/// can be restricted to what was registered.
public struct FileSlot: Sendable, Equatable {
  public let index: UInt32
  @inlinable public init(_ index: UInt32) { self.index = index }
}

/// An io_uring and its table of registered files. Owns both.
@safe public struct IOUring: ~Copyable {
  // SAFETY: one heap cell with a fixed address, initialised by liburing before it is stored here and torn down in
  // `deinit`; the rings it points to are mapped for as long. Only one thread at a time holds this value.
  @usableFromInline let ring: UnsafeMutablePointer<io_uring>
  // SAFETY: a constant with a fixed address, alive with the ring.
  let pauseTime: UnsafeMutablePointer<__kernel_timespec>
  // SAFETY: one a submission entry, by its place in the queue: the kernel reads it when it takes the entry.
  let timerTimes: UnsafeMutablePointer<__kernel_timespec>
  /// Entries in the submission queue.
  public let capacity: UInt32
  public let fileCapacity: UInt32
  let probed: [Bool]

  /// Set-up flags from the best to the plainest: kernel 6.1 has the first, 5.19 the second, 5.13 the last.
  private static let setups: [UInt32] = [
    UInt32(
      CLX_SETUP_SINGLE_ISSUER | CLX_SETUP_DEFER_TASKRUN | CLX_SETUP_TASKRUN_FLAG
        | CLX_SETUP_SUBMIT_ALL),
    UInt32(
      CLX_SETUP_COOP_TASKRUN | CLX_SETUP_TASKRUN_FLAG | CLX_SETUP_SUBMIT_ALL),
    0,
  ]

  /// Makes a disabled ring of at least `entries` submission entries and four times as many completion entries, with an
  /// empty table of `files` registered files. Throws where the kernel has no io_uring or refuses it (ENOSYS, EPERM,
  /// ENOMEM).
  public init(entries: UInt32, files: UInt32) throws(HostError) {
    let cell = UnsafeMutablePointer<io_uring>.allocate(capacity: 1)
    unsafe cell.initialize(to: io_uring())
    var code: Int32 = 0
    for flags in Self.setups {
      // SAFETY: a zeroed parameter block and cell, as liburing asks.
      var parameters = io_uring_params()
      parameters.flags =
        flags
        | UInt32(
          CLX_SETUP_R_DISABLED | CLX_SETUP_CQSIZE | CLX_SETUP_CLAMP)
      parameters.cq_entries = entries &* 4
      code = unsafe io_uring_queue_init_params(entries, cell, &parameters)
      // Only a flag that the kernel does not know is worth a plainer attempt.
      if code != -EINVAL { break }
    }
    guard code == 0 else {
      unsafe cell.deallocate()
      throw .system(call: "io_uring_setup", code: -code)
    }
    if files > 0 {
      code = unsafe io_uring_register_files_sparse(cell, files)
      guard code == 0 else {
        unsafe io_uring_queue_exit(cell)
        unsafe cell.deallocate()
        throw .system(call: "io_uring_register(files)", code: -code)
      }
    }
    probed = unsafe Self.probe(cell)
    unsafe ring = unsafe cell
    unsafe pauseTime = .allocate(capacity: 1)
    unsafe pauseTime.initialize(to: __kernel_timespec(tv_sec: 0, tv_nsec: 200_000_000))
    capacity = unsafe cell.pointee.sq.ring_entries
    unsafe timerTimes = .allocate(capacity: Int(capacity))
    unsafe timerTimes.initialize(repeating: __kernel_timespec(), count: Int(capacity))
    fileCapacity = files
  }

  deinit {
    // SAFETY: initialised in `init`, and used by nobody after this value's end.
    unsafe io_uring_queue_exit(ring)
    unsafe ring.deallocate()
    unsafe pauseTime.deallocate()
    unsafe timerTimes.deallocate()
  }

  private static func probe(_ ring: UnsafeMutablePointer<io_uring>) -> [Bool] {
    // SAFETY: the probe is liburing's allocation; its `ops` array has `ops_len` entries after the head.
    guard let probe = unsafe io_uring_get_probe_ring(ring) else { return [] }
    defer { unsafe io_uring_free_probe(probe) }
    return (0..<256).map { unsafe io_uring_opcode_supported(probe, Int32($0)) != 0 }
  }

  /// The ring's own descriptor.
  public var descriptor: Int32 { unsafe ring.pointee.ring_fd }

  /// Whether the kernel knows an operation (IORING_OP_*).
  public func supports(_ operation: Operation) -> Bool {
    Int(operation.rawValue) < probed.count && probed[Int(operation.rawValue)]
  }

  /// Lets entries be submitted. Called once, by the thread that is to own the ring.
  public func enable() throws(HostError) {
    let code = clx_uring_register(descriptor, UInt32(CLX_REGISTER_ENABLE_RINGS), nil, 0)
    guard code == 0 else { throw .system(call: "io_uring_register(enable)", code: errno) }
  }

  /// Puts a descriptor into a slot of the file table, or empties the slot (-1). The table holds its own reference: the
  /// caller may close its descriptor. Before `enable` from any thread, afterwards from the owner only.
  public func register(_ descriptor: Int32, at slot: FileSlot) throws(HostError) {
    var value = descriptor
    let code = unsafe io_uring_register_files_update(ring, slot.index, &value, 1)
    guard code == 1 else {
      throw .system(call: "io_uring_register(files_update)", code: code < 0 ? -code : EINVAL)
    }
  }

  /// The operations this project submits, by the kernel's numbers (IORING_OP_*).
  public enum Operation: UInt8, Sendable, CaseIterable {
    case nop = 0
    case readv = 1
    case writev = 2
    case fsync = 3
    case readFixed = 4
    case writeFixed = 5
    case pollAdd = 6
    case pollRemove = 7
    case timeout = 11
    case asyncCancel = 14
    case fallocate = 17
    case read = 22
    case write = 23
    case readvFixed = 60
    case writevFixed = 61

    /// Those on registered buffers: for rings that were lent some.
    var isFixed: Bool {
      switch self {
      case .readFixed, .writeFixed, .readvFixed, .writevFixed: true
      default: false
      }
    }
  }
}
