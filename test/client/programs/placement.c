/* Where mappings lie and how large they may be. R2 about the region itself. */
#include <sys/resource.h>

#include "tap.h"

enum { MANY_PIECES = 16500 };
#define HUGE (2ul << 20)
#define GIGABYTE (1ul << 30)

static int empty_file(const char *name, off_t bytes) {
  int fd = make_file(name, "");
  if (ftruncate(fd, bytes) != 0) give_up("a sparse file");
  return fd;
}

static void huge_pages(void) {
  int fd = empty_file("huge", 8 * (off_t)HUGE);
  if (mapdirect_prepare(fd, 0, 8 * (off_t)HUGE) != 0) give_up("a large file is prepared");
  char *map = map_direct(fd, 0, 8 * HUGE);
  bool congruent = false;
  struct mapdirect_lease_info info;
  for (size_t at = 0; at < 8 * HUGE; at += info.length) {
    if (mapdirect_query(map + at, &info) != 0) give_up("query");
    if (info.state == MAPDIRECT_WRITTEN && info.length >= HUGE) {
      congruent = ((uintptr_t)(map + at) - info.physical) % HUGE == 0;
      break;
    }
  }
  report(congruent, "the first large extent lies so that huge pages fit", "%p", (void *)map);
  memset(map, 7, 8 * HUGE);
  bool same = true;
  static char buffer[HUGE];
  for (size_t at = 0; at < 8 * HUGE; at += HUGE) {
    same &= pread(fd, buffer, HUGE, (off_t)at) == (ssize_t)HUGE && buffer[0] == 7 && buffer[HUGE - 1] == 7;
  }
  check(same, "16 MiB stored are 16 MiB in the file");
  unmap(map, 8 * HUGE);
  unlink(path_of("huge"));
  close(fd);
}

static void bounds(void) {
  catch_faults();
  int fd = empty_file("sparse", 128 * (off_t)GIGABYTE);
  char *map = map_direct(fd, 0, GIGABYTE);
  char value = 1;
  struct fault fault = load_fault(map + GIGABYTE - 1, &value);
  report(fault.signal == 0 && value == 0, "a hole of 1 GiB reads zeros up to its end", "signal %d",
         fault.signal);
  expect_sigbus("and refuses stores", store_fault(map + GIGABYTE - 1, 1), map + GIGABYTE - 1);
  unmap(map, GIGABYTE);
  refuses("holes of more than 64 GiB: ENOMEM", ENOMEM, NULL, 65 * GIGABYTE, READ_WRITE, DIRECT, fd, 0);
  close(fd);
  unlink(path_of("sparse"));

  fd = empty_file("pieces", MANY_PIECES * (off_t)PAGE);
  char page[PAGE];
  memset(page, 'P', PAGE);
  for (int index = 0; index < MANY_PIECES; index += 2) {
    if (pwrite(fd, page, PAGE, index * (off_t)PAGE) != (ssize_t)PAGE) give_up("a page of many");
  }
  refuses("more than 16384 pieces: ENOMEM", ENOMEM, NULL, MANY_PIECES * PAGE, READ_WRITE, DIRECT, fd, 0);
  map = map_direct(fd, 0, 16384 * PAGE);
  bool right = true;
  for (size_t index = 0; index < 16384; index++)
    right &= map[index * PAGE] == (index % 2 == 0 ? 'P' : 0);
  check(right, "16384 pieces are mapped");
  check(unmap(map + PAGE, 16382 * PAGE) == 0 && map[0] == 'P', "and unmapped but for the ends");
  report(punch("pieces", 8192 * PAGE) == ETXTBSY, "the lease covers them all the same", "no ETXTBSY");
  unmap(map, 16384 * PAGE);
  report(punch("pieces", 0) == 0, "and ends with the ends", "ETXTBSY");
  struct rlimit limit;
  struct rlimit tight = {.rlim_cur = 512ul << 20, .rlim_max = RLIM_INFINITY};
  getrlimit(RLIMIT_AS, &limit);
  tight.rlim_max = limit.rlim_max;
  if (setrlimit(RLIMIT_AS, &tight) == 0) {
    int wide = empty_file("wide", GIGABYTE);
    refuses("no address space left: ENOMEM", ENOMEM, NULL, GIGABYTE, READ_WRITE, DIRECT, wide, 0);
    setrlimit(RLIMIT_AS, &limit);
    report(punch("wide", 0) == 0, "a mapping that fails late leaves no lease", "ETXTBSY");
    close(wide);
  }
  close(fd);
  unlink(path_of("pieces"));
}

/* Put something else where the mount says that its region is. */
static void another_region(void) {
  char away[4200];
  snprintf(away, sizeof away, "%s.away", region_path);
  int fd = make_file("region", "WW");
  if (rename(region_path, away) != 0) {
    skip("R2: a region that is not the mount's", "it cannot be renamed");
    return;
  }
  refuses("a region that is not there: EACCES", EACCES, NULL, PAGE, READ_WRITE, DIRECT, fd, 0);
  int other = open(region_path, O_RDWR | O_CREAT | O_EXCL, 0600);
  if (ftruncate(other, 1 << 20) == 0)
    refuses("R2: another file in its place: EOPNOTSUPP", EOPNOTSUPP, NULL, PAGE, READ_WRITE, DIRECT, fd, 0);
  unlink(region_path);
  if (mkfifo(region_path, 0600) == 0)
    refuses("R2: a FIFO in its place: EOPNOTSUPP, without waiting", EOPNOTSUPP, NULL, PAGE, READ_WRITE,
            DIRECT, fd, 0);
  unlink(region_path);
  if (symlink(away, region_path) == 0) {
    char *map = map_any(NULL, PAGE, READ_WRITE, DIRECT, fd, 0);
    check(map != MAP_FAILED && map[0] == 'A', "the same region by another way is the same region");
    if (map != MAP_FAILED) unmap(map, PAGE);
  }
  unlink(region_path);
  if (rename(away, region_path) != 0) give_up("the region comes back");
  report(punch("region", 0) == 0, "no lease was left", "ETXTBSY");
}

int main(int argc, char **argv) {
  begin(argc, argv);
  huge_pages();
  bounds();
  another_region();
  return end();
}
