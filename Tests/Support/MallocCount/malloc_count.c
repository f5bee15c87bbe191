// Counts allocations by thread, and leaves the work to glibc. A definition in the program comes before the library's own for
// everything that is loaded with it, so nothing that allocates by malloc gets past this. Any thread.
#include "malloc_count.h"

#include <stddef.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
// A sanitizer has an allocator of its own, which must not be passed by.
#define SANITIZED 1
#endif
#endif

int malloc_is_counted(void) {
#ifdef SANITIZED
  return 0;
#else
  return 1;
#endif
}

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

// In the program's own block of thread storage, so that reaching it allocates nothing.
static __thread uint64_t count __attribute__((tls_model("initial-exec")));

uint64_t malloc_count_here(void) { return count; }

#ifndef SANITIZED

void *malloc(size_t bytes) {
  count++;
  return __libc_malloc(bytes);
}

void *calloc(size_t number, size_t bytes) {
  count++;
  return __libc_calloc(number, bytes);
}

void *realloc(void *old, size_t bytes) {
  count++;
  return __libc_realloc(old, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes) {
  count++;
  return __libc_memalign(alignment, bytes);
}

void *memalign(size_t alignment, size_t bytes) {
  count++;
  return __libc_memalign(alignment, bytes);
}

int posix_memalign(void **place, size_t alignment, size_t bytes) {
  count++;
  void *memory = __libc_memalign(alignment, bytes);
  if (!memory) return 12;  // ENOMEM
  *place = memory;
  return 0;
}

#endif
