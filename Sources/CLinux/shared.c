// The SIGBUS handler and its table of shared mappings, see clx_shared.h.
//
// The handler runs on the thread that touched the page, at any instruction: it takes no lock, allocates nothing and calls
// the kernel alone. The table is chunks that are never freed, and each entry has a sequence number, odd while it changes:
// what was read under two different numbers is not believed. The entry of the mapping that faulted cannot change
// meanwhile, because whoever touches a mapping holds it.
#include "CLinux.h"

#include <stdlib.h>

enum { ENTRIES = 256 };

struct entry {
  uint32_t sequence;
  uintptr_t start;  // 0: free
  size_t length, page;
  uint64_t *lost;
};

struct chunk {
  struct entry entries[ENTRIES];
  struct chunk *next;
};

uint64_t clx_shared_lost_all;
_Thread_local uint64_t clx_shared_lost_here_count;

static struct chunk first;
static pthread_mutex_t writers = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t installed = PTHREAD_ONCE_INIT;
static struct sigaction before;

uint64_t clx_shared_lost_here(void) { return clx_shared_lost_here_count; }

// Copies an entry; 0 where it is free or was changed meanwhile.
static int look(const struct entry *entry, struct entry *copy) {
  copy->sequence = __atomic_load_n(&entry->sequence, __ATOMIC_ACQUIRE);
  copy->start = __atomic_load_n(&entry->start, __ATOMIC_RELAXED);
  copy->length = __atomic_load_n(&entry->length, __ATOMIC_RELAXED);
  copy->page = __atomic_load_n(&entry->page, __ATOMIC_RELAXED);
  copy->lost = __atomic_load_n(&entry->lost, __ATOMIC_RELAXED);
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  return copy->start != 0 && copy->sequence % 2 == 0 &&
         copy->sequence == __atomic_load_n(&entry->sequence, __ATOMIC_RELAXED);
}

// Puts a page of zeros where the touched one was; 0 where that is not ours to do.
static int replace(uintptr_t address) {
  for (struct chunk *chunk = &first; chunk != NULL; chunk = __atomic_load_n(&chunk->next, __ATOMIC_ACQUIRE)) {
    for (int i = 0; i < ENTRIES; i++) {
      struct entry entry;
      if (!look(&chunk->entries[i], &entry) || address - entry.start >= entry.length) continue;
      // A whole page of the file's own size: the kernel refuses less within a huge one.
      uintptr_t page = address & ~(entry.page - 1);
      long mapped = syscall(SYS_mmap, page, entry.page, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
      if (mapped != (long)page) return 0;
      __atomic_fetch_add(entry.lost, 1, __ATOMIC_RELAXED);
      __atomic_fetch_add(&clx_shared_lost_here_count, 1, __ATOMIC_RELAXED);
      // After its own count: who sees this one rise finds the other.
      __atomic_fetch_add(&clx_shared_lost_all, 1, __ATOMIC_RELEASE);
      return 1;
    }
  }
  return 0;
}

static void fault(int signal, siginfo_t *info, void *context) {
  (void)context;
  int saved = errno;
  // Only what the kernel says of a touch: a signal that was sent has no address.
  if (info->si_code <= 0 || !replace((uintptr_t)info->si_addr)) {
    // As if we had never been here: a touch is repeated on return, a signal that was sent is sent again.
    // A sandbox may forbid it: the end comes all the same.
    if (sigaction(signal, &before, NULL) != 0) __builtin_trap();
    if (info->si_code <= 0) syscall(SYS_tgkill, getpid(), clx_gettid(), signal);
  }
  errno = saved;
}

static void install(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigfillset(&action.sa_mask);
  sigaction(SIGBUS, &action, &before);
}

static void set(struct entry *entry, uintptr_t start, size_t length, size_t page, uint64_t *lost) {
  uint32_t sequence = entry->sequence;
  __atomic_store_n(&entry->sequence, sequence + 1, __ATOMIC_RELAXED);
  __atomic_thread_fence(__ATOMIC_RELEASE);
  __atomic_store_n(&entry->start, start, __ATOMIC_RELAXED);
  __atomic_store_n(&entry->length, length, __ATOMIC_RELAXED);
  __atomic_store_n(&entry->page, page, __ATOMIC_RELAXED);
  __atomic_store_n(&entry->lost, lost, __ATOMIC_RELAXED);
  __atomic_store_n(&entry->sequence, sequence + 2, __ATOMIC_RELEASE);
}

void clx_shared_watch(void) { pthread_once(&installed, install); }

int clx_shared_add(void *start, size_t length, size_t page, uint64_t *lost) {
  clx_shared_watch();
  pthread_mutex_lock(&writers);
  int place = 0;
  for (struct chunk *chunk = &first;; chunk = chunk->next) {
    for (int i = 0; i < ENTRIES; i++) {
      if (chunk->entries[i].start != 0) continue;
      set(&chunk->entries[i], (uintptr_t)start, length, page, lost);
      pthread_mutex_unlock(&writers);
      return place + i;
    }
    place += ENTRIES;
    if (chunk->next == NULL) {
      struct chunk *another = calloc(1, sizeof *another);
      if (another == NULL) {
        pthread_mutex_unlock(&writers);
        return -1;
      }
      __atomic_store_n(&chunk->next, another, __ATOMIC_RELEASE);
    }
  }
}

void clx_shared_remove(int place) {
  if (place < 0) return;
  pthread_mutex_lock(&writers);
  struct chunk *chunk = &first;
  for (; place >= ENTRIES; place -= ENTRIES) chunk = chunk->next;
  set(&chunk->entries[place], 0, 0, 0, NULL);
  pthread_mutex_unlock(&writers);
}
