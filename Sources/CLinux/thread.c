// Threads with a name, a set of processors, and every signal blocked: a signal is the main thread's business.
#include "CLinux.h"

#include <semaphore.h>
#include <stdlib.h>

struct start {
  clx_thread_body body;
  void *context;
  char name[16];
  sem_t go;
};

static void *run(void *argument) {
  struct start *start = argument;
  while (sem_wait(&start->go) != 0) continue;
  clx_thread_body body = start->body;
  void *context = start->context;
  // By the thread itself: from outside it takes /proc.
  prctl(PR_SET_NAME, start->name);
  sem_destroy(&start->go);
  free(start);
  body(context);
  return NULL;
}

// Creates the thread on the processors from its first instruction: what it touches first lies near them.
static int create(pthread_t *thread, const cpu_set_t *set, struct start *start) {
  pthread_attr_t attributes;
  int error = pthread_attr_init(&attributes);
  if (error != 0) return error;
  if (set != NULL) error = pthread_attr_setaffinity_np(&attributes, sizeof *set, set);
  if (error == 0) error = pthread_create(thread, &attributes, run, start);
  pthread_attr_destroy(&attributes);
  return error;
}

int clx_thread_start(pthread_t *thread, const char *name, const uint16_t *cpus, size_t count,
                     clx_thread_body body, void *context, uint8_t *missing) {
  struct start *start = malloc(sizeof *start);
  if (start == NULL) return ENOMEM;
  *start = (struct start){.body = body, .context = context};
  strncpy(start->name, name, sizeof start->name - 1);
  sem_init(&start->go, 0, 0);

  sigset_t all, before;
  sigfillset(&all);
  // A fault in the thread itself must still end the process.
  sigdelset(&all, SIGBUS), sigdelset(&all, SIGSEGV), sigdelset(&all, SIGFPE), sigdelset(&all, SIGILL);
  sigdelset(&all, SIGTRAP), sigdelset(&all, SIGABRT), sigdelset(&all, SIGSYS);
  cpu_set_t asked, had;
  CPU_ZERO(&asked);
  CPU_ZERO(&had);
  for (size_t i = 0; i < count; i++)
    if (cpus[i] < CPU_SETSIZE) CPU_SET(cpus[i], &asked);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = create(thread, count > 0 ? &asked : NULL, start);
  int refused = error == EINVAL && count > 0;  // no processor of the set is there and ours
  if (refused) error = create(thread, NULL, start);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (error != 0) {
    sem_destroy(&start->go);
    free(start);
    return error;
  }
  // The thread waits for us, so that it can still be asked.
  if (!refused && count > 0) pthread_getaffinity_np(*thread, sizeof had, &had);
  for (size_t i = 0; i < count; i++) missing[i] = cpus[i] >= CPU_SETSIZE || !CPU_ISSET(cpus[i], &had);
  sem_post(&start->go);
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
