/*
 * Preloaded in front of the library: a kernel that knows less of userfaultfd than this one.
 * SUBSTITUTE=unpopulated: it cannot protect pages that do not exist yet (before Linux 6.4). SUBSTITUTE=none:
 * it has none.
 */
#include <dlfcn.h>
#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

__attribute__((visibility("default"))) int ioctl(int fd, unsigned long request, ...) {
  va_list list;
  va_start(list, request);
  void *argument = va_arg(list, void *);
  va_end(list);
  const char *less = getenv("SUBSTITUTE");
  if (less != NULL && request == UFFDIO_API) {
    const struct uffdio_api *api = argument;
    if (strcmp(less, "none") == 0 || (api->features & (1u << 13)) != 0) {
      errno = EINVAL;
      return -1;
    }
  }
  return (int)syscall(SYS_ioctl, fd, request, argument);
}
