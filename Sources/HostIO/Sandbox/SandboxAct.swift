// What a subverted thread would try, to see that it is refused. Each act does no harm where it is not: it ends in an error of
// another kind, or in something that the end of the process takes back. For `selftest-sandbox`, on a queue thread.

import CLinux
import Glibc

/// One thing that must not work.
public struct SandboxAct: Sendable {
  public let name: String
  /// Tries it: 0 or more where it worked, a negated errno where it did not.
  public let attempt: @Sendable () -> Int

  /// Whether a result says that the act was refused, by whichever layer.
  public static func isRefusal(_ result: Int) -> Bool { result == -Int(EPERM) || result == -Int(EACCES) }

  package init(_ name: String, _ attempt: @escaping @Sendable () -> Int) {
    self.name = name
    self.attempt = attempt
  }

  /// A system call with numbers and null pointers, which no call follows, or with a path at one `place`; nil where there is
  /// none here.
  private init?(
    _ name: String, _ call: SystemCall, path: String = "", at place: Int? = nil, _ arguments: Int...
  ) {
    guard let number = call.number else { return nil }
    self.init(name) {
      var words = arguments + [Int](repeating: 0, count: max(0, 6 - arguments.count))
      // SAFETY: the path is NUL-terminated and lives through the call.
      return unsafe path.withCString { bytes in
        if let place { words[place] = Int(bitPattern: bytes) }
        return clx_raw_call(Int32(number), words[0], words[1], words[2], words[3], words[4], words[5])
      }
    }
  }
}

extension SandboxAct {
  private static var here: Int { Int(AT_FDCWD) }
  private static let somewhere = "/etc/passwd"

  /// What Landlock alone keeps from us, before any system call is taken away.
  public static var files: [SandboxAct] {
    let version = Landlock.version
    guard version >= 1 else { return [] }
    let acts = [
      SandboxAct("open \(somewhere) to read", .openat, path: somewhere, at: 1, here, 0, Int(O_RDONLY)),
      SandboxAct("list the folder /", .openat, path: "/", at: 1, here, 0, Int(O_RDONLY | O_DIRECTORY)),
      SandboxAct(
        "make a file in /tmp", .openat, path: "/tmp", at: 1, here, 0, Int(O_RDWR | clx_O_TMPFILE), 0o600),
      SandboxAct("make a folder in /tmp") {
        let path = "/tmp/vhost-swiftd-selftest-\(getpid())"
        // SAFETY (both calls): NUL-terminated copies.
        guard unsafe mkdir(path, 0o700) == 0 else { return -Int(errno) }
        unsafe rmdir(path)
        return 0
      },
      version < 4 ? nil : SandboxAct("connect to a TCP port") { connectByTCP() },
      version < 6 ? nil : SandboxAct("signal another process", .kill, Int(getppid()), 0),
    ]
    return acts.compactMap { $0 }
  }

  /// To a port of this machine where nobody listens.
  private static func connectByTCP() -> Int {
    let socket = OwnedFD(adopting: Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0))
    guard socket.raw >= 0 else { return -Int(errno) }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = UInt16(9).bigEndian
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    // SAFETY: a sockaddr_in is what an AF_INET call expects behind a sockaddr pointer.
    return unsafe withUnsafePointer(to: address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe connect(socket.raw, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0 ? 0 : -Int(errno)
      }
    }
  }

  /// What seccomp keeps from us, whatever Landlock does. `needs`: what the process is allowed is not tried.
  public static func calls(beside needs: SandboxNeeds) -> [SandboxAct] {
    let page = sysconf(Int32(_SC_PAGESIZE))
    let privately = Int(MAP_PRIVATE | Int32(MAP_ANONYMOUS))
    let executable = Int(PROT_READ | PROT_EXEC)
    var acts = [
      needs.readsIn.isEmpty ? SandboxAct("open a file", .openat, path: somewhere, at: 1, here, 0, 0) : nil,
      SandboxAct(
        "open a file to write", .openat, path: "/tmp", at: 1, here, 0, Int(O_RDWR | clx_O_TMPFILE), 0o600),
      SandboxAct("open a file (open)", .open, path: somewhere, at: 0, 0, 0),
      SandboxAct("open a file (openat2)", .openat2, here),
      SandboxAct("make a folder", .mkdirat, path: "", at: 1, here),
      SandboxAct("rename a file", .renameat2, here, 0, here, 0, 0),
      SandboxAct("link a file", .linkat, here, 0, here),
      SandboxAct("change a file's owner", .fchownat, here),
      SandboxAct("change a file's mode", .fchmodat, here),
      SandboxAct("mount", .mount), SandboxAct("chroot", .chroot),
      SandboxAct("run a program", .execve, path: "/nonexistent/program", at: 0),
      SandboxAct("run a program (execveat)", .execveat, path: "/nonexistent/program", at: 1, here),
      SandboxAct("start a thread or process (clone)", .clone, 0x10000),
      SandboxAct("start one (clone3)", .clone3),
      SandboxAct("trace a process", .ptrace, 16), SandboxAct("signal a process", .kill, Int(getpid()), 0),
      SandboxAct("read a process's memory", .processRead, Int(getpid())),
      SandboxAct("write a process's memory", .processWrite, Int(getpid())),
      SandboxAct("take a process's descriptor", .pidfdGetFD, -1),
      SandboxAct("a socket to the network", .socket, Int(AF_INET), Int(SOCK_STREAM.rawValue)),
      SandboxAct("bind a socket", .bind, -1), SandboxAct("listen", .listen, -1),
      SandboxAct("another io_uring", .ringSetup, 1), SandboxAct("userfaultfd", .userfaultfd, 1),
      SandboxAct("bpf", .bpf), SandboxAct("perf_event_open", .perfEventOpen),
      SandboxAct("keyctl", .keyctl, 0, -3),
      SandboxAct("load a kernel module", .finitModule, -1), SandboxAct("leave a namespace", .unshare, 0),
      SandboxAct("enter a namespace", .setns, -1), SandboxAct("change the user", .setuid, Int(geteuid())),
      SandboxAct("change a limit", .prlimit64, 0, 4), SandboxAct("another seccomp filter", .seccomp, 2),
      SandboxAct("an ioctl of a terminal", .ioctl, 0, 0x5412),
      SandboxAct("executable memory", .mmap, 0, page, executable, privately, -1, 0),
      SandboxAct("memory made executable") { makeExecutable(page) },
    ]
    if !needs.connects {
      acts.append(SandboxAct("a Unix socket", .socket, Int(AF_UNIX), Int(SOCK_STREAM.rawValue)))
      acts.append(SandboxAct("connect a socket", .connect, -1))
    }
    return acts.compactMap { $0 }
  }

  private static func makeExecutable(_ page: Int) -> Int {
    guard let memory = try? Mapping(anonymous: page) else { return -Int(ENOMEM) }
    // SAFETY: a page of our own, which nothing runs.
    return unsafe mprotect(memory.base, page, PROT_READ | PROT_EXEC) == 0 ? 0 : -Int(errno)
  }
}
