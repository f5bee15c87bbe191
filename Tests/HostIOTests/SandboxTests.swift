// The sandbox's parts that can be looked at without closing this process: the filter's program, read by an interpreter of
// its own; a restricted ring; users.

import CLinux
import Glibc
import HostIO
import Testing

/// Runs a classic BPF program as the kernel would, over a system call.
private struct Interpreter {
  let program: [sock_filter]

  init(_ rules: [SeccompRule], otherwise: SeccompFilter.Otherwise = .refuse) {
    program = SeccompFilter(rules, otherwise: otherwise).instructions
  }

  /// The answer; nil where the program leaves its end.
  func answer(number: UInt32, _ arguments: [UInt64] = [], architecture: UInt32 = clx_audit_arch) -> UInt32? {
    var words = [UInt32](repeating: 0, count: 16)
    words[CLX_SECCOMP_NUMBER_OFFSET / 4] = number
    words[CLX_SECCOMP_ARCH_OFFSET / 4] = architecture
    for (i, argument) in arguments.enumerated() {
      words[CLX_SECCOMP_ARGUMENT_OFFSET / 4 + 2 * i] = UInt32(truncatingIfNeeded: argument)
      words[CLX_SECCOMP_ARGUMENT_OFFSET / 4 + 2 * i + 1] = UInt32(truncatingIfNeeded: argument >> 32)
    }
    var place = 0
    var accumulator: UInt32 = 0
    while program.indices.contains(place) {
      let step = program[place]
      switch Int(step.code) {
      case CLX_BPF_LOAD_WORD: accumulator = words[Int(step.k) / 4]
      case CLX_BPF_IF_EQUAL: place += accumulator == step.k ? Int(step.jt) : Int(step.jf)
      case CLX_BPF_IF_ANY_BIT: place += accumulator & step.k != 0 ? Int(step.jt) : Int(step.jf)
      case CLX_BPF_RETURN: return step.k
      default: return nil
      }
      place += 1
    }
    return nil
  }

  func allows(_ call: SystemCall, _ arguments: UInt64...) -> Bool {
    guard let number = call.number else { return false }
    return answer(number: number, arguments) == UInt32(CLX_SECCOMP_ALLOW)
  }
}

@Suite("Sandbox parts")
struct SandboxTests {
  @Test("The filter answers every number: what no rule names is refused, or logged")
  func numbers() {
    let rules = SeccompRule.serving(SandboxNeeds())
    let allowed = Set(rules.compactMap { $0.condition == nil ? $0.call.number : nil })
    let conditional = Set(rules.compactMap { $0.condition != nil ? $0.call.number : nil })
    for (otherwise, action) in [
      (SeccompFilter.Otherwise.refuse, UInt32(CLX_SECCOMP_ERRNO) | UInt32(EPERM)),
      (.log, UInt32(CLX_SECCOMP_LOG)),
    ] {
      let filter = Interpreter(rules, otherwise: otherwise)
      for number: UInt32 in 0..<600 where !conditional.contains(number) {
        let expected = allowed.contains(number) ? UInt32(CLX_SECCOMP_ALLOW) : action
        #expect(filter.answer(number: number) == expected, "call \(number)")
      }
    }
    #expect(rules.count < 120 && Interpreter(rules).program.count < 4096)
  }

