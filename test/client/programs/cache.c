/*
 * R24 by every call: what a direct mapping stores is seen by each way to read a file, on a descriptor from before the
 * lease and from after it, here and in another process; and the other way round. And without any lease: descriptors that
 * read through the page cache see what is written past it.
 */
#include "ring.h"
#include "tap.h"

#include <sys/sendfile.h>
#include <sys/uio.h>

#define PAGES 8ul
#define ROUNDS 40
/* Those that ask nobody may be a little late (docs/LEASES.md): looks, microseconds apart. A busy machine takes its time. */
#define LATE_US 20000
#define LATE_TRIES 100

static void nap(long microseconds) {
  struct timespec time = {microseconds / 1000000, (microseconds % 1000000) * 1000};
  nanosleep(&time, NULL);
}

/* ---- ways to read one byte: the byte, or -1 */

struct descriptors {
  int plain;    /* O_RDWR, or O_RDONLY */
  int direct;   /* O_RDONLY | O_DIRECT; -1 where there is none */
  int copied;   /* another file of this mount, empty at first */
  char *shared; /* ordinary mappings of the whole file */
  char *private;
};

static struct descriptors open_all(const char *name, int mode) {
  struct descriptors all;
  char copy[64];
  all.plain = open(path_of(name), mode | O_CLOEXEC);
  all.direct = open(path_of(name), O_RDONLY | O_DIRECT | O_CLOEXEC);
  snprintf(copy, sizeof copy, "%s.copy.%d.%d", name, (int)getpid(), all.plain);
  all.copied = open(path_of(copy), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (all.plain < 0 || all.copied < 0) give_up("files are opened");
  unlink(path_of(copy));
  /* On one that cannot write: an ordinary mapping that could is refused beside a lease (SIGBUS). */
  int readable = open(path_of(name), O_RDONLY | O_CLOEXEC);
  all.shared = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_SHARED, readable, 0);
  all.private = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_PRIVATE, readable, 0);
  close(readable);
  if (all.shared == MAP_FAILED || all.private == MAP_FAILED) give_up("ordinary mappings are made");
  return all;
}

static int by_read(const struct descriptors *all, off_t at) {
  unsigned char byte;
  return lseek(all->plain, at, SEEK_SET) == at && read(all->plain, &byte, 1) == 1 ? byte : -1;
}
static int by_pread(const struct descriptors *all, off_t at) {
  unsigned char byte;
  return pread(all->plain, &byte, 1, at) == 1 ? byte : -1;
}
static int by_readv(const struct descriptors *all, off_t at) {
  unsigned char bytes[2];
  struct iovec parts[2] = {{&bytes[0], 1}, {&bytes[1], 1}};
  return lseek(all->plain, at, SEEK_SET) == at && readv(all->plain, parts, 2) == 2 ? bytes[0] : -1;
}
static int by_preadv2(const struct descriptors *all, off_t at) {
  unsigned char byte;
  struct iovec part = {&byte, 1};
  ssize_t got = preadv2(all->plain, &part, 1, at, RWF_NOWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EOPNOTSUPP)) got = preadv2(all->plain, &part, 1, at, 0);
  return got == 1 ? byte : -1;
}
static int by_ring(const struct descriptors *all, off_t at) {
  unsigned char byte;
  return ring_transfer(IORING_OP_READ, all->plain, &byte, 1, at) == 1 ? byte : -1;
}
static int by_copy(const struct descriptors *all, off_t at) {
  off_t from = at;
  off_t to = 0;
  unsigned char byte;
  if (ftruncate(all->copied, 0) != 0) return -1;
  if (copy_file_range(all->plain, &from, all->copied, &to, 1, 0) != 1) return -1;
  return pread(all->copied, &byte, 1, 0) == 1 ? byte : -1;
}
static int by_direct_io(const struct descriptors *all, off_t at) {
  static _Alignas(4096) unsigned char page[PAGE];
  off_t first = at / (off_t)PAGE * (off_t)PAGE;
  return pread(all->direct, page, PAGE, first) == (ssize_t)PAGE ? page[at - first] : -1;
}
static int by_sendfile(const struct descriptors *all, off_t at) {
  int ends[2];
  unsigned char byte;
  off_t from = at;
  if (pipe(ends) != 0) return -1;
  bool good = sendfile(ends[1], all->plain, &from, 1) == 1 && read(ends[0], &byte, 1) == 1;
  close(ends[0]);
  close(ends[1]);
  return good ? byte : -1;
}
static int by_splice(const struct descriptors *all, off_t at) {
  int ends[2];
  unsigned char byte;
  off_t from = at;
  if (pipe(ends) != 0) return -1;
  bool good = splice(all->plain, &from, ends[1], NULL, 1, 0) == 1 && read(ends[0], &byte, 1) == 1;
  close(ends[0]);
  close(ends[1]);
  return good ? byte : -1;
}
static int by_shared(const struct descriptors *all, off_t at) {
  return ((volatile unsigned char *)all->shared)[at];
}
static int by_private(const struct descriptors *all, off_t at) {
  return ((volatile unsigned char *)all->private)[at];
}

