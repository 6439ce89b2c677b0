/* R12..R14: what is refused while a seal is held, what is not, and that a refusal changed nothing. */
#include "tap.h"

static const char *NAME = "conflicts";
static struct stat before;
static int fd;

static void remember(void) {
  fstat(fd, &before);
}

/* A conflicting operation: ETXTBSY, and nothing changed. */
static void refused(const char *sentence, int result) {
  int error = result == 0 ? 0 : errno;
  struct stat after;
  char page[3] = {0};
  fstat(fd, &after);
  bool same = after.st_size == before.st_size && after.st_blocks == before.st_blocks &&
              after.st_mtim.tv_sec == before.st_mtim.tv_sec &&
              after.st_mtim.tv_nsec == before.st_mtim.tv_nsec &&
              after.st_ctim.tv_nsec == before.st_ctim.tv_nsec && pread(fd, page, 1, 0) == 1 &&
              page[0] == 'A' && pread(fd, page + 1, 1, 2 * PAGE) == 1 && page[1] == 0 &&
              pread(fd, page + 2, 1, 7 * PAGE) == 1 && page[2] == 'H';
  report(error == ETXTBSY && same, sentence, "errno %s, %s", strerrorname_np(error),
         same ? "nothing changed" : "something changed");
}

static void allowed(const char *sentence, int result) {
  report(result == 0, sentence, "errno %s", strerrorname_np(errno));
}

static int open_truncating(void) {
  int other = open(path_of(NAME), O_RDWR | O_TRUNC);
  if (other < 0) return -1;
  close(other);
  return 0;
}

static int write_at(int where, off_t offset) {
  return pwrite(where, "changed", 7, offset) == 7 ? 0 : -1;
}

int main(int argc, char **argv) {
  begin(argc, argv);
  /* 0, 1 written, 2 hole, 3 unwritten, 4..7 written; leased: 0..5 */
  fd = make_file(NAME, "WWHUWWWW");
  int other = open(path_of(NAME), O_RDWR);
  char *map = map_direct(fd, 0, 6 * PAGE);
  remember();

  refused("R12: ftruncate into the range", ftruncate(other, PAGE));
  refused("R12: truncate to zero", truncate(path_of(NAME), 0));
  refused("R12: O_TRUNC", open_truncating());
  refused("R12: a write into a hole of the range", write_at(other, 2 * PAGE + 10));
  refused("R12: a write into an unwritten extent of the range", write_at(other, 3 * PAGE));
  refused("R12: a write that begins in a written page and runs into a hole", ({
            static char data[2 * PAGE];
            pwrite(other, data, sizeof data, PAGE) == (ssize_t)sizeof data ? 0 : -1;
          }));
  refused("R12: fallocate of a hole", fallocate(other, 0, 2 * PAGE, PAGE));
  refused("R12: fallocate PUNCH_HOLE", fallocate(other, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE));
  refused("R12: fallocate ZERO_RANGE", fallocate(other, FALLOC_FL_ZERO_RANGE, PAGE, PAGE));
  /* FUSE in the kernel knows neither and answers by itself. */
  check(fallocate(other, FALLOC_FL_COLLAPSE_RANGE, 0, PAGE) == -1 &&
            (errno == EOPNOTSUPP || errno == ETXTBSY),
        "R12: fallocate COLLAPSE_RANGE is refused");
  check(fallocate(other, FALLOC_FL_INSERT_RANGE, 0, PAGE) == -1 && (errno == EOPNOTSUPP || errno == ETXTBSY),
        "R12: fallocate INSERT_RANGE is refused");
  refused("R14: the holder's own ftruncate", ftruncate(fd, 0));
  refused("R14: the holder's own punch",
          fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4 * PAGE, PAGE));
  refused("R14: the holder's own write into its hole", write_at(fd, 2 * PAGE));

  char buffer[16];
  allowed("R13: reads", pread(other, buffer, sizeof buffer, 0) == (ssize_t)sizeof buffer ? 0 : -1);
  allowed("R13: overwriting in place", write_at(other, 100));
  check(memcmp(map + 100, "changed", 7) == 0, "R24: and the mapping sees it");
  allowed("R13: fsync", fsync(other));
  allowed("R13: chmod", chmod(path_of(NAME), 0640));
  allowed("R13: chown", geteuid() == 0 ? chown(path_of(NAME), 0, 0) : 0);
  struct timespec times[2] = {{.tv_sec = 1000}, {.tv_sec = 2000}};
  allowed("R13: utimens", utimensat(AT_FDCWD, path_of(NAME), times, 0));
  allowed("R13: a write beyond the range that extends the file", write_at(other, 8 * PAGE + 5));
  allowed("R13: a truncate beyond the range", ftruncate(other, 7 * PAGE));
  allowed("R13: a truncate within the block after the range", ftruncate(other, 6 * PAGE + 100));
  allowed("R13: a punch beyond the range",
          fallocate(other, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 6 * PAGE, PAGE));
  char from[4096];
  char to[4096];
  snprintf(from, sizeof from, "%s", path_of(NAME));
  snprintf(to, sizeof to, "%s", path_of("conflicts-renamed"));
  allowed("R13: rename", rename(from, to));
  allowed("R13: unlink", unlink(to));
  check(map[PAGE] == 'B', "R13: an unlinked file stays in the mapping");
  map[PAGE] = 'Q';
  char byte = 0;
  check(pread(fd, &byte, 1, PAGE) == 1 && byte == 'Q', "R13: and in its descriptors");
  unmap(map, 6 * PAGE);

  int again = make_file(NAME, "WWWW");
  map = map_direct(again, 0, 4 * PAGE);
  check(ftruncate(again, PAGE) == -1 && errno == ETXTBSY, "a leased file cannot be cut");
  check(unmap(map, 4 * PAGE) == 0 && ftruncate(again, PAGE) == 0, "R21: unmapped, it can, at once");
  for (int round = 0; round < 200; round++) {
    if (ftruncate(again, 0) != 0 || pwrite(again, "x", 1, 0) != 1) give_up("a file is rewritten");
    map = map_direct(again, 0, PAGE);
    unmap(map, PAGE);
  }
  check(ftruncate(again, 0) == 0, "R21: two hundred times in a row");

  if (by_library) {
    int whole = make_file("whole", "WWWW");
    map = mapdirect_map(NULL, PAGE, READ_WRITE, DIRECT, whole, 0, MAPDIRECT_SEAL | MAPDIRECT_WHOLE_FILE);
    check(map != MAP_FAILED, "R13: a lease may extend to the whole file");
    check(ftruncate(whole, 3 * PAGE) == -1 && errno == ETXTBSY,
          "R13: then a truncate beyond the range is refused");
    check(ftruncate(whole, 8 * PAGE) == -1 && errno == ETXTBSY, "R13: and an extension, too");
    unmap(map, PAGE);
  }
  return end();
}
