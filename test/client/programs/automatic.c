/*
 * MAPDIRECT=auto: ordinary shared mappings are direct ones, and behave as ordinary ones whatever happens. Needs the preload
 * library and that environment; there is no other door.
 */
#include "tap.h"

static char page[PAGE];

static struct mapdirect_stats stats(void) {
  struct mapdirect_stats now;
  mapdirect_stats(&now);
  return now;
}

static uint64_t ordinary(void) {
  struct mapdirect_stats now = stats();
  return now.past_end + now.busy + now.no_space + now.no_access + now.unsupported + now.other;
}

static bool is_direct(const void *at) {
  struct mapdirect_lease_info info;
  int errno_before = errno;
  bool direct = mapdirect_query(at, &info) == 0 && info.state == MAPDIRECT_WRITTEN;
  errno = errno_before;
  return direct;
}

static char *map_shared(int fd, size_t length) {
  char *map = mmap(NULL, length, READ_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) give_up("an ordinary mapping");
  return map;
}

/* As a program without the library. */
static char *map_by_kernel(int fd, size_t length, int prot) {
  long at = syscall(SYS_mmap, NULL, length, prot, MAP_SHARED, fd, 0);
  if (at == -1) give_up("a mapping by the kernel");
  return (char *)at;
}

static void which(void) {
  int fd = make_file("which", "WHUW");
  struct stat status;
  char *map = map_shared(fd, 4 * PAGE);
  check(is_direct(map) && is_direct(map + PAGE) && stats().automatic == 1,
        "a shared writable mapping is direct");
  check(map[0] == 'A' && map[PAGE] == 0 && map[2 * PAGE] == 0 && map[3 * PAGE] == 'D',
        "with the file's content");
  memcpy(map + PAGE, "hole", 4);
  struct mapdirect_lease_info info;
  char seen[4] = "";
  int region = open(region_path, O_RDWR);
  check(mapdirect_query(map + PAGE, &info) == 0 && region_read(region, seen, 4, info.physical) &&
            memcmp(seen, "hole", 4) == 0,
        "a store is in the region at once, in what was a hole, too");
  close(region);
  check(fstat(fd, &status) == 0 && status.st_size == (off_t)(4 * PAGE), "the size is what it was");
  check(msync(map, 4 * PAGE, MS_SYNC) == 0 && msync(map, PAGE, MS_ASYNC) == 0, "msync makes it durable");
  check(munmap(map, 4 * PAGE) == 0 && punch("which", 0) == 0, "munmap ends the lease");

  map = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
  check(map != MAP_FAILED && !is_direct(map), "a read-only mapping is left alone");
  munmap(map, PAGE);
  map = mmap(NULL, PAGE, READ_WRITE, MAP_PRIVATE, fd, 0);
  check(map != MAP_FAILED && !is_direct(map), "a private one, too");
  munmap(map, PAGE);
  int memory = memfd_create("elsewhere", 0);
  if (ftruncate(memory, (off_t)PAGE) != 0) give_up("ftruncate");
  map = map_shared(memory, PAGE);
  check(!is_direct(map), "a mapping of another file, too");
  munmap(map, PAGE);
  close(memory);
  errno = 0;
  check(mmap(NULL, PAGE, READ_WRITE, MAP_SHARED, -1, 0) == MAP_FAILED && errno == EBADF,
        "errors are the kernel's");
  int reader = open(path_of("which"), O_RDONLY);
  check(mmap(NULL, PAGE, READ_WRITE, MAP_SHARED, reader, 0) == MAP_FAILED && errno == EACCES,
        "with their numbers");
  close(reader);
  check(ordinary() == 0, "and nothing of this is counted as ours");

  uint64_t past_end = stats().past_end;
  map = map_shared(fd, 6 * PAGE);
  check(!is_direct(map) && stats().past_end == past_end + 1,
        "past the end of the file: ordinary, and counted");
  check(ftruncate(fd, (off_t)(6 * PAGE)) == 0, "the file grows");
  map[5 * PAGE] = 'n';
  check(pread(fd, seen, 1, (off_t)(5 * PAGE)) == 1 && seen[0] == 'n', "and the mapping reaches the new part");
  munmap(map, 6 * PAGE);

  errno = 0;
  map = mmap(NULL, PAGE, READ_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0);
  if (map != MAP_FAILED) {
    check(is_direct(map) && mapdirect_query(map, &info) == 0 && info.cacheline == 1,
          "R8: MAP_SYNC is honoured where a CPU flush is enough");
    munmap(map, PAGE);
  } else {
    check(errno == EOPNOTSUPP, "R8: MAP_SYNC is refused where a CPU flush is not enough");
  }
  close(fd);
}

