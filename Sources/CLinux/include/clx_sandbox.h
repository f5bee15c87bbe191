// Numbers, structures and calls of the sandbox: system calls by name, seccomp, Landlock, capabilities. What this
// distribution's headers are too old for is defined here by the kernel's values and asked for at run time. No logic.
// Caller: HostIO's sandbox, on the main thread before another one runs.
#pragma once

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/types.h>

/// The number of a system call here; -1 where this architecture (or the headers) have none of that name.
int clx_syscall_number(const char *name);
/// What seccomp calls this architecture (AUDIT_ARCH_*), and the bit that marks x86-64's 32-bit-pointer calls (0: none).
extern const uint32_t clx_audit_arch, clx_foreign_call_bit;

/// seccomp(2) SECCOMP_SET_MODE_FILTER for all threads at once; 0, or an errno. A thread that cannot follow is ESRCH.
int clx_seccomp_all_threads(const struct sock_filter *filter, size_t count);

enum {
  CLX_SECCOMP_KILL_PROCESS = (int)0x80000000, CLX_SECCOMP_ERRNO = 0x00050000, CLX_SECCOMP_LOG = 0x7ffc0000,
  CLX_SECCOMP_ALLOW = 0x7fff0000,
  CLX_SECCOMP_NUMBER_OFFSET = offsetof(struct seccomp_data, nr),
  CLX_SECCOMP_ARCH_OFFSET = offsetof(struct seccomp_data, arch),
  CLX_SECCOMP_ARGUMENT_OFFSET = offsetof(struct seccomp_data, args),
  CLX_BPF_LOAD_WORD = BPF_LD | BPF_W | BPF_ABS, CLX_BPF_IF_EQUAL = BPF_JMP | BPF_JEQ | BPF_K,
  CLX_BPF_IF_ANY_BIT = BPF_JMP | BPF_JSET | BPF_K, CLX_BPF_AND = BPF_ALU | BPF_AND | BPF_K, CLX_BPF_RETURN = BPF_RET | BPF_K,
};

// Landlock (linux/landlock.h): rights by the version that brought them.
enum {
  CLX_LANDLOCK_EXECUTE = 1 << 0, CLX_LANDLOCK_WRITE_FILE = 1 << 1, CLX_LANDLOCK_READ_FILE = 1 << 2,
  CLX_LANDLOCK_READ_DIR = 1 << 3, CLX_LANDLOCK_REMOVE_DIR = 1 << 4, CLX_LANDLOCK_REMOVE_FILE = 1 << 5,
  CLX_LANDLOCK_MAKE_ANY = 0x7f << 6,   // character device, folder, file, socket, FIFO, block device, link
  CLX_LANDLOCK_VERSION_1 = 0x1fff,     // all of the above
  CLX_LANDLOCK_REFER = 1 << 13,        // 2: linking and renaming between folders
  CLX_LANDLOCK_TRUNCATE = 1 << 14,     // 3
  CLX_LANDLOCK_IOCTL_DEVICE = 1 << 15, // 5
  CLX_LANDLOCK_TCP = 3,                // 4: binding and connecting
  CLX_LANDLOCK_SCOPES = 3,             // 6: abstract sockets, signals
};
/// Landlock's version; 0 where the kernel has none or it is off.
int clx_landlock_version(void);
/// A new set of rules that handles these rights; its descriptor, or -1. Fields that a version lacks must be 0.
int clx_landlock_create(uint64_t files, uint64_t network, uint64_t scopes, int version);
/// Allows rights on what is opened as `place`, and beneath; 0 or -1.
int clx_landlock_allow(int rules, int place, uint64_t rights);
/// Holds this thread, and those it starts, to the rules; 0 or -1.
int clx_landlock_restrict(int rules);

/// Takes the capabilities that an exec could bring from this thread and those it starts; 0 or an errno.
int clx_drop_bounding_capabilities(void);
/// Takes all that this thread has from it and those it starts; 0 or an errno.
int clx_drop_capabilities(void);
/// What is left of them: effective, permitted, inheritable; 0 or -1.
int clx_capabilities(uint64_t *effective, uint64_t *permitted, uint64_t *inheritable);
/// Replaces the supplementary groups, the group ids, the user ids of the whole process; 0 or an errno.
int clx_become(uint32_t user, uint32_t group, const uint32_t *groups, size_t count);
/// A user's groups, at most `capacity`; how many there are.
int clx_groups_of(const char *name, uint32_t group, uint32_t *groups, size_t capacity);

/// A system call by its number, as it is; a negated errno where it fails.
long clx_raw_call(int number, long a, long b, long c, long d, long e, long f);
