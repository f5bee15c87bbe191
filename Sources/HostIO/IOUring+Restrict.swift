// What is left to a ring in the sandbox: our own operations, on registered files, and replacing those files.

import CLinux
import Glibc

extension IOUring {
  /// Restricts the ring for good. Before `enable`, from any thread. False where the kernel cannot (before 5.10).
  ///
  /// Every entry must use a registered file, even one that needs none: those name slot 0. That costs nothing, since all our
  /// I/O is on registered files anyway; it does not stop who can already make system calls from registering a descriptor,
  /// but an entry forged in the queue's memory reaches no other. `lentBuffers`: operations on registered buffers too, and taking
  /// others' references.
  public func restrict(lentBuffers: Bool = false) throws(HostError) -> Bool {
    var list: [clx_uring_restriction] = []
    func allow(_ kind: Int, _ value: UInt8) {
      list.append(
        clx_uring_restriction(opcode: UInt16(kind), value: value, reserved: 0, reserved2: (0, 0, 0)))
    }
    allow(CLX_RESTRICTION_REGISTER_OP, UInt8(CLX_REGISTER_FILES_UPDATE))
    if lentBuffers { allow(CLX_RESTRICTION_REGISTER_OP, UInt8(CLX_REGISTER_CLONE_BUFFERS)) }
    for operation in Operation.allCases where supports(operation) && (lentBuffers || !operation.isFixed) {
      allow(CLX_RESTRICTION_SQE_OP, operation.rawValue)
    }
    allow(CLX_RESTRICTION_SQE_FLAGS_ALLOWED, UInt8(CLX_IOSQE_FIXED_FILE | CLX_IOSQE_CQE_SKIP_SUCCESS))
    allow(CLX_RESTRICTION_SQE_FLAGS_REQUIRED, UInt8(CLX_IOSQE_FIXED_FILE))
    let count = UInt32(list.count)
    // SAFETY: reads the array's own storage during the call.
    let code = unsafe list.withUnsafeMutableBytes {
      unsafe clx_uring_register(descriptor, UInt32(CLX_REGISTER_RESTRICTIONS), $0.baseAddress, count)
    }
    if code == 0 { return true }
    guard errno == EINVAL else { throw .system(call: "io_uring_register(restrictions)", code: errno) }
    return false
  }
}

/// An operation that no ring of ours makes, to see that it is refused. For `selftest-sandbox`.
package struct RingAct: Sendable {
  package let name: String
  let opcode: UInt8
  static let openat: UInt8 = 18

  package static let all: [RingAct] = [
    RingAct(name: "OPENAT", opcode: openat), RingAct(name: "OPENAT2", opcode: 28),
    RingAct(name: "UNLINKAT", opcode: 36),
    RingAct(name: "RENAMEAT", opcode: 35), RingAct(name: "SOCKET", opcode: 45),
    RingAct(name: "CONNECT", opcode: 16),
    RingAct(name: "ACCEPT", opcode: 13), RingAct(name: "SENDMSG", opcode: 9),
    RingAct(name: "SPLICE", opcode: 30),
    RingAct(name: "EPOLL_CTL", opcode: 29), RingAct(name: "MSG_RING", opcode: 40),
    RingAct(name: "READ of a descriptor that is not registered", opcode: 22),
  ]
}

extension IOUring {
  /// Whether the kernel knows it at all.
  package func knows(_ act: RingAct) -> Bool { Int(act.opcode) < probed.count && probed[Int(act.opcode)] }

  /// Prepares it, with arguments that do no harm where it is not refused: null pointers and no descriptor, and a file that
  /// there surely is for the one that opens it to read. On the owner's thread.
  package mutating func prepare(_ act: RingAct, token: UInt64) {
    let opens = act.opcode == RingAct.openat
    let path = unsafe opens ? UInt64(UInt(bitPattern: Self.somewhere)) : 0
    // SAFETY: an entry of 64 bytes; the path is a constant of the program's.
    unsafe clx_sqe_fill(entry(), act.opcode, 0, opens ? AT_FDCWD : -1, 0, path, 0, 0, token)
  }

  // SAFETY: never freed, never written.
  private nonisolated(unsafe) static let somewhere: UnsafeMutablePointer<CChar>? = unsafe strdup("/")
}
