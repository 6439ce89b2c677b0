/*
 * Preloaded in front of a daemon with transport=io_uring: a kernel that has no memory now and then.
 * REFUSE=submission: of a hundred calls that submit something, fifty in a row are EAGAIN. REFUSE=command: every seventh
 * answer is taken, and comes to nothing.
 */
#include <dlfcn.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static int ring = -1;
static struct io_uring_params params;
static uint8_t *rings;
static uint8_t *submissions;
static unsigned calls;
static unsigned answers;

#define WORD(offset) (*(uint32_t *)(rings + (offset)))

/* Of commands with data behind them: the operation, which the kernel does not know then. */
static void spoil(uint32_t count) {
  uint32_t head = WORD(params.sq_off.head);
  for (uint32_t index = 0; index < count; index++) {
    uint32_t slot = ((uint32_t *)(rings + params.sq_off.array))[(head + index) & WORD(params.sq_off.ring_mask)];
    struct io_uring_sqe *submission = (struct io_uring_sqe *)(submissions + (size_t)slot * 128);
    if (submission->cmd_op == 2 && ++answers % 7 == 0) submission->cmd_op = 99;
  }
}

__attribute__((visibility("default"))) void *mmap(void *addr, size_t length, int prot, int flags, int fd,
                                                  off_t offset) {
  static void *(*next)(void *, size_t, int, int, int, off_t);
  if (next == NULL) *(void **)&next = dlsym(RTLD_NEXT, "mmap");
  void *made = next(addr, length, prot, flags, fd, offset);
  if (fd >= 0 && fd == ring && offset == IORING_OFF_SQ_RING) rings = made;
  if (fd >= 0 && fd == ring && offset == (off_t)IORING_OFF_SQES) submissions = made;
  return made;
}

__attribute__((visibility("default"))) void *mmap64(void *addr, size_t length, int prot, int flags, int fd,
                                                    off_t offset) {
  return mmap(addr, length, prot, flags, fd, offset);
}

__attribute__((visibility("default"))) long syscall(long number, ...) {
  static long (*next)(long, ...);
  if (next == NULL) *(void **)&next = dlsym(RTLD_NEXT, "syscall");
  va_list list;
  va_start(list, number);
  long a[6];
  for (int index = 0; index < 6; index++)
    a[index] = va_arg(list, long);
  va_end(list);
  const char *refuse = getenv("REFUSE");
  if (number == SYS_io_uring_enter && (int)a[0] == ring && (uint32_t)a[1] > 0 && refuse != NULL) {
    if (strcmp(refuse, "submission") == 0 && calls++ % 100 >= 50) {
      errno = EAGAIN;
      return -1;
    }
    if (strcmp(refuse, "command") == 0) spoil((uint32_t)a[1]);
  }
  long result = next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
  if (number == SYS_io_uring_setup && result >= 0) {
    const struct io_uring_params *made = (const struct io_uring_params *)a[1];
    if ((made->flags & IORING_SETUP_SQE128) != 0) {
      ring = (int)result;
      params = *made;
    }
  }
  return result;
}
