// The system calls that the sandbox speaks of, by the kernel's names. Numbers differ by architecture and are looked up.

import CLinux

public enum SystemCall: String, CaseIterable, Sendable {
  case accept4, bind, bpf, brk, capget, capset, chdir, chroot
  case clockGetTime = "clock_gettime"
  case clockNanosleep = "clock_nanosleep"
  case clone, clone3, close, connect, dup, eventfd2, execve, execveat, exit
  case exitGroup = "exit_group"
  case fallocate, fchmodat, fchownat, fcntl, fdatasync
  case finitModule = "finit_module"
  case fork, fstat, fstatfs, fsync, ftruncate, futex
  case futexWaitV = "futex_waitv"
  case getMemoryPolicy = "get_mempolicy"
  case getcpu, getegid, geteuid, getgid, getpid, getrandom, getrusage, getsockname, getsockopt, gettid,
    gettimeofday,
    getuid
  case ioctl
  case ringEnter = "io_uring_enter"
  case ringRegister = "io_uring_register"
  case ringSetup = "io_uring_setup"
  case keyctl, kill, linkat, listen, lseek, lstat, madvise, mbind, membarrier
  case memfdCreate = "memfd_create"
  case mincore, mkdirat, mknodat, mmap, mount
  case movePages = "move_pages"
  case mprotect, mremap, msync, munmap, nanosleep, newfstatat, open, openat, openat2
  case perfEventOpen = "perf_event_open"
  case pidfdGetFD = "pidfd_getfd"
  case pidfdOpen = "pidfd_open"
  case pivotRoot = "pivot_root"
  case poll, ppoll, prctl, pread64, preadv, preadv2, prlimit64
  case processRead = "process_vm_readv"
  case processWrite = "process_vm_writev"
  case ptrace, pwrite64, pwritev, pwritev2, read, readv, recvfrom, recvmsg, rename, renameat2
  case restart = "restart_syscall"
  case rseq
  case signalAction = "rt_sigaction"
  case signalMask = "rt_sigprocmask"
  case signalReturn = "rt_sigreturn"
  case signalStack = "sigaltstack"
  case getAffinity = "sched_getaffinity"
  case setAffinity = "sched_setaffinity"
  case yield = "sched_yield"
  case seccomp, sendmsg, sendto
  case setMemoryPolicy = "set_mempolicy"
  case setRobustList = "set_robust_list"
  case setns, setsockopt, setuid, shutdown, socket, stat, statx, symlinkat, sysinfo, tgkill, umount2, uname,
    unlink, unlinkat
  case unshare, userfaultfd, vfork, write, writev

  /// Nil where this architecture has no call of that name.
  public var number: UInt32? {
    // SAFETY: a NUL-terminated copy of the name, read during the call.
    UInt32(exactly: unsafe clx_syscall_number(rawValue))
  }
}
