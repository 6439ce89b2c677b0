/* Files of /proc, line by line, and numbers in them: without the allocator, which may be what called us. */
#include "internal.h"

#include <fcntl.h>
#include <string.h>

#include "syscall.h"

const char *parse_number(const char *at, unsigned base, uint64_t *value) {
  *value = 0;
  for (;; at++) {
    unsigned digit = *at >= '0' && *at <= '9'   ? (unsigned)(*at - '0')
                     : *at >= 'a' && *at <= 'f' ? (unsigned)(*at - 'a') + 10
                                                : 16;
    if (digit >= base) return at;
    *value = *value * base + digit;
  }
}

bool parse_field(const char **at, unsigned base, char end, uint64_t *value) {
  *at = parse_number(*at, base, value);
  return *(*at)++ == end;
}

/* By way of the thread: /proc/self is the first thread, which may have ended before the others. Its file is empty then. */
static int open_of_process(const char *name) {
  char path[64];
  append_text(append_text(path, "/proc/thread-self/"), name);
  int fd = raw_open(path, O_RDONLY | O_CLOEXEC, 0);
  if (fd >= 0 || errno != ENOENT) return fd;
  append_text(append_text(path, "/proc/self/"), name);
  return raw_open(path, O_RDONLY | O_CLOEXEC, 0);
}

int each_line_of_process(const char *name, size_t longest, line_seen *see, void *context) {
  const size_t capacity = round_up(2 * longest, page_bytes());
  int fd = open_of_process(name);
  if (fd < 0) return -errno;
  char *text = page_alloc(capacity);
  int result = text == NULL ? -ENOMEM : LINE_GO_ON;
  size_t have = 0;
  bool any = false;
  bool skipping = false; /* the rest of a line that was too long */
  while (result == LINE_GO_ON) {
    ssize_t count = raw_syscall(SYS_read, fd, (long)(text + have), (long)(capacity - have), 0, 0, 0);
    if (count == -EINTR) continue;
    if (count <= 0) {
      result = count < 0 ? (int)count : have > 0 || skipping || !any ? -EIO : LINE_STOP;
      break;
    }
    have += (size_t)count;
    any = true;
    char *line = text;
    for (char *newline;
         result == LINE_GO_ON && (newline = memchr(line, '\n', have - (size_t)(line - text))) != NULL;
         line = newline + 1) {
      *newline = 0;
      if (!skipping) result = see(context, line);
      skipping = false;
    }
    have -= (size_t)(line - text);
    memmove(text, line, have);
    if (result == LINE_GO_ON && have > longest) {
      if (!skipping) result = see(context, NULL);
      skipping = true;
      have = 0;
    }
  }
  page_free(text, capacity);
  raw_close(fd);
  return result < 0 ? result : 0;
}
