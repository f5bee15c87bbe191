// Memory that another process shares with us, and may take away: a file that is cut short under a mapping raises SIGBUS
// at the next touch. Every such mapping is entered here; a fault inside one becomes a page of zeros and a count, a
// fault elsewhere ends the process as it always did. Callers: HostIO (entering), VirtQueue and devices (counts).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "clx_atomics.h"

/// Pages lost in the whole process, and by the calling thread's own touch. Only ever rise. Not for callers.
extern uint64_t clx_shared_lost_all;
extern _Thread_local uint64_t clx_shared_lost_here_count;

/// Installs the handler, once; entering a mapping does it too. For those that a sandbox will forbid it later.
void clx_shared_watch(void);

/// Enters a mapping of `length` bytes whose file has pages of `page` bytes, a power of two. `lost` counts its lost
/// pages, by whatever thread touches them. The place it has (for `clx_shared_remove`), or -1 where there is no memory.
int clx_shared_add(void *start, size_t length, size_t page, uint64_t *lost);

/// Takes it out again: before it is unmapped.
void clx_shared_remove(int place);

/// How many pages this process has lost: one relaxed load, to be compared with what it was.
CLX_INLINE uint64_t clx_shared_lost(void) { return clx_load_relaxed_u64(&clx_shared_lost_all); }

/// How many of them the calling thread found missing.
uint64_t clx_shared_lost_here(void);
