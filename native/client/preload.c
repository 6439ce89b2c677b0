/*
 * The other door: mmap(2) with MAP_SHARED_VALIDATE | MAP_DIRECT, for programs that run under
 * LD_PRELOAD=libmapdirect_preload.so. Interposes mmap, mmap64, munmap, mremap, msync, madvise, process_madvise, mlock,
 * mlock2, and for the counters _exit.
 *
 * Calls that have nothing to do with direct mappings go straight to the kernel, with one system call
 * instruction, no lock and no other function: allocators and the dynamic linker call these while nothing else
 * works yet.
 *
 * MAPDIRECT_LEASE=seal|breakable in the environment chooses the kind of lease (unset or "default": what the
 * mount hands out). MAPDIRECT_REVOKE=sigbus|remap chooses what comes in place of a mapping whose lease is
 * broken (unset: sigbus). Any other value makes MAP_DIRECT fail with EINVAL. MAPDIRECT=auto: see auto.c; MAPDIRECT=io: see io.c.
 */
#include "internal.h"

#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "syscall.h"

#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif

static void *pointer_answer(long result) {
  if (!raw_failed(result)) return (void *)result;
  errno = (int)-result;
  return MAP_FAILED;
}

static int integer_answer(int result) {
  if (result >= 0) return result;
  errno = -result;
  return -1;
}

/* -1: not a kind. */
static int lease_from_environment(void) {
  const char *value = secure_getenv("MAPDIRECT_LEASE");
  if (value == NULL || value[0] == 0 || strcmp(value, "default") == 0) return (int)MAPDIRECT_DEFAULT;
  if (strcmp(value, "seal") == 0) return (int)MAPDIRECT_SEAL;
  if (strcmp(value, "breakable") == 0) return (int)MAPDIRECT_BREAKABLE;
  return -1;
}

static bool wish_from_environment(void) {
  const char *value = secure_getenv("MAPDIRECT_REVOKE");
  if (value == NULL || value[0] == 0 || strcmp(value, "sigbus") == 0) return true;
  if (strcmp(value, "remap") != 0) return false;
  break_wish_remap();
  return true;
}

static void *map_direct(void *addr, size_t length, int prot, int flags, int fd, off_t offset) {
  int errno_before = errno;
  void *result = MAP_FAILED;
  int lease = lease_from_environment();
  int error = lease < 0 || !wish_from_environment()
                  ? -EINVAL
                  : core_map(addr, length, prot, flags, fd, offset, (unsigned)lease, &result);
  errno = error == 0 ? errno_before : -error;
  return result;
}

static void *map_over(void *addr, size_t length, int prot, int flags, int fd, off_t offset) {
  int errno_before = errno;
  void *result = MAP_FAILED;
  int error = core_map_over(addr, length, prot, flags, fd, offset, &result);
  errno = error == 0 ? errno_before : -error;
  return result;
}

MAPDIRECT_API void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset) {
  if (__builtin_expect((flags & MAP_DIRECT) != 0, 0))
    return map_direct(addr, length, prot, flags, fd, offset);
  void *automatic;
  if (__builtin_expect(auto_applies(prot, flags, fd), 0) &&
      auto_map(addr, length, prot, flags, fd, offset, &automatic))
    return automatic;
  if ((flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) == MAP_FIXED && table_near(addr, length))
    return map_over(addr, length, prot, flags, fd, offset);
  return pointer_answer(raw_mmap((uintptr_t)addr, length, prot, flags, fd, offset));
}

MAPDIRECT_API void *mmap64(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));

MAPDIRECT_API int munmap(void *addr, size_t length) {
  if (!table_near(addr, length)) return integer_answer(raw_munmap((uintptr_t)addr, length));
  int errno_before = errno;
  int error = core_unmap((uintptr_t)addr, length);
  errno = errno_before;
  return integer_answer(error);
}

MAPDIRECT_API void *mremap(void *old_addr, size_t old_length, size_t new_length, int flags, ...) {
  void *new_addr = NULL;
  if ((flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) != 0) {
    va_list list;
    va_start(list, flags);
    new_addr = va_arg(list, void *);
    va_end(list);
  }
  bool onto = (flags & MREMAP_FIXED) != 0 && table_near(new_addr, new_length);
  if (!onto && !table_near(old_addr, old_length == 0 ? 1 : old_length))
    return pointer_answer(
        raw_mremap((uintptr_t)old_addr, old_length, new_length, flags, (uintptr_t)new_addr));
  int errno_before = errno;
  void *result = MAP_FAILED;
  int error =
      core_remap_any((uintptr_t)old_addr, old_length, new_length, flags, (uintptr_t)new_addr, &result);
  errno = error == 0 ? errno_before : -error;
  return result;
}

MAPDIRECT_API int msync(void *addr, size_t length, int flags) {
  if (!table_near(addr, length)) return integer_answer(raw_msync((uintptr_t)addr, length, flags));
  return integer_answer(core_msync((uintptr_t)addr, length, flags));
}

MAPDIRECT_API int madvise(void *addr, size_t length, int advice) {
  if (!table_near(addr, length)) return integer_answer(raw_madvise((uintptr_t)addr, length, advice));
  return integer_answer(core_madvise((uintptr_t)addr, length, advice));
}

static ssize_t advise_itself(const struct iovec *ranges, size_t count, int advice) {
  ssize_t done = 0;
  for (size_t index = 0; index < count; index++) {
    int error = core_madvise((uintptr_t)ranges[index].iov_base, ranges[index].iov_len, advice);
    if (error != 0) return done > 0 ? done : error;
    done += (ssize_t)ranges[index].iov_len;
  }
  return done;
}

MAPDIRECT_API ssize_t process_madvise(int pidfd, const struct iovec *ranges, size_t count, int advice,
                                      unsigned flags) {
  bool near = false;
  for (size_t index = 0; index < count && count <= IOV_MAX && ranges != NULL && flags == 0; index++)
    near |= table_near(ranges[index].iov_base, ranges[index].iov_len);
  int errno_before = errno;
  bool itself = near && core_advises_itself(pidfd, advice);
  errno = errno_before;
  long result = itself ? advise_itself(ranges, count, advice)
                       : raw_syscall(SYS_process_madvise, pidfd, (long)ranges, (long)count, advice, flags, 0);
  if (!raw_failed(result)) return (ssize_t)result;
  errno = (int)-result;
  return -1;
}

MAPDIRECT_API int mlock(const void *addr, size_t length) {
  if (!table_near(addr, length)) return integer_answer(raw_mlock((uintptr_t)addr, length));
  return integer_answer(core_mlock((uintptr_t)addr, length, 0));
}

MAPDIRECT_API int mlock2(const void *addr, size_t length, unsigned flags) {
  if (!table_near(addr, length)) return integer_answer(raw_mlock2((uintptr_t)addr, length, (int)flags));
  return integer_answer(core_mlock((uintptr_t)addr, length, (int)flags));
}

/* Some programs leave so (children of fio), past every destructor. */
MAPDIRECT_API __attribute__((noreturn)) void _exit(int status) {
  auto_report();
  for (;;)
    raw_syscall(SYS_exit_group, status, 0, 0, 0, 0, 0);
}

MAPDIRECT_API void _Exit(int status) __attribute__((noreturn, alias("_exit")));
