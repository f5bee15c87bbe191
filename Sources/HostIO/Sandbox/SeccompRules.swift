// Which system calls a service makes while it serves: the steady set, seen by strace over disks, entropy, several devices,
// reconnects, every signal, statistics and the end of the process, plus what the C library does on its own. All that opens,
// creates, starts or reaches out is missing. Read when the sandbox closes.

import CLinux
import Glibc

/// One call that may be made, and what must hold of its arguments. An argument is compared in its lower 32 bits: each of
/// those named here is an int to the kernel.
public struct SeccompRule: Sendable, Equatable {
  public enum Condition: Sendable, Equatable {
    /// The argument is one of these.
    case among(argument: Int, [UInt32])
    /// None of these bits is set in the argument.
    case without(argument: Int, bits: UInt32)
  }
  public var call: SystemCall
  public var condition: Condition?

  public init(_ call: SystemCall, _ condition: Condition? = nil) {
    self.call = call
    self.condition = condition
  }
}

extension SeccompRule {
  /// What `needs` adds to the steady set, and that set. The most frequent calls come first.
  public static func serving(_ needs: SandboxNeeds) -> [SeccompRule] {
    let always = waiting + descriptors + memory + control + ending
    let seen = Set(always.map(\.call)).union(needs.calls)
    var rules = always + needs.calls.subtracting(always.map(\.call)).map { SeccompRule($0) }
    rules.append(SeccompRule(.ioctl, .among(argument: 1, needs.controls.sorted())))
    if needs.connects {
      rules.append(SeccompRule(.socket, .among(argument: 0, [UInt32(AF_UNIX)])))
      rules.append(SeccompRule(.connect))
    }
    if !needs.readsIn.isEmpty {
      let changing = O_WRONLY | O_RDWR | O_CREAT | O_TRUNC | O_APPEND
      rules.append(SeccompRule(.openat, .without(argument: 2, bits: UInt32(bitPattern: changing))))
      if !seen.contains(.pread64) { rules.append(SeccompRule(.pread64)) }
    }
    return rules.sorted { $0.call.rawValue < $1.call.rawValue }.sorted { hotter($0.call, $1.call) }
  }

  /// What queue threads wait and do their I/O by, and what wakes them.
  private static var waiting: [SeccompRule] {
    [
      .ringEnter, .futex, .ppoll, .poll, .clockGetTime, .clockNanosleep, .nanosleep, .yield, .getcpu,
      .gettimeofday,
      .futexWaitV, .restart,
    ].map { SeccompRule($0) }
  }

  /// Reading and writing what is open; sockets that are there, and descriptors that come over them.
  private static var descriptors: [SeccompRule] {
    [
      .read, .write, .readv, .writev, .recvmsg, .sendmsg, .sendto, .accept4, .shutdown, .close, .dup, .fstat,
      .newfstatat,
      .statx, .fstatfs, .lseek, .ftruncate, .eventfd2, .memfdCreate, .getsockopt, .setsockopt, .getsockname,
    ].map { SeccompRule($0) } + [
      // 0 to 4: descriptors and their flags; the file locks; close-on-exec copies; pipe sizes and seals.
      SeccompRule(
        .fcntl,
        .among(
          argument: 1,
          [
            0, 1, 2, 3, 4, UInt32(CLX_F_OFD_GETLK), UInt32(CLX_F_OFD_SETLK), 1030, UInt32(CLX_F_ADD_SEALS),
            1034,
          ]))
    ]
  }

  /// Memory, none of it executable: `mmap` and `mprotect` without PROT_EXEC.
  private static var memory: [SeccompRule] {
    let executable = SeccompRule.Condition.without(argument: 2, bits: UInt32(PROT_EXEC))
    return [SeccompRule(.mmap, executable), SeccompRule(.mprotect, executable)]
      + [
        .munmap, .mremap, .madvise, .brk, .msync, .getrandom, .mbind, .setMemoryPolicy, .getMemoryPolicy,
        .membarrier,
      ].map { SeccompRule($0) } + [
        // Only our own pages, threads and limits: another process would be named by its id.
        SeccompRule(.movePages, .among(argument: 0, [0])),
        SeccompRule(.setAffinity, .among(argument: 0, [0])),
        SeccompRule(.getAffinity),
      ]
  }

  /// Rings that are there; threads at their beginning and end; signals.
  private static var control: [SeccompRule] {
    [
      .ringRegister, .capget, .getpid, .gettid, .getuid, .geteuid, .getgid, .getegid, .sysinfo, .uname, .rseq,
      .setRobustList,
      .signalAction, .signalMask, .signalReturn, .signalStack,
    ].map { SeccompRule($0) } + [
      // 15: a thread's name; 21, 39: asking whether the sandbox is closed.
      SeccompRule(.prctl, .among(argument: 0, [15, 21, 39])),
      SeccompRule(.tgkill, .among(argument: 0, [UInt32(bitPattern: getpid())])),
    ]
  }

  /// Removing the socket (Landlock says where), and the end.
  private static var ending: [SeccompRule] {
    [.unlink, .unlinkat, .exit, .exitGroup].map { SeccompRule($0) }
  }

  /// Whether a call is wanted before another in the filter: older kernels go through it for each call.
  private static func hotter(_ one: SystemCall, _ other: SystemCall) -> Bool {
    let order: [SystemCall] = [
      .ringEnter, .futex, .preadv2, .pwritev2, .read, .write, .ppoll, .poll, .clockGetTime,
    ]
    return (order.firstIndex(of: one) ?? order.count) < (order.firstIndex(of: other) ?? order.count)
  }
}
