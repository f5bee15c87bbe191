// The sandbox's calls, see clx_sandbox.h.
#include "CLinux.h"

#include <grp.h>
#include <linux/capability.h>

#if defined(__x86_64__)
const uint32_t clx_audit_arch = AUDIT_ARCH_X86_64, clx_foreign_call_bit = 0x40000000;  // __X32_SYSCALL_BIT
#elif defined(__aarch64__)
const uint32_t clx_audit_arch = AUDIT_ARCH_AARCH64, clx_foreign_call_bit = 0;
#else
#error "the sandbox knows x86_64 and aarch64"
#endif

// Every name the sandbox speaks of. Calls that only some architectures have stand in #ifdef.
static const struct {
  const char *name;
  int number;
} calls[] = {
#define CALL(name) {#name, SYS_##name},
    CALL(accept4) CALL(bind) CALL(bpf) CALL(brk) CALL(capget) CALL(capset) CALL(chdir) CALL(chroot) CALL(clock_gettime)
    CALL(clock_nanosleep) CALL(clone) CALL(close) CALL(connect) CALL(delete_module) CALL(dup) CALL(eventfd2) CALL(execve)
    CALL(execveat) CALL(exit) CALL(exit_group) CALL(faccessat) CALL(fallocate) CALL(fchmodat) CALL(fchownat) CALL(fcntl)
    CALL(fdatasync) CALL(finit_module) CALL(flock) CALL(fstat) CALL(fstatfs) CALL(fsync) CALL(ftruncate) CALL(futex)
    CALL(get_mempolicy) CALL(getcpu) CALL(getegid) CALL(geteuid) CALL(getgid) CALL(getpid) CALL(getrandom)
    CALL(getsockname) CALL(getsockopt) CALL(gettid) CALL(gettimeofday) CALL(getuid) CALL(init_module) CALL(ioctl)
    CALL(keyctl) CALL(kill) CALL(linkat) CALL(listen) CALL(lseek) CALL(madvise) CALL(mbind) CALL(membarrier)
    CALL(getrusage) CALL(mincore)
    CALL(memfd_create) CALL(mkdirat) CALL(mknodat) CALL(mmap) CALL(mount) CALL(move_pages) CALL(mprotect) CALL(mremap)
    CALL(msync) CALL(munmap) CALL(nanosleep) CALL(newfstatat) CALL(open_by_handle_at) CALL(openat)
    CALL(perf_event_open) CALL(personality) CALL(pivot_root) CALL(ppoll) CALL(prctl) CALL(pread64) CALL(preadv)
    CALL(preadv2) CALL(prlimit64) CALL(process_vm_readv) CALL(process_vm_writev) CALL(ptrace) CALL(pwrite64) CALL(pwritev)
    CALL(pwritev2) CALL(read) CALL(readlinkat) CALL(readv) CALL(recvfrom) CALL(recvmsg) CALL(renameat2)
    CALL(restart_syscall) CALL(rt_sigaction) CALL(rt_sigprocmask) CALL(rt_sigreturn) CALL(rt_sigtimedwait)
    CALL(sched_getaffinity) CALL(sched_setaffinity) CALL(sched_yield) CALL(seccomp) CALL(sendmsg) CALL(sendto)
    CALL(set_mempolicy) CALL(set_robust_list) CALL(setns) CALL(setsockopt) CALL(setuid) CALL(shutdown) CALL(sigaltstack)
    CALL(socket) CALL(statx) CALL(symlinkat) CALL(sysinfo) CALL(tgkill) CALL(timerfd_settime) CALL(umount2) CALL(uname)
    CALL(unlinkat) CALL(unshare) CALL(userfaultfd) CALL(write) CALL(writev)
    // The same numbers everywhere, and newer than some headers.
    {"io_uring_setup", 425}, {"io_uring_enter", 426}, {"io_uring_register", 427}, {"clone3", 435}, {"close_range", 436},
    {"openat2", 437}, {"pidfd_getfd", 438}, {"pidfd_open", 434}, {"rseq", -2}, {"futex_waitv", 449}, {"memfd_secret", 447},
#ifdef SYS_open
    CALL(fork) CALL(open) CALL(poll) CALL(rename) CALL(rmdir) CALL(stat) CALL(lstat) CALL(unlink) CALL(vfork)
#endif
#undef CALL
};

