#include "region/devdax.h"

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <initializer_list>
#include <sys/sysmacros.h>
#include <unistd.h>

namespace mapdirect {
namespace {

constexpr uint64_t kDefaultAlignment = 2 << 20;

int readNumber(const char *directory, const char *name, uint64_t &value) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  const int descriptor = open(path, O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return -errno;
  char text[64];
  const ssize_t count = read(descriptor, text, sizeof text - 1);
  const int failure = errno;
  close(descriptor);
  if (count < 0) return -failure;
  text[count] = '\0';
  char *end = text;
  errno = 0;
  value = strtoull(text, &end, 0);
  return end == text || errno != 0 ? -EINVAL : 0;
}

} // namespace

int readDevdaxFacts(dev_t device, DevdaxFacts &facts) {
  char directory[64];
  snprintf(directory, sizeof directory, "/sys/dev/char/%u:%u", major(device), minor(device));
  char link[sizeof directory + 16];
  snprintf(link, sizeof link, "%s/subsystem", directory);
  char subsystem[PATH_MAX];
  const ssize_t length = readlink(link, subsystem, sizeof subsystem - 1);
  if (length < 0) return -ENODEV;
  subsystem[length] = '\0';
  const char *name = strrchr(subsystem, '/');
  if (name == nullptr || strcmp(name, "/dax") != 0) return -ENODEV;

  if (const int failure = readNumber(directory, "size", facts.sizeBytes); failure != 0) return failure;
  // The attribute of the device since Linux 5.10, of its region before that.
  for (const char *attribute : {"align", "device/align", "../dax_region/align", "device/dax_region/align"})
    if (readNumber(directory, attribute, facts.alignmentBytes) == 0 && facts.alignmentBytes != 0) return 0;
  facts.alignmentBytes = kDefaultAlignment;
  return 0;
}

} // namespace mapdirect
