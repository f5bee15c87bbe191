// See trap.h. Two signals play together: SIGSEGV opens the pages and sets the processor's single-step flag, SIGTRAP comes
// one instruction later and closes them again.
#define _GNU_SOURCE
#include "trap.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { PIECES = 4, STEP_FLAG = 0x100, WRITE_FAULT = 2 };

static _Thread_local struct {
  int count, stepping, piece, is_write;
  size_t offset;
  void *starts[PIECES];
  size_t lengths[PIECES];
  trap_hook hook;
  void *context;
} watch;

static struct sigaction segv_before, trap_before;

static void protect(int access) {
  for (int i = 0; i < watch.count; i++) mprotect(watch.starts[i], watch.lengths[i], access);
}

#if defined(__x86_64__)
static void touched(int signal, siginfo_t *info, void *context) {
  ucontext_t *machine = context;
  for (int i = 0; i < watch.count; i++) {
    size_t offset = (size_t)((char *)info->si_addr - (char *)watch.starts[i]);
    if (offset >= watch.lengths[i]) continue;
    watch.piece = i;
    watch.offset = offset;
    watch.is_write = (machine->uc_mcontext.gregs[REG_ERR] & WRITE_FAULT) != 0;
    watch.stepping = 1;
    protect(PROT_READ | PROT_WRITE);
    machine->uc_mcontext.gregs[REG_EFL] |= STEP_FLAG;
    return;
  }
  sigaction(signal, &segv_before, NULL);
}

static void stepped(int signal, siginfo_t *info, void *context) {
  (void)info;
  ucontext_t *machine = context;
  if (!watch.stepping) {
    sigaction(signal, &trap_before, NULL);
    return;
  }
  watch.stepping = 0;
  machine->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)STEP_FLAG;
  watch.hook(watch.context, watch.piece, watch.offset, watch.is_write);
  protect(PROT_NONE);
}

int trap_begin(int count, void *const *starts, const size_t *lengths, trap_hook hook, void *context) {
  if (count > PIECES) return EINVAL;
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  action.sa_sigaction = touched;
  sigaction(SIGSEGV, &action, &segv_before);
  action.sa_sigaction = stepped;
  sigaction(SIGTRAP, &action, &trap_before);
  memset(&watch, 0, sizeof watch);
  for (int i = 0; i < count; i++) {
    watch.starts[i] = starts[i];
    watch.lengths[i] = lengths[i];
  }
  watch.count = count;
  watch.hook = hook;
  watch.context = context;
  protect(PROT_NONE);
  return 0;
}

void trap_end(void) {
  protect(PROT_READ | PROT_WRITE);
  watch.count = 0;
  sigaction(SIGSEGV, &segv_before, NULL);
  sigaction(SIGTRAP, &trap_before, NULL);
}
#else
int trap_begin(int count, void *const *starts, const size_t *lengths, trap_hook hook, void *context) {
  (void)count, (void)starts, (void)lengths, (void)hook, (void)context;
  return ENOSYS;
}
void trap_end(void) {}
#endif
