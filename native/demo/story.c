/*
 * The program that `npm start` shows: it knows mmap(2) and nothing of mapdirect, and does as it is told, one
 * line of standard input at a time. Under libmapdirect_preload.so its mappings with MAP_DIRECT are direct.
 *
 * - `map PATH OFFSET LENGTH HOW`, where HOW is direct, sync, private, read-only or shared
 *
 * - `store OFFSET TEXT` copies TEXT (no spaces) to OFFSET of the mapping
 *
 * - `load OFFSET` answers the byte there, in decimal
 *
 * - `time COUNT` answers the mean time of a store of 64 bytes with a cache flush, and of a pwrite(2) of as
 * many
 *
 * - `unmap`
 *
 * Each is answered by one line: "ok ...", "errno NUMBER", or "SIGBUS CODE OFFSET" where OFFSET is that of the
 * faulting address from the start of the mapping.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* As in mapdirect.h; an unmodified program has no other header. */
#ifndef MAP_DIRECT
#define MAP_DIRECT 0x200000
#endif
#ifndef MAP_SHARED_VALIDATE
#define MAP_SHARED_VALIDATE 0x03
#endif
#ifndef MAP_SYNC
#define MAP_SYNC 0x80000
#endif

enum { STORE_BYTES = 64 };

static sigjmp_buf after_fault;
static siginfo_t fault;

static volatile unsigned char *mapping;
static size_t mapped_bytes;
static int file = -1;

static void on_sigbus(int number, siginfo_t *info, void *context) {
  (void)number;
  (void)context;
  fault = *info;
  siglongjmp(after_fault, 1);
}

static void flush(const volatile void *address) {
#if defined(__x86_64__)
  __asm__ volatile("clflush (%0)" : : "r"(address) : "memory");
#elif defined(__aarch64__)
  __asm__ volatile("dc civac, %0" : : "r"(address) : "memory");
#endif
}

static void fence(void) {
  __sync_synchronize();
}

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void unmap(void) {
  if (mapping != NULL) munmap((void *)mapping, mapped_bytes);
  if (file >= 0) close(file);
  mapping = NULL;
  file = -1;
}

static void map(const char *path, long long offset, size_t length, const char *how) {
  unmap();
  int read_only = strcmp(how, "read-only") == 0;
  int prot = read_only ? PROT_READ : PROT_READ | PROT_WRITE;
  int flags = MAP_SHARED_VALIDATE | MAP_DIRECT;
  if (strcmp(how, "sync") == 0) flags |= MAP_SYNC;
  if (strcmp(how, "private") == 0) flags = MAP_PRIVATE | MAP_DIRECT;
  if (strcmp(how, "shared") == 0) flags = MAP_SHARED | MAP_DIRECT;
  file = open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) {
    printf("errno %d\n", errno);
    return;
  }
  void *address = mmap(NULL, length, prot, flags, file, (off_t)offset);
  if (address == MAP_FAILED) {
    printf("errno %d\n", errno);
    unmap();
    return;
  }
  mapping = address;
  mapped_bytes = length;
  printf("ok\n");
}

static void store(size_t offset, const char *text) {
  memcpy((void *)(mapping + offset), text, strlen(text));
  flush(mapping + offset);
  fence();
  printf("ok\n");
}

static void measure(int count) {
  char data[STORE_BYTES];
  memset(data, 'x', sizeof data);
  size_t places = mapped_bytes / STORE_BYTES;
  int64_t begin = now_ns();
  for (int i = 0; i < count; i++) {
    volatile unsigned char *target = mapping + ((size_t)i * 977 % places) * STORE_BYTES;
    memcpy((void *)target, data, sizeof data);
    flush(target);
    fence();
  }
  int64_t stores = now_ns() - begin;
  begin = now_ns();
  for (int i = 0; i < count; i++) {
    off_t target = (off_t)((size_t)i * 977 % places) * STORE_BYTES;
    if (pwrite(file, data, sizeof data, target) != (ssize_t)sizeof data) {
      printf("errno %d\n", errno);
      return;
    }
  }
  int64_t writes = now_ns() - begin;
  printf("ok %lld %lld\n", (long long)(stores / count), (long long)(writes / count));
}

static void run(char *line) {
  char path[4096];
  char text[256];
  char how[32];
  long long offset;
  long long length;
  int count;
  if (sscanf(line, "map %4095s %lld %lld %31s", path, &offset, &length, how) == 4) {
    map(path, offset, (size_t)length, how);
  } else if (strncmp(line, "unmap", 5) == 0) {
    unmap();
    printf("ok\n");
  } else if (mapping == NULL) {
    printf("errno %d\n", EFAULT);
  } else if (sscanf(line, "store %lld %255s", &offset, text) == 2) {
    store((size_t)offset, text);
  } else if (sscanf(line, "load %lld", &offset) == 1) {
    printf("ok %d\n", mapping[offset]);
  } else if (sscanf(line, "time %d", &count) == 1 && count > 0) {
    measure(count);
  } else {
    printf("errno %d\n", EINVAL);
  }
}

int main(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_sigbus;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, NULL);
  setvbuf(stdout, NULL, _IOLBF, 0);
  static char line[8192];
  while (fgets(line, sizeof line, stdin) != NULL) {
    if (sigsetjmp(after_fault, 1) == 0) {
      run(line);
    } else {
      const char *code = fault.si_code == BUS_ADRERR ? "BUS_ADRERR" : "another";
      printf("SIGBUS %s %td\n", code, (const volatile unsigned char *)fault.si_addr - mapping);
    }
  }
  unmap();
  return 0;
}