struct way {
  const char *name;
  int (*look)(const struct descriptors *, off_t);
  bool late; /* may be a moment late on a descriptor from before the lease */
};
static const struct way WAYS[] = {
    {"read", by_read, false},          {"pread", by_pread, false},        {"readv", by_readv, false},
    {"preadv2", by_preadv2, false},    {"io_uring", by_ring, false},      {"copy_file_range", by_copy, false},
    {"O_DIRECT", by_direct_io, false}, {"sendfile", by_sendfile, true},   {"splice", by_splice, true},
    {"MAP_SHARED", by_shared, true},   {"MAP_PRIVATE", by_private, true},
};
#define WAYS_COUNT (sizeof WAYS / sizeof *WAYS)

static bool can(const struct way *way, const struct descriptors *all) {
  if (way->look == by_ring) return ring_fd >= 0;
  if (way->look == by_direct_io) return all->direct >= 0;
  return true;
}

/* How often `way` saw another byte than the one that was stored just before. */
static int stale_looks(const struct way *way, const struct descriptors *all, char *map) {
  int stale = 0;
  for (int round = 0; round < (way->late ? 5 : ROUNDS); round++) {
    off_t at = (off_t)((size_t)(round % (int)PAGES) * PAGE + 17);
    unsigned char stored = (unsigned char)(round * 7 + 1);
    /* Look first, so that there is something to be stale. */
    (void)way->look(all, at);
    ((volatile unsigned char *)map)[at] = stored;
    int seen = -1;
    for (int tries = 0; tries < (way->late ? LATE_TRIES : 1) && seen != stored; tries++) {
      if (way->late) nap(LATE_US);
      seen = way->look(all, at);
    }
    stale += seen != stored;
  }
  return stale;
}

static void look_everywhere(const struct descriptors *all, char *map, const char *which) {
  for (size_t index = 0; index < WAYS_COUNT; index++) {
    const struct way *way = &WAYS[index];
    char sentence[200];
    snprintf(sentence, sizeof sentence, "R24: %s on %s sees what was stored before", way->name, which);
    if (!can(way, all)) {
      skip(sentence, "not possible here");
      continue;
    }
    int stale = stale_looks(way, all, map);
    report(stale == 0, sentence, "%d stale looks", stale);
  }
}

/* ---- ways to write one byte */

