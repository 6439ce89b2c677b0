/*
 * System calls without libc in between: mmap(2) is called before relocation is finished and by allocators,
 * and the libc functions of these names are what the preload library interposes. Returns the kernel's result:
 * a negative errno on failure.
 */
#ifndef MAPDIRECT_SYSCALL_H
#define MAPDIRECT_SYSCALL_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#ifdef MAPDIRECT_FAILURES
/* Of the test: 0, or the error that this call is to have. */
long failing_syscall(long number);
#endif

static inline long raw_syscall(long number, long a, long b, long c, long d, long e, long f) {
#ifdef MAPDIRECT_FAILURES
  long failure = failing_syscall(number);
  if (failure != 0) return failure;
#endif
#if defined(__x86_64__) && !defined(__ILP32__)
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0;
#else
  long result = syscall(number, a, b, c, d, e, f);
  return result == -1 ? -errno : result;
#endif
}

static inline bool raw_failed(long result) {
  return (unsigned long)result > -4096ul;
}

static inline long raw_mmap(uintptr_t address, size_t length, int prot, int flags, int fd, off_t offset) {
  return raw_syscall(SYS_mmap, (long)address, (long)length, prot, flags, fd, (long)offset);
}

static inline int raw_munmap(uintptr_t address, size_t length) {
  return (int)raw_syscall(SYS_munmap, (long)address, (long)length, 0, 0, 0, 0);
}

static inline long raw_mremap(uintptr_t address, size_t old_length, size_t new_length, int flags,
                              uintptr_t target) {
  return raw_syscall(SYS_mremap, (long)address, (long)old_length, (long)new_length, flags, (long)target, 0);
}

static inline int raw_msync(uintptr_t address, size_t length, int flags) {
  return (int)raw_syscall(SYS_msync, (long)address, (long)length, flags, 0, 0, 0);
}

static inline int raw_madvise(uintptr_t address, size_t length, int advice) {
  return (int)raw_syscall(SYS_madvise, (long)address, (long)length, advice, 0, 0, 0);
}

static inline int raw_mlock(uintptr_t address, size_t length) {
  return (int)raw_syscall(SYS_mlock, (long)address, (long)length, 0, 0, 0, 0);
}

static inline int raw_mlock2(uintptr_t address, size_t length, int flags) {
  return (int)raw_syscall(SYS_mlock2, (long)address, (long)length, flags, 0, 0, 0);
}

static inline int raw_close(int fd) {
  return (int)raw_syscall(SYS_close, fd, 0, 0, 0, 0, 0);
}

/* Not the libc's: under the preload library that is ours, which learns from it what the program has opened. errno as by open(2). */
static inline int raw_open(const char *path, int flags, mode_t mode) {
  long fd = raw_syscall(SYS_openat, AT_FDCWD, (long)path, flags, mode, 0, 0);
  if (fd >= 0) return (int)fd;
  errno = (int)-fd;
  return -1;
}

/* Not the libc's: under the preload library that is ours, which serves the program's descriptors, and the keeper has a
 * descriptor table of its own. */
static inline ssize_t raw_pread(int fd, void *buffer, size_t count, off_t offset) {
  return (ssize_t)raw_syscall(SYS_pread64, fd, (long)buffer, (long)count, (long)offset, 0, 0);
}

#endif
