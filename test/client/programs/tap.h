/*
 * What the test programs of the client library share. Each program is
 *
 *     program DIRECTORY REGION DOOR
 *
 * DIRECTORY on a mapdirect mount, REGION the file behind it, DOOR "library" (mapdirect_map and its relatives)
 * or "preload" (mmap(2) and its relatives, under LD_PRELOAD). It prints one line per property, "ok -
 * <sentence>" or "not ok - <sentence> # <what was seen>", or "skip - <sentence> # <reason>", and ends with 1
 * when one failed.
 */
#ifndef TAP_H
#define TAP_H

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "mapdirect.h"

#ifndef MAP_SHARED_VALIDATE
#define MAP_SHARED_VALIDATE 3
#endif
#ifndef MAP_SYNC
#define MAP_SYNC 0x80000
#endif
#define PAGE 4096ul
#define READ_WRITE (PROT_READ | PROT_WRITE)
#define DIRECT (MAP_SHARED_VALIDATE | MAP_DIRECT)

static const char *directory;
static const char *region_path;
static bool by_library;
static int failures;
static int checks;

__attribute__((format(printf, 3, 4))) static bool report(bool good, const char *sentence, const char *seen,
                                                         ...) {
  checks++;
  if (good) {
    printf("ok - %s\n", sentence);
  } else {
    failures++;
    va_list list;
    va_start(list, seen);
    printf("not ok - %s # ", sentence);
    vprintf(seen, list);
    printf("\n");
    va_end(list);
  }
  fflush(stdout);
  return good;
}

static inline bool check(bool good, const char *sentence) {
  return report(good, sentence, "errno %s", strerrorname_np(errno));
}

static inline void skip(const char *sentence, const char *reason) {
  printf("skip - %s # %s\n", sentence, reason);
  fflush(stdout);
}

/* The test cannot go on. */
__attribute__((noreturn)) static inline void give_up(const char *what) {
  printf("not ok - %s # %s\n", what, strerrorname_np(errno));
  fflush(stdout);
  _exit(2);
}

static inline void begin(int argc, char **argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: %s DIRECTORY REGION library|preload\n", argv[0]);
    exit(2);
  }
  directory = argv[1];
  region_path = argv[2];
  by_library = strcmp(argv[3], "library") == 0;
  setenv("MAPDIRECT_LEASE", "seal", 0);
}

static inline int end(void) {
  if (checks == 0) printf("not ok - no check ran # 0\n");
  return failures == 0 && checks > 0 ? 0 : 1;
}

/* ---- the two doors */

static inline unsigned kind_from_environment(void) {
  const char *value = getenv("MAPDIRECT_LEASE");
  if (value == NULL || strcmp(value, "default") == 0) return MAPDIRECT_DEFAULT;
  return strcmp(value, "seal") == 0 ? MAPDIRECT_SEAL : MAPDIRECT_BREAKABLE;
}

static inline void *map_any(void *addr, size_t length, int prot, int flags, int fd, off_t offset) {
  return by_library ? mapdirect_map(addr, length, prot, flags, fd, offset, kind_from_environment())
                    : mmap(addr, length, prot, flags, fd, offset);
}

static inline int unmap(void *addr, size_t length) {
  return by_library ? mapdirect_unmap(addr, length) : munmap(addr, length);
}

static inline void *remap(void *old, size_t old_length, size_t new_length, int flags, void *new) {
  return by_library ? mapdirect_remap(old, old_length, new_length, flags, new)
                    : mremap(old, old_length, new_length, flags, new);
}

static inline int persist(void *addr, size_t length) {
  if (by_library) return mapdirect_persist(addr, length);
  uintptr_t start = (uintptr_t)addr & ~(PAGE - 1);
  return msync((void *)start, (uintptr_t)addr + length - start, MS_SYNC);
}

/*
 * The region's bytes behind the mount's back. A DAX device has no read(2) and no write(2): there through a mapping of it,
 * which begins and ends where the device can.
 */
static inline bool region_copy(int region, char *bytes, size_t length, uint64_t at, bool store) {
  ssize_t done = store ? pwrite(region, bytes, length, (off_t)at) : pread(region, bytes, length, (off_t)at);
  if (done >= 0) return done == (ssize_t)length;
  const uint64_t unit = 2 << 20;
  uint64_t first = at / unit * unit;
  size_t mapped = (at + length - first + unit - 1) / unit * unit;
  char *window = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, region, (off_t)first);
  if (window == MAP_FAILED) return false;
  char *place = window + (at - first);
  memcpy(store ? place : bytes, store ? bytes : place, length);
  return munmap(window, mapped) == 0;
}

