// Threads with a name, a set of processors, and every signal blocked: a signal is the main thread's business.
#include "CLinux.h"

#include <stdlib.h>

struct start {
  clx_thread_body body;
  void *context;
};

static void *run(void *argument) {
  struct start start = *(struct start *)argument;
  free(argument);
  start.body(start.context);
  return NULL;
}

int clx_thread_start(pthread_t *thread, const char *name, const uint16_t *cpus, size_t count, clx_thread_body body,
                     void *context, int *affinity_error) {
  *affinity_error = 0;
  struct start *start = malloc(sizeof *start);
  if (start == NULL) return ENOMEM;
  *start = (struct start){body, context};

  sigset_t all, before;
  sigfillset(&all);
  // A fault in the thread itself must still end the process.
  sigdelset(&all, SIGBUS), sigdelset(&all, SIGSEGV), sigdelset(&all, SIGFPE), sigdelset(&all, SIGILL);
  sigdelset(&all, SIGTRAP), sigdelset(&all, SIGABRT), sigdelset(&all, SIGSYS);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = pthread_create(thread, NULL, run, start);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (error != 0) {
    free(start);
    return error;
  }
  pthread_setname_np(*thread, name);
  if (count > 0) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (size_t i = 0; i < count; i++)
      if (cpus[i] < CPU_SETSIZE) CPU_SET(cpus[i], &set);
    *affinity_error = pthread_setaffinity_np(*thread, sizeof set, &set);
  }
  return 0;
}

int clx_allowed_cpus(uint16_t *cpus, size_t capacity) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return -1;
  int found = 0;
  for (int i = 0; i < CPU_SETSIZE; i++)
    if (CPU_ISSET(i, &set)) {
      if ((size_t)found < capacity) cpus[found] = (uint16_t)i;
      found++;
    }
  return found;
}
