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

int each_line(const char *path, size_t longest, line_seen *see, void *context) {
  const size_t capacity = round_up(2 * longest, page_bytes());
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -errno;
  char *text = page_alloc(capacity);
  int result = text == NULL ? -ENOMEM : LINE_GO_ON;
  size_t have = 0;
  bool skipping = false; /* the rest of a line that was too long */
  while (result == LINE_GO_ON) {
    ssize_t count = raw_syscall(SYS_read, fd, (long)(text + have), (long)(capacity - have), 0, 0, 0);
    if (count == -EINTR) continue;
    if (count <= 0) {
      result = count < 0 ? (int)count : have > 0 || skipping ? -EIO : LINE_STOP;
      break;
    }
    have += (size_t)count;
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
