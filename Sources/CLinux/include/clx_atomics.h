// Atomic access to words that another process or thread may write at the same time.
//
// Swift has no load that the optimiser may neither remove nor repeat; these are that load. Each reads or
// writes its word exactly once. The order is named in the function. Callers: VirtQueue, DeviceKit,
// VhostFrontend; any thread.
#pragma once

#include <stdint.h>

#define CLX_INLINE static inline __attribute__((always_inline))

#define CLX_LOADS(bits)                                                                     \
  CLX_INLINE uint##bits##_t clx_load_relaxed_u##bits(const void *p) {                       \
    return __atomic_load_n((const uint##bits##_t *)p, __ATOMIC_RELAXED);                    \
  }                                                                                         \
  CLX_INLINE uint##bits##_t clx_load_acquire_u##bits(const void *p) {                       \
    return __atomic_load_n((const uint##bits##_t *)p, __ATOMIC_ACQUIRE);                    \
  }                                                                                         \
  CLX_INLINE void clx_store_relaxed_u##bits(void *p, uint##bits##_t v) {                    \
    __atomic_store_n((uint##bits##_t *)p, v, __ATOMIC_RELAXED);                             \
  }                                                                                         \
  CLX_INLINE void clx_store_release_u##bits(void *p, uint##bits##_t v) {                    \
    __atomic_store_n((uint##bits##_t *)p, v, __ATOMIC_RELEASE);                             \
  }

CLX_LOADS(8)
CLX_LOADS(16)
CLX_LOADS(32)
CLX_LOADS(64)

CLX_INLINE uint64_t clx_fetch_add_u64(void *p, uint64_t v) {
  return __atomic_fetch_add((uint64_t *)p, v, __ATOMIC_RELAXED);
}
CLX_INLINE uint8_t clx_exchange_acquire_u8(void *p, uint8_t v) {
  return __atomic_exchange_n((uint8_t *)p, v, __ATOMIC_ACQUIRE);
}
CLX_INLINE uint8_t clx_fetch_or_release_u8(void *p, uint8_t v) {
  return __atomic_fetch_or((uint8_t *)p, v, __ATOMIC_RELEASE);
}

/// Orders every earlier load and store before every later one, between processors too.
CLX_INLINE void clx_fence_full(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
/// Orders for the compiler alone: for state that only a restarted process of ours reads.
CLX_INLINE void clx_fence_compiler(void) { __atomic_signal_fence(__ATOMIC_SEQ_CST); }

/// One step of a spin: tells the core that it waits.
CLX_INLINE void clx_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  __asm__ volatile("yield");
#endif
}

/// Asks for a line of memory that is read, or written, soon; an address that leads nowhere is no fault.
CLX_INLINE void clx_prefetch_read(const void *p) { __builtin_prefetch(p, 0, 3); }
CLX_INLINE void clx_prefetch_write(void *p) {
#if defined(__x86_64__)
  // The compiler takes the instruction for a read's unless it is told of a processor that has this one. Where it is missing, it does nothing.
  __asm__ volatile("prefetchw %0" : : "m"(*(const char *)p));
#else
  __builtin_prefetch(p, 1, 3);
#endif
}

/// Copies bytes that another party may be changing, once: what is read afterwards is the copy, never the source again.
CLX_INLINE void clx_copy_once(void *to, const void *from, unsigned long count) {
  __builtin_memcpy(to, from, count);
  __asm__ volatile("" : : "r"(to) : "memory");
}