/* The program's own calls that would conflict with its lease. */
static void own_calls(void) {
  int fd = make_file("own", "WWWWWWWW");
  char *map = map_shared(fd, 8 * PAGE);
  strcpy(map, "kept");
  check(is_direct(map) && ftruncate(fd, (off_t)(4 * PAGE)) == 0,
        "the program may truncate what it has mapped");
  check(!is_direct(map) && strcmp(map, "kept") == 0,
        "then the mapping is an ordinary one, with what was stored");
  catch_faults();
  expect_sigbus("and past the new end there is nothing", store_fault(map + 5 * PAGE, 'x'), map + 5 * PAGE);
  if (ftruncate(fd, (off_t)(8 * PAGE)) != 0) give_up("ftruncate");
  check(store_fault(map + 5 * PAGE, 'x').signal == 0 && map[5 * PAGE + 1] == 0, "until the file grows again");
  char seen[8];
  check(pread(fd, seen, 1, (off_t)(5 * PAGE)) == 1, "the file can be read");
  check(seen[0] == 'x', "and has what was stored");
  munmap(map, 8 * PAGE);
  sleep_ms(1100); /* new leases are refused for a second */

  map = map_shared(fd, 4 * PAGE);
  check(is_direct(map), "a new mapping is direct again");
  map[0] = 'g';
  char *larger = mremap(map, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
  check(larger != MAP_FAILED && larger[0] == 'g' && larger[5 * PAGE] == 'x', "mremap may let it grow");
  if (larger != MAP_FAILED) {
    larger[7 * PAGE] = 'h';
    check(pread(fd, seen, 1, (off_t)(7 * PAGE)) == 1 && seen[0] == 'h', "as far as the file goes");
    munmap(larger, 8 * PAGE);
  }
  map = map_shared(fd, 4 * PAGE);
  check(is_direct(map), "a lease that the program gave up itself is no reason to refuse another");
  char *target = mmap(NULL, 4 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char *moved = mremap(map, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target);
  check(moved == target && is_direct(moved), "one that moves stays direct");
  moved[2 * PAGE] = 'm';
  check(punch("own", 0) == 0 && moved[0] == 0 && moved[2 * PAGE] == 'm' && !is_direct(moved),
        "and when somebody punches a hole, it is an ordinary one at its new place");
  munmap(moved, 4 * PAGE);
  sleep_ms(1100);

  map = map_shared(fd, 8 * PAGE);
  munmap(map + 2 * PAGE, 2 * PAGE);
  mprotect(map + 6 * PAGE, PAGE, PROT_READ);
  check(is_direct(map) && is_direct(map + 7 * PAGE) && punch("own", 0) == 0, "a mapping in pieces");
  check(map[0] == 0 && map[5 * PAGE] == 'x' && map[7 * PAGE] == 'h' && !is_direct(map + 7 * PAGE),
        "becomes ordinary in all of them");
  char value;
  check(load_fault(map + 2 * PAGE, &value).signal == SIGSEGV, "and what was unmapped stays so");
  check(load_fault(map + 6 * PAGE, &value).signal == 0 && store_fault(map + 6 * PAGE, 'x').signal == SIGSEGV,
        "R22: and what was read-only");
  munmap(map, 8 * PAGE);
  sleep_ms(1100);

  map = map_shared(fd, 8 * PAGE);
  char *over = mmap(map + PAGE, PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  check(over == map + PAGE && over[0] == 0 && is_direct(map) && !is_direct(over),
        "something else mapped on top");
  over[0] = 'o';
  check(punch("own", 0) == 0 && map[0] == 0 && over[0] == 'o',
        "is left alone when the rest becomes ordinary");
  munmap(map, 8 * PAGE);
  sleep_ms(1100);

  map = map_shared(fd, 2 * PAGE);
  char *fixed = mmap(map, 2 * PAGE, READ_WRITE, MAP_SHARED | MAP_FIXED, fd, (off_t)(4 * PAGE));
  check(fixed == map && is_direct(map) && map[PAGE] == 'x', "MAP_FIXED over a direct mapping: direct again");
  check(madvise(map, PAGE, MADV_REMOVE) == 0 && map[0] == 0, "madvise(MADV_REMOVE) punches");
  munmap(map, 2 * PAGE);
  close(fd);
}

static volatile char *hammered;
static _Atomic bool hammer_on;
static _Atomic unsigned hammer_rounds;

/* Counts in a page of its own; if a store is lost or a load is stale, the two differ. */
static void *hammer(void *unused) {
  (void)unused;
  volatile unsigned *counter = (volatile unsigned *)(uintptr_t)hammered;
  unsigned expected = *counter;
  while (atomic_load(&hammer_on)) {
    if (*counter != expected) return (void *)1;
    *counter = ++expected;
    atomic_fetch_add(&hammer_rounds, 1);
  }
  return NULL;
}

/* Somebody who knows nothing maps the same file. */
static void others(void) {
  bool good = true;
  bool broken = true;
  int fd = make_file("others", "WWWW");
  for (int round = 0; round < 3; round++) {
    int go[2];
    if (pipe(go) != 0) give_up("a pipe");
    char byte = 0;
    /* Before the mapping is made: the last time, after, so that the other has a copy of it. */
    pid_t child = round == 2 ? -1 : fork();
    char *map = child == 0 ? NULL : map_shared(fd, 4 * PAGE);
    if (child != 0) good &= is_direct(map);
    if (child == 0) goto ordinary;
    hammered = map + 2 * PAGE;
    atomic_store(&hammer_on, true);
    pthread_t thread;
    pthread_create(&thread, NULL, hammer, NULL);
    while (atomic_load(&hammer_rounds) < 1000u * (unsigned)(round + 1))
      sched_yield();
    strcpy(map, "from the direct one");
    if (write(go[1], "x", 1) != 1) give_up("the other is told");
    if (round == 2) child = fork();
    if (child == 0) {
    ordinary:
      if (read(go[0], &byte, 1) != 1) _exit(2);
      int mine = open(path_of("others"), round == 1 ? O_RDONLY : O_RDWR);
      char *plain = map_by_kernel(mine, 4 * PAGE, round == 1 ? PROT_READ : READ_WRITE);
      bool same = strcmp(plain, "from the direct one") == 0;
      if (round != 1) strcpy(plain + PAGE, "from the ordinary one");
      _exit(same ? 0 : 1);
    }
    good &= wait_for(child) == 0;
    unsigned before = atomic_load(&hammer_rounds);
    for (int tries = 0; tries < 2000 && atomic_load(&hammer_rounds) < before + 1000; tries++)
      sleep_ms(1);
    broken &= !is_direct(map);
    if (round != 1) good &= strcmp(map + PAGE, "from the ordinary one") == 0;
    atomic_store(&hammer_on, false);
    void *lost;
    pthread_join(thread, &lost);
    good &= lost == NULL && atomic_load(&hammer_rounds) >= before + 1000;
    unsigned value;
    good &= pread(fd, &value, sizeof value, (off_t)(2 * PAGE)) == (ssize_t)sizeof value &&
            value == *(volatile unsigned *)(uintptr_t)hammered;
    munmap(map, 4 * PAGE);
    close(go[0]);
    close(go[1]);
    sleep_ms(1100);
    atomic_store(&hammer_rounds, 1000u * (unsigned)(round + 1));
  }
  report(
      good,
      "R24: an ordinary mapping of the range and a direct one that becomes ordinary see each other's stores",
      "one was lost");
  report(broken, "because the ordinary one breaks the lease", "still direct");
  check(stats().revoked >= 3, "which is counted");
  close(fd);
}

/* A child's copy is as good as the parent's, before and after. */
static void forked(void) {
  int fd = make_file("forked", "WWWW");
  char *map = map_shared(fd, 4 * PAGE);
  int go[2];
  int done[2];
  if (pipe(go) != 0 || pipe(done) != 0) give_up("pipes");
  pid_t child = fork();
  if (child == 0) {
    char byte;
    bool good = is_direct(map) && stats().automatic == 0;
    map[PAGE] = 'c';
    if (write(done[1], "x", 1) != 1 || read(go[0], &byte, 1) != 1) _exit(2);
    good &= map[0] == 0 && map[3 * PAGE] == 'p';
    map[2 * PAGE] = 'd';
    _exit(good ? 0 : 1);
  }
  char byte;
  if (read(done[0], &byte, 1) != 1) give_up("the child answers");
  map[3 * PAGE] = 'p';
  check(is_direct(map) && map[PAGE] == 'c', "a forked child's mapping is the same one");
  check(punch("forked", 0) == 0, "somebody changes the block map");
  if (write(go[1], "x", 1) != 1) give_up("the child is told");
  check(wait_for(child) == 0 && map[2 * PAGE] == 'd' && map[0] == 0, "and both go on with ordinary ones");
  munmap(map, 4 * PAGE);
  close(fd);
}

/*
 * With no room for one more mapping the ordinary one cannot be put in place. What the library does then it does by
 * descriptors of its own, whose numbers mean other files to the program.
 */
static void crowded(void) {
  enum { NUMBERS = 64, ROOM = 1 << 20 };
  int low = make_file("crowded", "WWWW");
  int fd = fcntl(low, F_DUPFD_CLOEXEC, 2 * NUMBERS);
  if (fd < 0) give_up("a high number");
  char *map = map_shared(fd, 4 * PAGE);
  check(is_direct(map), "a mapping is direct");
  int stranger = memfd_create("stranger", MFD_CLOEXEC);
  if (stranger < 0 || ftruncate(stranger, (off_t)(4 * PAGE)) != 0) give_up("a memfd");
  memset(page, 'S', PAGE);
  for (int index = 0; index < 4; index++)
    if (pwrite(stranger, page, PAGE, (off_t)(index * (off_t)PAGE)) != (ssize_t)PAGE) give_up("pwrite");
  for (int number = STDERR_FILENO + 1; number < NUMBERS; number++)
    if (number != stranger && dup2(stranger, number) != number) give_up("dup2");
  static char *taken[ROOM];
  size_t count = 0;
  /* Neighbours of different rights do not become one. */
  while (count < ROOM &&
         (taken[count] = mmap(NULL, PAGE, count % 2 == 0 ? PROT_READ : PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) != MAP_FAILED)
    count++;
  if (count == ROOM) skip("no room for one more mapping", "vm.max_map_count is too large");
  /* With a little room one way is barred, and another is not. */
  for (int room = 0; room < 4 && count < ROOM; room++) {
    errno = 0;
    int result = madvise(map, PAGE, MADV_REMOVE);
    int error = errno;
    char value = 0;
    int signal = load_fault(map + PAGE, &value).signal;
    report(result == 0 || (error == ENOMEM && signal == 0 && value == 'B' && is_direct(map)),
           "where the ordinary mapping cannot be put in place, madvise(MADV_REMOVE) is ENOMEM and changes "
           "nothing",
           "%d, %s, signal %d, reads %c", result, strerrorname_np(error), signal, value);
    store_fault(map + 2 * PAGE, 'x');
    bool harmed = false;
    for (int index = 0; index < 4; index++)
      harmed |= pread(stranger, &value, 1, (off_t)(index * (off_t)PAGE)) != 1 || value != 'S';
    report(!harmed, "and stores do not reach another file of the program", "one did, with room for %d", room);
    munmap(taken[--count], PAGE);
  }
  while (count > 0)
    munmap(taken[--count], PAGE);
  check(madvise(map, PAGE, MADV_REMOVE) == 0 && map[0] == 0 && map[2 * PAGE] == 'x', "later it succeeds");
  close_range(STDERR_FILENO + 1, NUMBERS, 0);
  munmap(map, 4 * PAGE);
  close(fd);
}

static void sealed(void) {
  int fd = make_file("sealed", "WHWW");
  char *seal = mmap(NULL, 4 * PAGE, READ_WRITE, DIRECT, fd, 0);
  if (seal == MAP_FAILED) give_up("a seal");
  uint64_t busy = stats().busy;
  char *map = map_shared(fd, 4 * PAGE);
  check(!is_direct(map) && stats().busy == busy + 1, "a hole that a seal pins: ordinary, and counted");
  munmap(map, 4 * PAGE);
  munmap(seal, 4 * PAGE);
  close(fd);
}

/* What a vfork child counts is its parent's, which has not ended. */
static int vfork_and_end(void) {
  int fd = open(path_of("counted"), O_RDWR);
  map_shared(fd, PAGE);
  pid_t child = vfork();
  if (child == 0) _exit(0);
  return wait_for(child);
}

static void counted(const char *self) {
  close(make_file("counted", "W"));
  char path[] = "/tmp/mapdirect-stats-XXXXXX";
  close(mkstemp(path));
  pid_t child = fork();
  if (child == 0) {
    setenv("MAPDIRECT_STATS", path, 1);
    execl(self, self, directory, region_path, "preload", "vfork", NULL);
    _exit(99);
  }
  int status = wait_for(child);
  char text[2048] = "";
  int file = open(path, O_RDONLY);
  ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  unlink(path);
  char wanted[32];
  snprintf(wanted, sizeof wanted, " pid=%d ", child);
  const char *newline = strchr(text, '\n');
  report(status == 0 && length > 0 && strstr(text, wanted) != NULL && newline != NULL && newline[1] == 0,
         "a process writes its counters itself, and its vfork child does not", "status %#x: %s", status,
         text);
}

int main(int argc, char **argv) {
  begin(argc, argv);
  if (argc > 4) return vfork_and_end();
  const char *mode = getenv("MAPDIRECT");
  if (by_library || mode == NULL || strcmp(mode, "auto") != 0) {
    skip("MAPDIRECT=auto", "only under the preload library, with that in the environment");
    return 0;
  }
  which();
  own_calls();
  others();
  forked();
  counted(argv[0]);
  crowded();
  sealed();
  return end();
}