static inline bool region_read(int region, void *bytes, size_t length, uint64_t at) {
  return region_copy(region, bytes, length, at, false);
}

static inline bool region_write(int region, const char *bytes, size_t length, uint64_t at) {
  return region_copy(region, (char *)(uintptr_t)bytes, length, at, true);
}

static inline char *map_direct(int fd, off_t offset, size_t length) {
  char *map = map_any(NULL, length, READ_WRITE, DIRECT, fd, offset);
  if (map == MAP_FAILED) give_up("a direct mapping is made");
  return map;
}

/* Expect MAP_FAILED with `error`. */
static inline void refuses(const char *sentence, int error, void *addr, size_t length, int prot, int flags,
                           int fd, off_t offset) {
  errno = 0;
  void *map = map_any(addr, length, prot, flags, fd, offset);
  int seen = map == MAP_FAILED ? errno : 0;
  report(seen == error, sentence, "expected %s, got %s", strerrorname_np(error), strerrorname_np(seen));
  if (map != MAP_FAILED) unmap(map, length);
}

/* ---- files of a known layout */

static inline const char *path_of(const char *name) {
  static char path[4096];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  return path;
}

/* One letter per page: W written with the letter's index + 'A', H hole, U unwritten. The descriptor is
 * O_RDWR. */
static inline int make_file(const char *name, const char *layout) {
  unlink(path_of(name));
  int fd = open(path_of(name), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) give_up("a file is created");
  size_t pages = strlen(layout);
  if (ftruncate(fd, (off_t)(pages * PAGE)) != 0) give_up("a file gets its size");
  static char page[PAGE];
  for (size_t index = 0; index < pages; index++) {
    off_t at = (off_t)(index * PAGE);
    memset(page, 'A' + (int)(index % 26), PAGE);
    if (layout[index] == 'W' && pwrite(fd, page, PAGE, at) != (ssize_t)PAGE) give_up("a page is written");
    if (layout[index] == 'U' && fallocate(fd, 0, at, (off_t)PAGE) != 0) give_up("a page is allocated");
  }
  return fd;
}

/* ---- faults */

struct fault {
  int signal; /* 0: none */
  int code;
  void *address;
};

static sigjmp_buf fault_jump;
static struct fault fault_seen;

static void on_fault(int signal, siginfo_t *info, void *context) {
  (void)context;
  fault_seen = (struct fault){.signal = signal, .code = info->si_code, .address = info->si_addr};
  siglongjmp(fault_jump, 1);
}

static inline void catch_faults(void) {
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, NULL);
  sigaction(SIGSEGV, &action, NULL);
}

__attribute__((noinline)) static struct fault load_fault(const volatile char *at, char *value) {
  fault_seen = (struct fault){0};
  if (sigsetjmp(fault_jump, 1) == 0) *value = *at;
  return fault_seen;
}

__attribute__((noinline)) static struct fault store_fault(volatile char *at, char value) {
  fault_seen = (struct fault){0};
  if (sigsetjmp(fault_jump, 1) == 0) *at = value;
  return fault_seen;
}

static inline void expect_sigbus(const char *sentence, struct fault fault, const volatile void *address) {
  report(fault.signal == SIGBUS && fault.code == BUS_ADRERR && fault.address == (const void *)address,
         sentence, "signal %d code %d address %p instead of %p", fault.signal, fault.code, fault.address,
         (const void *)address);
}

/* ---- is the range leased? */

/* Try to punch a page: 0, or the errno. Another description than the mapping's. */
static inline int punch(const char *name, off_t offset) {
  int fd = open(path_of(name), O_RDWR | O_CLOEXEC);
  if (fd < 0) return errno;
  int error = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, (off_t)PAGE) == 0 ? 0 : errno;
  close(fd);
  return error;
}

static inline void sleep_ms(long ms) {
  struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
  nanosleep(&time, NULL);
}

/* As punch, but the kernel's news of the end may be on its way for up to two seconds. */
static inline int punch_soon(const char *name, off_t offset) {
  int error = ETXTBSY;
  for (int tries = 0; tries < 200 && (error = punch(name, offset)) == ETXTBSY; tries++)
    sleep_ms(10);
  return error;
}

static inline int wait_for(pid_t pid) {
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
    continue;
  return status;
}

#endif
