// Catches every access that the calling thread makes to some pages, one by one and in order, without a word from the code
// that makes them: the pages are closed, an access faults, is let through for one instruction, and the pages are closed
// again. x86-64 only. For tests; one thread at a time.
#pragma once

#include <stddef.h>
#include <stdint.h>

/// Called after each access, on the same thread, with the pages open: `start` of which piece, which byte of it first, and
/// whether it was written. May change the pages.
typedef void (*trap_hook)(void *context, int piece, size_t offset, int is_write);

/// Watches so many pieces of whole pages (at most 4) until `trap_end`. 0, or an errno; ENOSYS on other processors.
int trap_begin(int count, void *const *starts, const size_t *lengths, trap_hook hook, void *context);
void trap_end(void);