static bool put_write(int fd, off_t at, unsigned char byte) {
  return lseek(fd, at, SEEK_SET) == at && write(fd, &byte, 1) == 1;
}
static bool put_pwrite(int fd, off_t at, unsigned char byte) {
  return pwrite(fd, &byte, 1, at) == 1;
}
static bool put_pwritev2(int fd, off_t at, unsigned char byte) {
  struct iovec part = {&byte, 1};
  return pwritev2(fd, &part, 1, at, 0) == 1;
}
static bool put_ring(int fd, off_t at, unsigned char byte) {
  return ring_fd < 0 || ring_transfer(IORING_OP_WRITE, fd, &byte, 1, at) == 1;
}
static bool put_copy(int fd, off_t at, unsigned char byte) {
  static int source = -1;
  off_t from = 5;
  if (source < 0) source = open(path_of("source"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  return pwrite(source, &byte, 1, 5) == 1 && copy_file_range(source, &from, fd, &at, 1, 0) == 1;
}

struct putting {
  const char *name;
  bool (*put)(int, off_t, unsigned char);
};
static const struct putting PUTTINGS[] = {
    {"write", put_write},   {"pwrite", put_pwrite},        {"pwritev2", put_pwritev2},
    {"io_uring", put_ring}, {"copy_file_range", put_copy},
};

static void put_everywhere(int fd, const char *map, const struct descriptors *all, const char *which) {
  for (size_t index = 0; index < sizeof PUTTINGS / sizeof *PUTTINGS; index++) {
    char sentence[200];
    int wrong = 0;
    for (int round = 0; round < ROUNDS; round++) {
      off_t at = (off_t)((size_t)(round % (int)PAGES) * PAGE + 33);
      unsigned char byte = (unsigned char)(round * 5 + 2);
      bool good = PUTTINGS[index].put(fd, at, byte);
      wrong += !good || ((const volatile unsigned char *)map)[at] != byte || by_pread(all, at) != byte;
    }
    snprintf(sentence, sizeof sentence, "R24: the mapping sees what %s on %s has written",
             PUTTINGS[index].name, which);
    report(wrong == 0, sentence, "%d wrong", wrong);
  }
}

/* ---- without a lease: readers through the page cache, a writer past it */

static _Atomic unsigned published;
static _Atomic bool over;
static _Atomic int outdated;
static _Atomic long looks;

static void *reads_on(void *argument) {
  int fd = open(path_of("race"), O_RDONLY | O_CLOEXEC);
  unsigned seed = (unsigned)(uintptr_t)argument;
  while (!atomic_load(&over)) {
    unsigned least = atomic_load(&published);
    unsigned found = 0;
    if (pread(fd, &found, sizeof found, 64) != (ssize_t)sizeof found) break;
    if (found < least) atomic_fetch_add(&outdated, 1);
    atomic_fetch_add(&looks, 1);
    seed = seed * 1103515245 + 12345;
    /* So that there is something to fetch while the writer writes. */
    if (seed % 4 == 0) posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  }
  close(fd);
  return NULL;
}

static void race(int flags, const char *how) {
  int fd = make_file("race", "WW");
  unsigned zero = 0;
  if (pwrite(fd, &zero, sizeof zero, 64) != (ssize_t)sizeof zero) give_up("a number is written");
  close(fd);
  atomic_store(&published, 0);
  atomic_store(&over, false);
  atomic_store(&outdated, 0);
  atomic_store(&looks, 0);
  pthread_t readers[3];
  for (size_t index = 0; index < 3; index++)
    pthread_create(&readers[index], NULL, reads_on, (void *)(index + 1));
  int writer = open(path_of("race"), flags | O_CLOEXEC);
  int reader = open(path_of("race"), O_RDONLY | O_CLOEXEC);
  bool good = true;
  for (unsigned round = 1; round <= 2000; round++) {
    unsigned found = 0;
    good &= pwrite(writer, &round, sizeof round, 64) == (ssize_t)sizeof round;
    atomic_store(&published, round);
    good &= pread(reader, &found, sizeof found, 64) == (ssize_t)sizeof found && found == round;
  }
  atomic_store(&over, true);
  for (size_t index = 0; index < 3; index++)
    pthread_join(readers[index], NULL);
  close(writer);
  close(reader);
  char sentence[200];
  snprintf(sentence, sizeof sentence, "four readers see each write through %s, at once", how);
  report(good && atomic_load(&outdated) == 0, sentence, "%d of %ld looks outdated, own %d",
         atomic_load(&outdated), atomic_load(&looks), good);
}

int main(int argc, char **argv) {
  begin(argc, argv);
  catch_faults();
  bool ring = open_ring();
  (void)ring;
  const char *kinds[] = {"seal", "breakable"};
  for (size_t kind = 0; kind < 2; kind++) {
    setenv("MAPDIRECT_LEASE", kinds[kind], 1);
    int fd = make_file("cached", "WWWWWWWW");
    struct descriptors before = open_all("cached", O_RDONLY);
    struct descriptors writable = open_all("cached", O_RDWR);
    /* Into the cache with it, whatever there is. */
    for (size_t index = 0; index < WAYS_COUNT; index++)
      for (off_t page = 0; page < (off_t)PAGES; page++)
        if (can(&WAYS[index], &before)) (void)WAYS[index].look(&before, page * (off_t)PAGE);
    char *map = map_direct(fd, 0, PAGES * PAGE);
    look_everywhere(&before, map, "a descriptor from before");
    look_everywhere(&writable, map, "a writable descriptor from before");
    put_everywhere(writable.plain, map, &before, "a descriptor from before");
    struct descriptors after = open_all("cached", O_RDONLY);
    look_everywhere(&after, map, "a descriptor from after");
    int late = open(path_of("cached"), O_RDWR | O_CLOEXEC);
    put_everywhere(late, map, &after, "a descriptor from after");
    close(late);
    pid_t child = fork();
    if (child == 0) {
      /* The parent's descriptors, and its own; the mapping is inherited. */
      for (size_t index = 0; index < WAYS_COUNT; index++) {
        if (WAYS[index].look == by_ring || !can(&WAYS[index], &before)) continue;
        if (stale_looks(&WAYS[index], &before, map) != 0) _exit((int)index + 1);
      }
      _exit(0);
    }
    int status = wait_for(child);
    report(status == 0, "R24: and in another process", "%s is stale",
           status > 0 ? WAYS[status - 1].name : "?");
    /* The last stores before the end, looked at through what the cache may have kept. */
    int stale = 0;
    unmap(map, PAGES * PAGE);
    for (int round = 0; round < 20; round++) {
      char *again = map_direct(fd, 0, PAGES * PAGE);
      (void)by_pread(&before, 99);
      ((volatile unsigned char *)again)[99] = (unsigned char)(round + 3);
      unmap(again, PAGES * PAGE);
      stale += by_pread(&before, 99) != round + 3;
      stale += by_pread(&after, 99) != round + 3;
    }
    report(stale == 0, "R24: the last store before the end is seen after it", "%d stale looks", stale);
    munmap(before.shared, PAGES * PAGE);
    munmap(before.private, PAGES * PAGE);
    munmap(after.shared, PAGES * PAGE);
    munmap(after.private, PAGES * PAGE);
    close(fd);
  }
  race(O_WRONLY, "a descriptor that only writes");
  race(O_RDWR, "a descriptor that reads, too");
  race(O_RDWR | O_DIRECT, "O_DIRECT");
  race(O_WRONLY | O_DSYNC, "O_DSYNC");
  return end();
}
