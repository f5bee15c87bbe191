// A load inside a guest: asynchronous O_DIRECT requests on a block device for a time, and one number, requests a second. Small, so
// that an emulated processor spends its time on the disk. `guest-load DEVICE read|write|sequential BYTES DEPTH MILLISECONDS`.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { most = 256 };

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void die(const char *what) {
  fprintf(stderr, "guest-load: %s: %s\n", what, strerror(errno));
  exit(1);
}

int main(int count, char **words) {
  static struct iocb blocks[most], *list[most];
  static struct io_event events[most];
  if (count != 6) return fprintf(stderr, "usage: guest-load DEVICE read|write|sequential BYTES DEPTH MILLISECONDS\n"), 2;
  int writes = !strcmp(words[2], "write"), sequential = !strcmp(words[2], "sequential");
  unsigned long bytes = strtoul(words[3], NULL, 10), depth = strtoul(words[4], NULL, 10);
  double seconds = strtod(words[5], NULL) / 1000;
  if (bytes < 512 || bytes > 1 << 20 || depth < 1 || depth > most) return fprintf(stderr, "guest-load: out of range\n"), 2;
  int disk = open(words[1], O_RDWR | O_DIRECT);
  uint64_t size;
  if (disk < 0 || ioctl(disk, BLKGETSIZE64, &size)) die(words[1]);
  uint64_t places = size / bytes, next = 0, random = 0x9e3779b97f4a7c15;
  char *memory;
  if (posix_memalign((void **)&memory, 4096, bytes * depth)) die("memory");
  memset(memory, 1, bytes * depth);
  aio_context_t context = 0;
  if (syscall(SYS_io_setup, (long)depth, &context)) die("io_setup");

  double begin = now(), end = begin + seconds;
  unsigned long flying = 0, done = 0;
  for (unsigned long i = 0; i < depth; i++) {
    blocks[i].aio_fildes = (uint32_t)disk;
    blocks[i].aio_lio_opcode = writes ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
    blocks[i].aio_buf = (uint64_t)(uintptr_t)(memory + i * bytes);
    blocks[i].aio_nbytes = bytes;
    list[i] = &blocks[i];
  }
  unsigned long ready = depth;
  for (;;) {
    if (now() < end) {
      for (unsigned long i = 0; i < ready; i++) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        list[i]->aio_offset = (int64_t)((sequential ? next++ : random >> 8) % places * bytes);
      }
      for (unsigned long sent = 0; sent < ready;) {
        long taken = syscall(SYS_io_submit, context, (long)(ready - sent), list + sent);
        if (taken < 0 && errno == EAGAIN) continue;
        if (taken <= 0) die("io_submit");
        sent += (unsigned long)taken;
      }
      flying += ready;
    }
    if (!flying) break;
    long got = syscall(SYS_io_getevents, context, 1L, (long)depth, events, NULL);
    if (got < 0 && errno == EINTR) continue;
    if (got < 1) die("io_getevents");
    for (long i = 0; i < got; i++) {
      if (events[i].res != (int64_t)bytes) return fprintf(stderr, "guest-load: result %lld\n", (long long)events[i].res), 1;
      list[i] = (struct iocb *)(uintptr_t)events[i].obj;
    }
    ready = (unsigned long)got, flying -= ready, done += ready;
  }
  printf("%.1f\n", (double)done / (now() - begin));
  return 0;
}
