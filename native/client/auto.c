/*
 * MAPDIRECT=auto: a program that asks for an ordinary shared, writable mapping of a file in a mapdirect mount gets a
 * direct one, and does not notice.
 *
 * Invariants:
 * - whatever can go wrong ends in the ordinary mapping that was asked for; why is counted (MAPDIRECT_STATS);
 * - calls about other files, and calls that could not be direct, cost a look at their arguments, or a statx() and an fstatfs();
 * - the lease is a breakable one that also yields to ordinary mappings of the range, whoever makes them. When it is
 *   broken, the mapping becomes the ordinary one in place: that one (the shadow) exists from the beginning, without any
 *   access, so that nothing can fail then;
 * - the range is prepared first: a store into a hole would raise SIGBUS, where the program expects a block;
 * - a range that reaches past the end of the file is left alone: as the file grows, an ordinary mapping grows with it.
 */
#include "internal.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "syscall.h"

/* Set before main(), and never after. */
static bool automatic;
static const char *report_to;

static _Atomic bool reported;

static void say(const char *text) {
  if (write(STDERR_FILENO, text, strlen(text)) < 0) return;
}

static bool is_word(const char *at, size_t length, const char *word) {
  return strlen(word) == length && strncmp(at, word, length) == 0;
}

__attribute__((constructor)) static void read_environment(void) {
  const char *words = secure_getenv("MAPDIRECT");
  bool io = false;
  for (const char *at = words; at != NULL && *at != 0;) {
    size_t length = strcspn(at, ",");
    if (is_word(at, length, "auto"))
      automatic = true;
    else if (is_word(at, length, "io"))
      io = true;
    else if (!is_word(at, length, "off"))
      say("mapdirect: MAPDIRECT: unknown value, taken for 'off'; use 'auto', 'io', both with a comma, or "
          "'off'\n");
    at += length + (at[length] == ',');
  }
  if (io) io_enable();
  const char *file = secure_getenv("MAPDIRECT_STATS");
  if (file == NULL || file[0] == 0) return;
  report_to = file;
  count_from_zero();
  keeper_prepare_forks(); /* children count from zero */
}

bool auto_applies(int prot, int flags, int fd) {
  int type = flags & MAP_TYPE_BITS;
  return automatic && fd >= 0 && (prot & PROT_WRITE) != 0 && (flags & MAP_ANONYMOUS) == 0 &&
         (type == MAP_SHARED || type == MAP_SHARED_VALIDATE);
}

/* A regular file of a mapdirect mount? */
static bool is_ours(int fd, struct file_facts *file) {
  struct mapdirect_wire_region *region = page_alloc(round_up(sizeof *region, page_bytes()));
  if (region == NULL) return false;
  int error = region_of(fd, file, region);
  page_free(region, round_up(sizeof *region, page_bytes()));
  return error == 0;
}

static enum counter reason(int error) {
  switch (error) {
  case -EAGAIN:
  case -ETXTBSY:
  case -EBUSY:
    return COUNT_BUSY;
  case -ENOSPC:
    return COUNT_NO_SPACE;
  case -EACCES:
  case -EPERM:
    return COUNT_NO_ACCESS;
  case -EOPNOTSUPP:
  case -EINVAL:
    return COUNT_UNSUPPORTED;
  default:
    return COUNT_OTHER;
  }
}

static int map_with_shadow(void *addr, size_t length, int prot, int flags, int fd, off_t offset,
                           void **result) {
  /* On the caller's thread: the kernel may have it wait for writes that are under way. */
  long shadow = raw_mmap(0, length, PROT_NONE, MAP_SHARED, fd, offset);
  if (raw_failed(shadow)) return (int)shadow;
  int error =
      core_map_automatic(addr, length, prot, (flags & ~MAP_TYPE_BITS) | MAP_SHARED_VALIDATE | MAP_DIRECT, fd,
                         offset, (uintptr_t)shadow, result);
  if (error != 0) raw_munmap((uintptr_t)shadow, length);
  return error;
}

bool auto_map(void *addr, size_t length, int prot, int flags, int fd, off_t offset, void **result) {
  int errno_before = errno;
  struct file_facts file;
  bool made = false;
  /* What the kernel would refuse, too, it shall refuse. */
  int access_mode = fcntl(fd, F_GETFL);
  if (access_mode < 0 || (access_mode & O_PATH) != 0 || (access_mode & O_ACCMODE) != O_RDWR) {
    errno = errno_before;
    return false;
  }
  if (is_ours(fd, &file) && offset >= 0 && length > 0 && length <= SIZE_MAX / 4) {
    uint64_t end = round_up(file.bytes, page_bytes());
    int error = 0;
    if ((uint64_t)offset > end || round_up(length, page_bytes()) > end - (uint64_t)offset) {
      count_up(COUNT_PAST_END, 1);
    } else {
      error = map_with_shadow(addr, length, prot, flags, fd, offset, result);
      made = error == 0;
      count_up(made ? COUNT_AUTOMATIC : reason(error), 1);
    }
  }
  errno = errno_before;
  return made;
}

/* ---- at the end of the process */

struct line {
  const char *name;
  enum counter counter;
};

static char *append_long(char *at, uint64_t number) {
  char digits[20];
  size_t count = 0;
  do
    digits[count++] = (char)('0' + number % 10);
  while ((number /= 10) != 0);
  while (count > 0)
    *at++ = digits[--count];
  *at = 0;
  return at;
}

/* One write, so that lines of several processes do not mix. */
static void write_line(void) {
  static const struct line lines[] = {
      {" direct=", COUNT_DIRECT},       {" direct_bytes=", COUNT_DIRECT_BYTES},
      {" automatic=", COUNT_AUTOMATIC}, {" revoked=", COUNT_REVOKED},
      {" past_end=", COUNT_PAST_END},   {" busy=", COUNT_BUSY},
      {" served=", COUNT_IO},           {" no_space=", COUNT_NO_SPACE},
      {" no_access=", COUNT_NO_ACCESS}, {" unsupported=", COUNT_UNSUPPORTED},
      {" other=", COUNT_OTHER},
  };
  char text[640];
  char *at = append_text(text, "mapdirect: pid=");
  at = append_long(at, (uint64_t)getpid());
  at = append_text(at, " command=");
  size_t name = strnlen(program_invocation_short_name, 64);
  memcpy(at, program_invocation_short_name, name);
  at += name;
  uint64_t sum = 0;
  for (size_t index = 0; index < sizeof lines / sizeof *lines; index++) {
    at = append_long(append_text(at, lines[index].name), counted(lines[index].counter));
    sum += counted(lines[index].counter);
  }
  *at++ = '\n';
  if (sum == 0) return;
  bool to_stderr = strcmp(report_to, "stderr") == 0;
  int fd = to_stderr ? STDERR_FILENO
                     : raw_open(report_to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0666);
  if (fd < 0) return;
  if (write(fd, text, (size_t)(at - text)) < 0) say("mapdirect: MAPDIRECT_STATS: cannot be written\n");
  if (!to_stderr) raw_close(fd);
}

void auto_report(void) {
  if (report_to == NULL || !counts_are_ours() || atomic_exchange(&reported, true)) return;
  int errno_before = errno;
  write_line();
  errno = errno_before;
}

__attribute__((destructor)) static void at_exit(void) {
  auto_report();
}
