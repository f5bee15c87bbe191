// A seccomp filter: rules made into the kernel's classic BPF, and installed in every thread. On the main thread, once all
// others are there.

import CLinux
import Glibc

/// Assembles and installs a filter. What no rule allows is refused with EPERM, or logged and let through.
///
/// Refused, and not killed: the call is not made either way, and a process serves several guests' disks. A C library or a
/// kernel that is newer than the rules then loses that call and nothing else, while a kill would end every disk for it; what
/// an attacker gains is to see the errno. Calls of another architecture, which nothing of ours makes, do kill.
public struct SeccompFilter {
  public enum Otherwise: Sendable {
    case refuse, log

    fileprivate var action: UInt32 {
      switch self {
      case .refuse: UInt32(CLX_SECCOMP_ERRNO) | UInt32(EPERM)
      case .log: UInt32(CLX_SECCOMP_LOG)
      }
    }
  }

  /// The program, as the kernel takes it.
  package let instructions: [sock_filter]

  public init(_ rules: [SeccompRule], otherwise: Otherwise) {
    let foreign = otherwise == .log ? otherwise.action : UInt32(truncatingIfNeeded: CLX_SECCOMP_KILL_PROCESS)
    var program: [sock_filter] = [
      Self.load(UInt32(CLX_SECCOMP_ARCH_OFFSET)),
      Self.skip(ifEqual: clx_audit_arch, then: 1),
      Self.give(foreign),
      Self.load(UInt32(CLX_SECCOMP_NUMBER_OFFSET)),
    ]
    // A tracer that cancels a call (strace's fault injection) makes its number -1: no call at all, and all bits set.
    program += [Self.skip(ifEqual: .max, otherwise: 1), Self.give(otherwise.action)]
    if clx_foreign_call_bit != 0 {
      program += [Self.skip(ifAnyBit: clx_foreign_call_bit, otherwise: 1), Self.give(foreign)]
    }
    for rule in rules {
      guard let number = rule.call.number else { continue }
      let block = Self.block(rule.condition)
      program.append(Self.skip(ifEqual: number, otherwise: UInt8(clamping: block.count)))
      program += block
    }
    program.append(Self.give(otherwise.action))
    instructions = program
  }

  /// What follows the comparison with a call's number: the answer, after a look at an argument. Ends in an answer, or with
  /// the number loaded again for what comes next.
  private static func block(_ condition: SeccompRule.Condition?) -> [sock_filter] {
    let allow = give(UInt32(CLX_SECCOMP_ALLOW))
    let reload = load(UInt32(CLX_SECCOMP_NUMBER_OFFSET))
    switch condition {
    case nil: return [allow]
    case .among(let argument, let values):
      let tests = values.prefix(200)
      return [load(place(of: argument))]
        + tests.enumerated().map { skip(ifEqual: $1, then: UInt8(tests.count - $0)) } + [
          skip(1), allow, reload,
        ]
    case .without(let argument, let bits):
      return [load(place(of: argument)), skip(ifAnyBit: bits, then: 1), allow, reload]
    }
  }

  /// The lower half of an argument; both architectures are little-endian.
  private static func place(of argument: Int) -> UInt32 {
    UInt32(CLX_SECCOMP_ARGUMENT_OFFSET) + 8 * UInt32(argument)
  }

  private static func load(_ offset: UInt32) -> sock_filter {
    sock_filter(code: UInt16(CLX_BPF_LOAD_WORD), jt: 0, jf: 0, k: offset)
  }
  private static func give(_ action: UInt32) -> sock_filter {
    sock_filter(code: UInt16(CLX_BPF_RETURN), jt: 0, jf: 0, k: action)
  }
  private static func skip(ifEqual value: UInt32, then count: UInt8 = 0, otherwise: UInt8 = 0) -> sock_filter
  {
    sock_filter(code: UInt16(CLX_BPF_IF_EQUAL), jt: count, jf: otherwise, k: value)
  }
  private static func skip(ifAnyBit bits: UInt32, then count: UInt8 = 0, otherwise: UInt8 = 0) -> sock_filter
  {
    sock_filter(code: UInt16(CLX_BPF_IF_ANY_BIT), jt: count, jf: otherwise, k: bits)
  }
  /// Always: whether the value has one of no bits or not, the way is the same.
  private static func skip(_ count: UInt8) -> sock_filter { skip(ifAnyBit: 0, otherwise: count) }

  /// Holds all threads to it, for good. They must have `no_new_privs` or CAP_SYS_ADMIN.
  public func install() throws(HostError) {
    // SAFETY: reads the array's own storage; the kernel keeps a copy.
    let code = unsafe instructions.withUnsafeBufferPointer { buffer -> Int32 in
      guard let base = buffer.baseAddress else { return EINVAL }
      return unsafe clx_seccomp_all_threads(base, buffer.count)
    }
    guard code == 0 else { throw .system(call: "seccomp", code: code) }
  }
}
