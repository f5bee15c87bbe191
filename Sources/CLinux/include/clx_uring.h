// What Debian 12's liburing 2.3 does not declare or does not export, and enum-valued macros that Swift does not
// import. Values are the kernel's (linux/io_uring.h); each is probed at run time before it is used. Caller: HostIO.
#pragma once

#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
  CLX_IOSQE_FIXED_FILE = 1u << 0, CLX_IOSQE_IO_LINK = 1u << 2, CLX_IOSQE_ASYNC = 1u << 4,
  CLX_IOSQE_CQE_SKIP_SUCCESS = 1u << 6,
  CLX_SETUP_CQSIZE = 1u << 3, CLX_SETUP_CLAMP = 1u << 4, CLX_SETUP_R_DISABLED = 1u << 6, CLX_SETUP_SUBMIT_ALL = 1u << 7,
  CLX_SETUP_COOP_TASKRUN = 1u << 8, CLX_SETUP_TASKRUN_FLAG = 1u << 9, CLX_SETUP_SINGLE_ISSUER = 1u << 12,
  CLX_SETUP_DEFER_TASKRUN = 1u << 13,
  CLX_REGISTER_CLONE_BUFFERS = 30, CLX_CLONE_REPLACE = 1u << 1,
  CLX_REGISTER_FILES_UPDATE = 6, CLX_REGISTER_ENABLE_RINGS = 12, CLX_REGISTER_RESTRICTIONS = 11,
  CLX_RESTRICTION_REGISTER_OP = 0, CLX_RESTRICTION_SQE_OP = 1, CLX_RESTRICTION_SQE_FLAGS_ALLOWED = 2,
  CLX_RESTRICTION_SQE_FLAGS_REQUIRED = 3,
};

/// One allowed operation (linux/io_uring.h io_uring_restriction).
struct clx_uring_restriction {
  uint16_t opcode;
  uint8_t value;
  uint8_t reserved;
  uint32_t reserved2[3];
};

/// References to another ring's buffers (linux/io_uring.h io_uring_clone_buffers).
struct clx_uring_clone {
  uint32_t source, flags, source_offset, offset, count, pad[3];
};

/// Fills a 64-byte submission entry (struct io_uring_sqe) whole: what the kernel has no use for is zero.
static inline __attribute__((always_inline)) void clx_sqe_fill(void *sqe, uint8_t opcode, uint8_t flags, int32_t file,
                                                               uint64_t offset, uint64_t address, uint32_t length,
                                                               uint32_t operation_flags, uint64_t token) {
  uint64_t *words = sqe;
  words[0] = (uint64_t)opcode | (uint64_t)flags << 8 | (uint64_t)(uint32_t)file << 32;
  words[1] = offset;
  words[2] = address;
  words[3] = (uint64_t)length | (uint64_t)operation_flags << 32;
  words[4] = token;
  words[5] = words[6] = words[7] = 0;
}

static inline int clx_uring_register(int ring, unsigned operation, void *argument, unsigned count) {
  return (int)syscall(SYS_io_uring_register, ring, operation, argument, count);
}
