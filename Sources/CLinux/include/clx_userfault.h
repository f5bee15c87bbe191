// userfaultfd(2): faults of this process's memory, told to whoever holds the descriptor. No logic: each is one call. Caller:
// HostIO's UserFaults, on any thread.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clx_atomics.h"

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)  // Linux 6.1
#endif

/// A new one, of faults in the kernel too: by /dev/userfaultfd, which is open, or by the system call, which wants
/// CAP_SYS_PTRACE or vm.unprivileged_userfaultfd. -1 with errno where there is none.
CLX_INLINE int clx_userfault_from(int device) { return ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK); }
CLX_INLINE int clx_userfault(void) { return (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK); }

/// The handshake that each needs before anything else.
CLX_INLINE int clx_userfault_begin(int fd) {
  struct uffdio_api api = {.api = UFFD_API};
  return ioctl(fd, UFFDIO_API, &api);
}

/// Touches of missing pages in the range wait from now on. ENOTTY where its memory is none whose waiters can be woken.
CLX_INLINE int clx_userfault_register(int fd, void *start, uint64_t length) {
  struct uffdio_register range = {
      .range = {.start = (uintptr_t)start, .len = length}, .mode = UFFDIO_REGISTER_MODE_MISSING};
  if (ioctl(fd, UFFDIO_REGISTER, &range) != 0) return -1;
  uint64_t needed = (uint64_t)1 << _UFFDIO_WAKE | (uint64_t)1 << _UFFDIO_COPY;
  if ((range.ioctls & needed) == needed) return 0;
  errno = ENOTTY;
  return -1;
}

/// No touch waits any more, and those that do go on.
CLX_INLINE int clx_userfault_unregister(int fd, void *start, uint64_t length) {
  struct uffdio_range range = {.start = (uintptr_t)start, .len = length};
  return ioctl(fd, UFFDIO_UNREGISTER, &range);
}

/// Touches that wait look again.
CLX_INLINE int clx_userfault_wake(int fd, void *start, uint64_t length) {
  struct uffdio_range range = {.start = (uintptr_t)start, .len = length};
  return ioctl(fd, UFFDIO_WAKE, &range);
}

static const unsigned long clx_USERFAULTFD_NEW = USERFAULTFD_IOC_NEW, clx_USERFAULT_API = UFFDIO_API,
    clx_USERFAULT_REGISTER = UFFDIO_REGISTER, clx_USERFAULT_UNREGISTER = UFFDIO_UNREGISTER, clx_USERFAULT_WAKE = UFFDIO_WAKE;