int clx_syscall_number(const char *name) {
#ifdef SYS_rseq
  if (strcmp(name, "rseq") == 0) return SYS_rseq;
#endif
  for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
    if (strcmp(calls[i].name, name) == 0) return calls[i].number < 0 ? -1 : calls[i].number;
  return -1;
}

int clx_seccomp_all_threads(const struct sock_filter *filter, size_t count) {
  struct sock_fprog program = {.len = (unsigned short)count, .filter = (struct sock_filter *)filter};
  long code = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
  // A positive answer is the thread that has another filter already.
  return code == 0 ? 0 : code > 0 ? ESRCH : errno;
}

enum { LANDLOCK_CREATE = 444, LANDLOCK_ADD = 445, LANDLOCK_RESTRICT = 446 };

int clx_landlock_version(void) {
  long version = syscall(LANDLOCK_CREATE, NULL, 0, 1u /* LANDLOCK_CREATE_RULESET_VERSION */);
  return version < 0 ? 0 : (int)version;
}

int clx_landlock_create(uint64_t files, uint64_t network, uint64_t scopes, int version) {
  struct {
    uint64_t files, network, scopes;
  } rules = {files, network, scopes};
  // A kernel takes a longer structure only where what it does not know is zero; tell it no more than it knows.
  size_t size = version < 4 ? 8 : version < 6 ? 16 : 24;
  return (int)syscall(LANDLOCK_CREATE, &rules, size, 0u);
}

int clx_landlock_allow(int rules, int place, uint64_t rights) {
  struct __attribute__((packed)) {
    uint64_t rights;
    int32_t place;
  } beneath = {rights, place};
  return (int)syscall(LANDLOCK_ADD, rules, 1 /* LANDLOCK_RULE_PATH_BENEATH */, &beneath, 0u);
}

int clx_landlock_restrict(int rules) { return (int)syscall(LANDLOCK_RESTRICT, rules, 0u); }

int clx_drop_bounding_capabilities(void) {
  for (int capability = 0; capability < 64; capability++) {
    int held = prctl(PR_CAPBSET_READ, capability, 0, 0, 0);
    if (held < 0) break;
    // Who may not (no CAP_SETPCAP) has nothing to gain from them either: no_new_privs is set.
    if (held > 0 && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 && errno != EPERM) return errno;
  }
  return 0;
}

int clx_drop_capabilities(void) {
  // Kernels without ambient capabilities (before 4.3) have none to clear.
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  struct __user_cap_data_struct none[2] = {{0}};
  return syscall(SYS_capset, &header, none) == 0 ? 0 : errno;
}

int clx_capabilities(uint64_t *effective, uint64_t *permitted, uint64_t *inheritable) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  struct __user_cap_data_struct held[2] = {{0}};
  if (syscall(SYS_capget, &header, held) != 0) return -1;
  *effective = held[0].effective | (uint64_t)held[1].effective << 32;
  *permitted = held[0].permitted | (uint64_t)held[1].permitted << 32;
  *inheritable = held[0].inheritable | (uint64_t)held[1].inheritable << 32;
  return 0;
}

int clx_become(uint32_t user, uint32_t group, const uint32_t *groups, size_t count) {
  if (setgroups(count, groups) != 0) return errno;
  if (setresgid(group, group, group) != 0) return errno;
  return setresuid(user, user, user) == 0 ? 0 : errno;
}

int clx_groups_of(const char *name, uint32_t group, uint32_t *groups, size_t capacity) {
  int count = (int)capacity;
  getgrouplist(name, group, groups, &count);
  return count;
}

long clx_raw_call(int number, long a, long b, long c, long d, long e, long f) {
  long code = syscall(number, a, b, c, d, e, f);
  return code == -1 ? -errno : code;
}
