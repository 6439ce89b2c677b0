/* R6, R12: blocks that files share, and mappings. */
#include <sys/ioctl.h>

#include "tap.h"
#include "wire.h"

static const char *SOURCE = "sharing";
static const char *TARGET = "sharing-copy";

static int reopen(const char *name) {
  int fd = open(path_of(name), O_RDWR | O_CLOEXEC);
  if (fd < 0) give_up("a file is opened");
  return fd;
}

static int clone_range(int source, off_t source_offset, int target, off_t offset, off_t length) {
  struct mapdirect_wire_clone clone = {0};
  if (ioctl(source, (unsigned long)MAPDIRECT_IOCTL_OFFER, &clone) != 0) return -1;
  clone.source_offset = (uint64_t)source_offset;
  clone.offset = (uint64_t)offset;
  clone.length = (uint64_t)length;
  return ioctl(target, (unsigned long)MAPDIRECT_IOCTL_CLONE, &clone);
}

/* State and place of the extent at `offset`. */
static struct mapdirect_wire_extent extent_at(int fd, off_t offset) {
  static struct mapdirect_wire_map_full map;
  memset(&map, 0, sizeof map);
  map.map.version = MAPDIRECT_WIRE_VERSION;
  map.map.offset = (uint64_t)offset;
  map.map.length = PAGE;
  if (ioctl(fd, (unsigned long)MAPDIRECT_IOCTL_EXTENTS, &map) != 0 || map.map.count != 1)
    give_up("extents are told");
  return map.extents[0];
}

static bool shares(int a, off_t a_offset, int b, off_t b_offset) {
  struct mapdirect_wire_extent first = extent_at(a, a_offset);
  struct mapdirect_wire_extent second = extent_at(b, b_offset);
  return first.state == MAPDIRECT_WIRE_EXTENT_STATE_SHARED &&
         second.state == MAPDIRECT_WIRE_EXTENT_STATE_SHARED && first.physical == second.physical;
}

static char byte_at(int fd, off_t offset) {
  char byte = 0;
  return pread(fd, &byte, 1, offset) == 1 ? byte : '?';
}

static ssize_t copy_range(int from, off_t from_offset, int to, off_t to_offset, size_t length) {
  size_t done = 0;
  while (done < length) {
    ssize_t count = copy_file_range(from, &from_offset, to, &to_offset, length - done, 0);
    if (count < 0) return -1;
    if (count == 0) break;
    done += (size_t)count;
  }
  return (ssize_t)done;
}

static void refused_at_map_time(void) {
  int source = make_file(SOURCE, "WWHWW");
  int target = make_file(TARGET, "");
  check(clone_range(source, 0, target, 0, 0) == 0, "a clone of a whole file");
  check(shares(source, 0, target, 0) && shares(source, 3 * PAGE, target, 3 * PAGE), "shares what is written");
  check(extent_at(target, 2 * PAGE).state == MAPDIRECT_WIRE_EXTENT_STATE_HOLE, "a hole stays one");
  refuses("R6: mapping the source", EPERM, NULL, 5 * PAGE, READ_WRITE, DIRECT, source, 0);
  refuses("R6: mapping the target", EPERM, NULL, PAGE, READ_WRITE, DIRECT, target, 4 * PAGE);

  uint64_t before = extent_at(target, 0).physical;
  check(mapdirect_prepare(target, 0, 5 * PAGE) == 0, "R6: prepare");
  struct mapdirect_wire_extent own = extent_at(target, 0);
  check(own.state == MAPDIRECT_WIRE_EXTENT_STATE_WRITTEN && own.physical != before, "R6: unshares");
  char *map = map_direct(target, 0, 5 * PAGE);
  check(map[0] == 'A' && map[2 * PAGE] == 0 && map[4 * PAGE] == 'E', "with what was there");
  map[0] = 't';
  check(byte_at(source, 0) == 'A' && byte_at(target, 0) == 't', "a store reaches the target alone");
  char *other = map_direct(source, 0, 2 * PAGE);
  other[PAGE] = 's';
  check(byte_at(source, PAGE) == 's' && byte_at(target, PAGE) == 'B',
        "the source is its own again, without another copy");
  unmap(map, 5 * PAGE);
  unmap(other, 2 * PAGE);
  close(source);
  close(target);
}

