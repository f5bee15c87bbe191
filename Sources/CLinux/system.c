// GNU-only calls, see clx_system.h.
#include "CLinux.h"

#include <sys/resource.h>
#include <sys/signalfd.h>

const int clx_O_DIRECT = O_DIRECT, clx_O_PATH = O_PATH, clx_O_TMPFILE = O_TMPFILE;

int clx_accept4(int fd, int flags) { return accept4(fd, NULL, NULL, flags); }

int clx_fallocate(int fd, int mode, int64_t offset, int64_t length) { return fallocate(fd, mode, offset, length); }

long clx_preadv2(int fd, const struct iovec *vectors, int count, int64_t offset, int flags) {
  return preadv2(fd, vectors, count, offset, flags);
}

long clx_pwritev2(int fd, const struct iovec *vectors, int count, int64_t offset, int flags) {
  return pwritev2(fd, vectors, count, offset, flags);
}

int clx_strerror(int code, char *buffer, size_t capacity) {
  const char *text = strerror_r(code, buffer, capacity);
  if (text == NULL || strlen(text) >= capacity) return -1;
  if (text != buffer) strcpy(buffer, text);
  return 0;
}

int clx_signalfd(const sigset_t *signals) { return signalfd(-1, signals, SFD_NONBLOCK | SFD_CLOEXEC); }

int clx_direct_alignment(int fd, uint32_t *memory, uint32_t *offset) {
  // struct statx as the kernel has it; this libc's ends before the two fields.
  struct {
    uint32_t mask;
    uint8_t before[148];
    uint32_t memory, offset;
    uint8_t after[96];
  } facts;
  enum { STATX_DIOALIGN_BIT = 0x2000 };
  memset(&facts, 0, sizeof facts);
  if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_DIOALIGN_BIT, &facts) != 0) return -1;
  if ((facts.mask & STATX_DIOALIGN_BIT) == 0 || facts.memory == 0 || facts.offset == 0) return -1;
  *memory = facts.memory;
  *offset = facts.offset;
  return 0;
}

long clx_thread_major_faults(void) {
  struct rusage usage;
  return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_majflt : 0;
}
