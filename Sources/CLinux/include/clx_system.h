// Calls and constants of Linux that Swift's Glibc does not show: GNU-only calls, variadic calls, control
// messages, ioctl numbers. No logic: each is one call or one macro. Callers: HostIO and devices; any thread.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "clx_atomics.h"

// Control messages (cmsg(3)).
CLX_INLINE size_t clx_cmsg_space(size_t bytes) { return CMSG_SPACE(bytes); }
CLX_INLINE size_t clx_cmsg_len(size_t bytes) { return CMSG_LEN(bytes); }
CLX_INLINE struct cmsghdr *clx_cmsg_first(struct msghdr *m) { return CMSG_FIRSTHDR(m); }
CLX_INLINE struct cmsghdr *clx_cmsg_next(struct msghdr *m, struct cmsghdr *c) { return CMSG_NXTHDR(m, c); }
CLX_INLINE void *clx_cmsg_data(struct cmsghdr *c) { return CMSG_DATA(c); }

// Variadic or GNU-only calls.
CLX_INLINE int clx_memfd_create(const char *name, unsigned flags) { return (int)syscall(SYS_memfd_create, name, flags); }
CLX_INLINE int clx_fcntl_int(int fd, int command, long argument) { return fcntl(fd, command, argument); }
CLX_INLINE int clx_fcntl_lock(int fd, int command, struct flock *lock) { return fcntl(fd, command, lock); }
CLX_INLINE int clx_ioctl_pointer(int fd, unsigned long request, void *argument) { return ioctl(fd, request, argument); }
CLX_INLINE int clx_ioctl_int(int fd, unsigned long request, long argument) { return ioctl(fd, request, argument); }
CLX_INLINE int clx_open(const char *path, int flags, unsigned mode) { return open(path, flags, mode); }
CLX_INLINE int clx_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d) {
  return prctl(option, a, b, c, d);
}
/// rename(2) that fails with EEXIST where there is something already (renameat2(2); EINVAL: not on this file system).
CLX_INLINE int clx_rename_new(const char *from, const char *to) {
  return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 1u /* RENAME_NOREPLACE */);
}
/// How often this thread had to wait for a page that was on a disk.
long clx_thread_major_faults(void);
CLX_INLINE int clx_gettid(void) { return (int)syscall(SYS_gettid); }
// These need _GNU_SOURCE, which an importing module does not define: in system.c.
int clx_accept4(int fd, int flags);
int clx_fallocate(int fd, int mode, int64_t offset, int64_t length);
/// preadv2/pwritev2: vectors, an offset, RWF_* flags.
long clx_preadv2(int fd, const struct iovec *vectors, int count, int64_t offset, int flags);
long clx_pwritev2(int fd, const struct iovec *vectors, int count, int64_t offset, int flags);
/// Flags whose values depend on the architecture.
extern const int clx_O_DIRECT, clx_O_PATH, clx_O_TMPFILE;

enum {
  CLX_MFD_CLOEXEC = 1, CLX_MFD_ALLOW_SEALING = 2, CLX_MFD_HUGETLB = 4,
  CLX_F_ADD_SEALS = 1033, CLX_F_GET_SEALS = 1034,
  CLX_F_SEAL_SEAL = 1, CLX_F_SEAL_SHRINK = 2, CLX_F_SEAL_GROW = 4, CLX_F_SEAL_WRITE = 8, CLX_F_SEAL_FUTURE_WRITE = 16,
  CLX_F_OFD_SETLK = 37, CLX_F_OFD_SETLKW = 38, CLX_F_OFD_GETLK = 36,
  CLX_RWF_DSYNC = 2, CLX_RWF_NOWAIT = 8, CLX_AT_EMPTY_PATH = 0x1000,
  CLX_HUGETLBFS_MAGIC = 0x958458f6, CLX_TMPFS_MAGIC = 0x01021994,
  CLX_EXT4_MAGIC = 0xef53, CLX_XFS_MAGIC = 0x58465342, CLX_BTRFS_MAGIC = 0x9123683e, CLX_F2FS_MAGIC = 0xf2f52010,
  CLX_FALLOC_KEEP_SIZE = FALLOC_FL_KEEP_SIZE, CLX_FALLOC_PUNCH_HOLE = FALLOC_FL_PUNCH_HOLE, CLX_FALLOC_ZERO_RANGE = FALLOC_FL_ZERO_RANGE,
  CLX_POLLIN = POLLIN, CLX_POLLOUT = POLLOUT, CLX_POLLHUP = POLLHUP, CLX_POLLERR = POLLERR,
};

// Block device ioctls (linux/fs.h): the macros take a type, which Swift does not import.
static const unsigned long clx_BLKGETSIZE64 = BLKGETSIZE64, clx_BLKSSZGET = BLKSSZGET, clx_BLKPBSZGET = BLKPBSZGET,
    clx_BLKIOMIN = BLKIOMIN, clx_BLKIOOPT = BLKIOOPT, clx_BLKROGET = BLKROGET, clx_BLKDISCARD = BLKDISCARD,
    clx_BLKZEROOUT = BLKZEROOUT;

// Filesystem kind of a descriptor: statfs f_type and f_bsize.
CLX_INLINE int clx_fstatfs(int fd, uint64_t *type, uint64_t *block) {
  struct statfs s;
  if (fstatfs(fd, &s) != 0) return -1;
  *type = (uint64_t)(uint32_t)s.f_type;
  *block = (uint64_t)s.f_bsize;
  return 0;
}

// Threads.
typedef void (*clx_thread_body)(void *context);
/// Starts a thread on the given processors (count 0: wherever the caller may run), named by at most 15 bytes. Every
/// signal is blocked in it but those of its own faults. Returns 0 or an errno. missing[i] is set where cpus[i] cannot be
/// had: the thread runs on the others, or, where none is left, wherever the caller may.
int clx_thread_start(pthread_t *thread, const char *name, const uint16_t *cpus, size_t count, clx_thread_body body,
                     void *context, uint8_t *missing);
/// The processors this thread may run on, ascending, at most `capacity`; returns how many there are, or -1.
int clx_allowed_cpus(uint16_t *cpus, size_t capacity);

/// The words for an errno, into the buffer; 0 where they fitted.
int clx_strerror(int code, char *buffer, size_t capacity);

/// A non-blocking signalfd for a set of signals.
int clx_signalfd(const sigset_t *signals);

/// What O_DIRECT asks of memory and of offsets, in bytes (statx, STATX_DIOALIGN, kernel 6.1); -1 where that is not told.
int clx_direct_alignment(int fd, uint32_t *memory, uint32_t *offset);