static void leased_blocks_are_not_shared(void) {
  int fd = make_file(SOURCE, "WWWWHH");
  int source = reopen(SOURCE);
  int target = make_file(TARGET, "WWWWHH");
  char *map = map_direct(fd, 0, 5 * PAGE);
  map[PAGE] = 'm';
  struct stat before;
  struct stat after;
  fstat(target, &before);
  refuses("both are mapped now", 0, NULL, PAGE, READ_WRITE, DIRECT, fd, 0);
  errno = 0;
  check(clone_range(source, 0, target, 0, 4 * PAGE) == -1 && errno == ETXTBSY, "R12: a clone of the range");
  fstat(target, &after);
  check(before.st_blocks == after.st_blocks && before.st_mtim.tv_nsec == after.st_mtim.tv_nsec &&
            byte_at(target, PAGE) == 'B',
        "R14: and the target is as it was");
  errno = 0;
  check(clone_range(target, 0, source, PAGE, PAGE) == -1 && errno == ETXTBSY, "R12: a clone onto the range");
  errno = 0;
  check(clone_range(source, 0, source, 8 * PAGE, PAGE) == -1 && errno == ETXTBSY,
        "R12: a clone within the file");
  check(clone_range(target, 0, source, 5 * PAGE, PAGE) == 0 && shares(source, 5 * PAGE, target, 0),
        "R13: a clone beside the range");
  check(copy_range(source, 0, target, 0, 4 * PAGE) == 4 * (ssize_t)PAGE && byte_at(target, PAGE) == 'm' &&
            !shares(source, PAGE, target, PAGE),
        "R12: copy_file_range out of the range copies bytes");
  check(copy_range(target, 2 * PAGE, source, 0, PAGE) == (ssize_t)PAGE && map[0] == 'C',
        "R13: copy_file_range onto written pages of the range is a write in place");
  errno = 0;
  check(copy_range(target, 2 * PAGE, source, 4 * PAGE, PAGE) == -1 && errno == ETXTBSY,
        "R12: copy_file_range into a hole of the range");
  unmap(map, 5 * PAGE);
  check(clone_range(source, 0, target, 0, 4 * PAGE) == 0 && shares(source, 0, target, 0),
        "when the lease is gone a clone shares");
  close(fd);
  close(source);
  close(target);
}

static void breakable(void) {
  setenv("MAPDIRECT_LEASE", "breakable", 1);
  int source = make_file(SOURCE, "WW");
  int target = make_file(TARGET, "");
  char *map = map_direct(source, 0, 2 * PAGE);
  map[0] = 'b';
  check(clone_range(source, 0, target, 0, 0) == 0, "R15: a clone breaks a breakable lease");
  check(shares(source, 0, target, 0) && byte_at(target, 0) == 'b', "and shares what was stored");
  expect_sigbus("R10: the mapping has lost it", store_fault(map, 1), map);
  check(byte_at(source, 0) == 'b' && byte_at(target, 0) == 'b', "nothing was stored");
  unmap(map, 2 * PAGE);
  setenv("MAPDIRECT_LEASE", "seal", 1);
  close(source);
  close(target);
}

static void wrong_arguments(void) {
  int source = make_file(SOURCE, "WWW");
  int target = make_file(TARGET, "W");
  int reader = open(path_of(TARGET), O_RDONLY | O_CLOEXEC);
  int writer = open(path_of(SOURCE), O_WRONLY | O_CLOEXEC);
  int appender = open(path_of(TARGET), O_WRONLY | O_APPEND | O_CLOEXEC);
  struct {
    const char *sentence;
    int source;
    off_t source_offset;
    int target;
    off_t offset;
    off_t length;
    int error;
  } cases[] = {
      {"an offset in the source that is no block's", source, 1, target, 0, PAGE, EINVAL},
      {"an offset in the target that is no block's", source, 0, target, 7, PAGE, EINVAL},
      {"a length that is no block's, in the middle", source, 0, target, 0, PAGE + 1, EINVAL},
      {"more than the source has", source, 0, target, 0, 4 * PAGE, EINVAL},
      {"from behind the end of the source", source, 4 * PAGE, target, 0, PAGE, EINVAL},
      {"onto itself", source, 0, source, PAGE, 2 * PAGE, EINVAL},
      {"an offset beyond the largest file", source, 0, target, INT64_MAX - PAGE + 1, PAGE, EINVAL},
      {"a target that is open for reading", source, 0, reader, 0, PAGE, EBADF},
      {"a target that is open for appending", source, 0, appender, 0, PAGE, EBADF},
      {"a source that is open for writing alone", writer, 0, target, 0, PAGE, EBADF},
  };
  for (size_t index = 0; index < sizeof cases / sizeof *cases; index++) {
    errno = 0;
    int result = clone_range(cases[index].source, cases[index].source_offset, cases[index].target,
                             cases[index].offset, cases[index].length);
    report(result == -1 && errno == cases[index].error, cases[index].sentence, "expected %s, got %s",
           strerrorname_np(cases[index].error), strerrorname_np(result == 0 ? 0 : errno));
  }
  struct mapdirect_wire_clone clone = {.version = MAPDIRECT_WIRE_VERSION, .token = {1, 2, 3}};
  errno = 0;
  check(ioctl(target, (unsigned long)MAPDIRECT_IOCTL_CLONE, &clone) == -1 && errno == ESTALE,
        "a token that nobody was given");
  if (ioctl(writer, (unsigned long)MAPDIRECT_IOCTL_OFFER, &clone) == 0)
    give_up("no offer of what cannot be read");
  int closed = reopen(SOURCE);
  if (ioctl(closed, (unsigned long)MAPDIRECT_IOCTL_OFFER, &clone) != 0) give_up("an offer");
  close(closed);
  int error = 0;
  /* The release is on its way. */
  for (int tries = 0; tries < 300 && error != ESTALE; tries++) {
    error = ioctl(target, (unsigned long)MAPDIRECT_IOCTL_CLONE, &clone) == 0 ? 0 : errno;
    if (error != ESTALE) sleep_ms(10);
  }
  check(error == ESTALE, "a token of a file that was closed since");
  close(source);
  close(target);
  close(reader);
  close(writer);
  close(appender);
}

int main(int argc, char **argv) {
  begin(argc, argv);
  catch_faults();
  refused_at_map_time();
  leased_blocks_are_not_shared();
  breakable();
  wrong_arguments();
  return end();
}
