// How often a thread has allocated memory. Linked into the test program, whose malloc then is ours; see malloc_count.c.
#pragma once
#include <stdint.h>

/// Allocations (malloc, calloc, realloc and their aligned kin) of the calling thread so far.
uint64_t malloc_count_here(void);

/// Whether anything is counted: not under a sanitizer.
int malloc_is_counted(void);