  @Test("Calls of another architecture end the process, and only where the sandbox is on")
  func foreign() {
    let rules = SeccompRule.serving(SandboxNeeds())
    let kill = UInt32(truncatingIfNeeded: CLX_SECCOMP_KILL_PROCESS)
    let read = SystemCall.read.number ?? 0
    #expect(Interpreter(rules).answer(number: read, architecture: 0x4000_0003) == kill)
    if clx_foreign_call_bit != 0 {
      #expect(Interpreter(rules).answer(number: read | clx_foreign_call_bit) == kill)
    }
    // Unless a tracer has cancelled the call: that is none.
    #expect(Interpreter(rules).answer(number: .max) == UInt32(CLX_SECCOMP_ERRNO) | UInt32(EPERM))
    #expect(
      Interpreter(rules, otherwise: .log).answer(number: read, architecture: 0x4000_0003)
        == UInt32(CLX_SECCOMP_LOG))
  }

  @Test("Memory may be mapped and protected in any way but to be executed")
  func executable() {
    let filter = Interpreter(SeccompRule.serving(SandboxNeeds()))
    for call in [SystemCall.mmap, .mprotect] {
      #expect(filter.allows(call, 0, 4096, UInt64(PROT_READ | PROT_WRITE)))
      for protection in [PROT_EXEC, PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC] {
        #expect(!filter.allows(call, 0, 4096, UInt64(protection)))
      }
    }
  }

  @Test("What a device or an option needs is added, and that alone")
  func needs() {
    let plain = Interpreter(SeccompRule.serving(SandboxNeeds()))
    for call in [
      SystemCall.socket, .connect, .openat, .fallocate, .ioctl, .ringSetup, .execve, .clone, .clone3, .open,
    ] {
      #expect(!plain.allows(call))
    }
    var needs = SandboxNeeds(calls: [.fallocate], controls: [UInt32(clx_BLKDISCARD), 7])
    needs.connects = true
    needs.readsIn = ["/etc"]
    let filter = Interpreter(SeccompRule.serving(needs))
    #expect(filter.allows(.fallocate))
    #expect(
      filter.allows(.ioctl, 3, 7) && filter.allows(.ioctl, 3, UInt64(clx_BLKDISCARD))
        && !filter.allows(.ioctl, 3, 8))
    // The kernel takes a request from the lower half alone.
    #expect(filter.allows(.ioctl, 3, 7 | 1 << 32))
    #expect(
      filter.allows(.socket, UInt64(AF_UNIX)) && !filter.allows(.socket, UInt64(AF_INET))
        && filter.allows(.connect))
    #expect(filter.allows(.openat, 0, 0, UInt64(O_RDONLY | O_CLOEXEC)))
    for flags in [O_WRONLY, O_RDWR, O_RDONLY | O_CREAT, O_RDONLY | O_TRUNC] {
      #expect(!filter.allows(.openat, 0, 0, UInt64(flags)))
    }
    #expect(!filter.allows(.ringSetup) && !filter.allows(.execve) && !filter.allows(.openat2))
  }

  @Test("Signals go to this process's own threads only, and pages and processors are moved for itself only")
  func own() {
    let filter = Interpreter(SeccompRule.serving(SandboxNeeds()))
    #expect(
      filter.allows(.tgkill, UInt64(getpid())) && !filter.allows(.tgkill, 1) && !filter.allows(.kill, 1))
    #expect(filter.allows(.movePages, 0) && !filter.allows(.movePages, 1))
    #expect(filter.allows(.setAffinity, 0) && !filter.allows(.setAffinity, 1))
  }

  @Test("A restricted ring makes each of our operations, and no other, on registered files and no other")
  func ring() throws {
    var ring = try IOUring(entries: 8, files: 2)
    #expect(try ring.restrict())
    let event = try EventFD()
    try ring.register(event.raw, at: FileSlot(0))
    try ring.enable()
    func result(_ prepare: (inout IOUring) -> Void) -> Int32? {
      prepare(&ring)
      ring.submitAndWait(nanoseconds: 10_000_000_000)
      guard let completion = ring.peek() else { return nil }
      ring.advance()
      return completion.result
    }
    var one: UInt64 = 1
    withUnsafeMutablePointer(to: &one) { one in
      #expect(
        result {
          $0.submit(.write, on: FileSlot(0), offset: 0, address: UInt(bitPattern: one), length: 8, token: 1)
        } == 8)
      #expect(
        result {
          $0.submit(.read, on: FileSlot(0), offset: 0, address: UInt(bitPattern: one), length: 8, token: 2)
        } == 8)
      var vector = iovec(iov_base: one, iov_len: 8)
      #expect(result { $0.writev(FileSlot(0), &vector, count: 1, offset: 0, durable: false, token: 3) } == 8)
      #expect(result { $0.readv(FileSlot(0), &vector, count: 1, offset: 0, token: 4) } == 8)
    }
    #expect(result { $0.pause(token: 5) } == -ETIME)
    #expect(result { $0.cancelPoll(target: 99, token: 6) } == -ENOENT)
    // An eventfd cannot be synchronised: refused by the file, not by the ring.
    #expect(result { $0.syncData(FileSlot(0), token: 7) } == -EINVAL)
    for act in RingAct.all where ring.knows(act) {
      #expect(result { $0.prepare(act, token: 8) } == -EACCES, "\(act.name)")
    }
    // Files can still be replaced; nothing else can be registered.
    try ring.register(event.raw, at: FileSlot(1))
    #expect(clx_uring_register(ring.descriptor, 4 /* an eventfd */, nil, 1) == -1 && errno == EACCES)
  }

  @Test("A user is a name of the database, or numbers")
  func users() {
    #expect(UserIdentity("root")?.user == 0 && UserIdentity("root")?.groups.contains(0) == true)
    let pair = UserIdentity("1234567:7654321")
    #expect(pair?.user == 1_234_567 && pair?.group == 7_654_321 && pair?.groups == [7_654_321])
    #expect(UserIdentity("1234567")?.group == 1_234_567)
    for wrong in [
      "", ":", "1:", ":1", "1:2:3", "-1", "4294967295", "1:4294967295", "no such user", "root:root", "1 ",
    ] {
      #expect(UserIdentity(wrong) == nil, "'\(wrong)'")
    }
  }

  @Test("A path's folder, as Landlock is told of it")
  func folders() {
    #expect(
      SandboxNeeds.folder(of: "a/b/s") == "a/b" && SandboxNeeds.folder(of: "s") == "."
        && SandboxNeeds.folder(of: "/s") == "/")
  }
}
