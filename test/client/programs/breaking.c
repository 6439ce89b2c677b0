/* R15..R22: leases that are broken, on a mount with break_time=2. */
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/statvfs.h>

#include "tap.h"
#include "wire.h"

static const char *NAME = "breaking";
#define BREAK_MS 2000
#define SOON_MS 1500 /* well before the deadline */

static long now_ms(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* ---- another process that has no copy of anything */

struct order {
  off_t size;
  char name[64];
};
struct outcome {
  int error;
  long ms;
};

static int stranger;

static void begin_stranger(void) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) give_up("a socket pair");
  if (fork() == 0) {
    close(pair[0]);
    struct order order;
    while (recv(pair[1], &order, sizeof order, 0) == (ssize_t)sizeof order) {
      long begun = now_ms();
      int error = truncate(path_of(order.name), order.size) == 0 ? 0 : errno;
      struct outcome outcome = {.error = error, .ms = now_ms() - begun};
      send(pair[1], &outcome, sizeof outcome, 0);
    }
    _exit(0);
  }
  close(pair[1]);
  stranger = pair[0];
}

static void begin_truncate(const char *name, off_t size) {
  struct order order = {.size = size};
  snprintf(order.name, sizeof order.name, "%s", name);
  if (send(stranger, &order, sizeof order, 0) < 0) give_up("an order is sent");
}

static struct outcome end_truncate(void) {
  struct outcome outcome = {0};
  if (recv(stranger, &outcome, sizeof outcome, 0) != (ssize_t)sizeof outcome) give_up("an order is done");
  return outcome;
}

static void truncates(const char *sentence, const char *name, off_t size, long from_ms, long to_ms) {
  begin_truncate(name, size);
  struct outcome outcome = end_truncate();
  report(outcome.error == 0 && outcome.ms >= from_ms && outcome.ms <= to_ms, sentence, "%s after %ld ms",
         strerrorname_np(outcome.error), outcome.ms);
}

static void kind(const char *value) {
  setenv("MAPDIRECT_LEASE", value, 1);
}

static uint32_t state_at(const void *at) {
  struct mapdirect_lease_info info;
  return mapdirect_query(at, &info) == 0 ? info.state : UINT32_MAX;
}

static bool becomes(const void *at, uint32_t state) {
  for (int tries = 0; tries < 300 && state_at(at) != state; tries++)
    sleep_ms(10);
  return state_at(at) == state;
}

static void *raw_mmap(void *at, size_t length, int flags) {
  return (void *)syscall(SYS_mmap, at, length, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0L);
}

/* kill(2) returns before the threads stand still: until the first one has taken the signal, the others go on. */
static void stop(pid_t child) {
  int status;
  if (kill(child, SIGSTOP) != 0 || waitpid(child, &status, WUNTRACED) != child || !WIFSTOPPED(status))
    give_up("a child stops");
}

/* ---- */

static void in_place(void) {
  int fd = make_file(NAME, "WWWWHWWW");
  int other_fd = make_file("breaking-other", "WW");
  char *map = map_direct(fd, 0, 9 * PAGE);
  char *other = map_direct(other_fd, 0, 2 * PAGE);
  char *place = mmap(NULL, 8 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  map[0] = 'm';
  if (mprotect(map + PAGE, PAGE, PROT_READ) != 0 || unmap(map + 2 * PAGE, PAGE) != 0) give_up("mprotect");
  char *moved = remap(map + 6 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place + 2 * PAGE);
  if (moved != place + 2 * PAGE) give_up("mremap");
  truncates("R15: a conflicting truncate succeeds well before the deadline", NAME, PAGE, 0, SOON_MS);
  char value = 0;
  expect_sigbus("R18: a store raises SIGBUS", store_fault(map + 11, 1), map + 11);
  expect_sigbus("R18: a load, too", load_fault(map + 3 * PAGE + 7, &value), map + 3 * PAGE + 7);
  expect_sigbus("R22: what mprotect split off", load_fault(map + PAGE, &value), map + PAGE);
  expect_sigbus("R22: the hole", load_fault(map + 4 * PAGE, &value), map + 4 * PAGE);
  expect_sigbus("R22: past the end", load_fault(map + 8 * PAGE, &value), map + 8 * PAGE);
  expect_sigbus("R22: the piece that was moved", store_fault(moved + 5, 1), moved + 5);
  errno = 0;
  check(pread(other_fd, map, 1, 0) == -1 && errno == EFAULT, "R11: a system call gets EFAULT");
  check(state_at(map) == MAPDIRECT_REVOKED && state_at(moved) == MAPDIRECT_REVOKED, "query says revoked");
  check(mapdirect_persist(map, 1) == -1 && errno == EIO, "persist does not pretend");
  other[0] = 'o';
  check(pread(other_fd, &value, 1, 0) == 1 && value == 'o' && state_at(other) == MAPDIRECT_WRITTEN,
        "a mapping of another file is as it was");
  check(pread(fd, &value, 1, 0) == 1 && value == 'm', "what was stored before is in the file");
  errno = 0;
  check(map_any(NULL, PAGE, READ_WRITE, DIRECT, fd, 0) == MAP_FAILED && errno == EAGAIN,
        "R16: a new mapping at once: EAGAIN");
  check(mprotect(map, PAGE, PROT_READ) == 0 && unmap(map + 3 * PAGE, PAGE) == 0, "mprotect and munmap work");
  char *again = remap(map + 4 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place + 5 * PAGE);
  check(again == place + 5 * PAGE, "and mremap");
  expect_sigbus("it stays revoked there", load_fault(again, &value), again);
  sleep_ms(1200);
  expect_sigbus("R20: revocation is sticky", load_fault(map, &value), map);
  char *renewed = map_direct(fd, 0, PAGE);
  check(renewed[0] == 'm', "R20: a new request restores access");
  check(unmap(renewed, PAGE) == 0 && unmap(map, 9 * PAGE) == 0 && unmap(place, 8 * PAGE) == 0, "unmap");
  check(state_at(map) == UINT32_MAX, "nothing is left");
  unmap(other, 2 * PAGE);
}

static void its_own(void) {
  int fd = make_file(NAME, "WWWW");
  char *map = map_direct(fd, 0, 4 * PAGE);
  long begun = now_ms();
  int result = ftruncate(fd, 0);
  long ms = now_ms() - begun;
  report(result == 0 && ms < SOON_MS, "R12: the holder's own truncate breaks its lease and succeeds",
         "%s after %ld ms", strerrorname_np(result == 0 ? 0 : errno), ms);
  expect_sigbus("and takes its mapping", store_fault(map, 1), map);
  unmap(map, 4 * PAGE);
  sleep_ms(1200);
}

static struct mapdirect_break told;
static _Atomic int told_count;
static int told_persist;
static int told_unmap;

static void on_break(const struct mapdirect_break *what, void *context) {
  told = *what;
  told_persist = mapdirect_persist(what->address, what->length);
  if (context != NULL) told_unmap = mapdirect_unmap(context, 4 * PAGE);
  told_count++;
}

static void callback(void) {
  int fd = make_file(NAME, "WWWW");
  check(mapdirect_on_break(on_break, NULL, 0x10) == -1 && errno == EINVAL, "unknown flags: EINVAL");
  check(mapdirect_on_break(on_break, NULL, 0) == 0, "a handler is set");
  char *map = map_direct(fd, 0, 4 * PAGE);
  map[3 * PAGE] = 'h';
  struct mapdirect_lease_info info = {0};
  mapdirect_query(map, &info);
  truncates("a handler that returns does not hold the truncate up", NAME, PAGE, 0, SOON_MS);
  report(told_count == 1, "the handler is called once", "%d times", told_count);
  report(told.lease_id == info.lease_id && told.address == map && told.length == 4 * PAGE &&
             told.reason == MAPDIRECT_REASON_CONFLICT && told.offset == PAGE &&
             told.conflict_length == 3 * PAGE && told.remaining_ms > 0 && told.remaining_ms <= BREAK_MS,
         "R15: it is told which lease, where, why, and how long",
         "lease %lu at %p + %lu, reason %u, %lu + %lu, %lu ms", told.lease_id, told.address, told.length,
         told.reason, told.offset, told.conflict_length, told.remaining_ms);
  report(told_persist == 0, "it can make its stores durable", "persist failed");
  unmap(map, 4 * PAGE);

  sleep_ms(1200);
  fd = make_file(NAME, "WWWW");
  map = map_direct(fd, 0, 4 * PAGE);
  mapdirect_on_break(on_break, map, 0);
  truncates("R15: early release ends the wait", NAME, 0, 0, SOON_MS);
  for (int tries = 0; tries < 100 && told_count < 2; tries++) /* it returns after the unmapping */
    sleep_ms(10);
  report(told_count == 2 && told_unmap == 0 && state_at(map) == UINT32_MAX, "a handler may unmap",
         "%d times, %d", told_count, told_unmap);

  kind("seal");
  mapdirect_on_break(on_break, NULL, 0);
  fd = make_file(NAME, "WW");
  map = map_direct(fd, 0, 2 * PAGE);
  mapdirect_query(map, &info);
  struct mapdirect_wire_control *control = calloc(1, sizeof *control);
  control->version = MAPDIRECT_WIRE_VERSION;
  control->question = MAPDIRECT_WIRE_QUESTION_BREAK;
  control->argument = info.lease_id;
  check(punch(NAME, 0) == ETXTBSY, "a seal refuses");
  check(ioctl(fd, MAPDIRECT_IOCTL_CONTROL, control) == 0, "R17: the administrator breaks it");
  check(becomes(map, MAPDIRECT_REVOKED) && told.reason == MAPDIRECT_REASON_ADMINISTRATOR,
        "the holder is told and loses it");
  expect_sigbus("by SIGBUS", store_fault(map, 1), map);
  check(punch_soon(NAME, 0) == 0, "and then it no longer refuses");
  unmap(map, 2 * PAGE);
  free(control);
  kind("breakable");
  mapdirect_on_break(NULL, NULL, 0);
}

/* What the program's mprotect(2) took, it does not get back by a break. */
static void rights(void) {
  int fd = make_file(NAME, "WWWWW");
  char *map = map_direct(fd, 0, 5 * PAGE);
  mapdirect_on_break(NULL, NULL, MAPDIRECT_REMAP);
  if (mprotect(map + PAGE, PAGE, PROT_READ) != 0 || mprotect(map + 2 * PAGE, PAGE, PROT_NONE) != 0)
    give_up("mprotect");
  truncates("a break of a mapping with pages of different rights", NAME, 4 * PAGE, 0, SOON_MS);
  check(becomes(map, MAPDIRECT_CACHED), "it is an ordinary one then");
  char value = 0;
  report(store_fault(map, 'x').signal == 0 && store_fault(map + 3 * PAGE, 'x').signal == 0,
         "pages that may be written still may", "a signal");
  report(load_fault(map + PAGE, &value).signal == 0 && value == 'B' &&
             store_fault(map + PAGE, 'x').signal == SIGSEGV,
         "R22: PROT_READ is kept", "%c", value);
  report(load_fault(map + 2 * PAGE, &value).signal == SIGSEGV, "R22: PROT_NONE, too", "%c", value);
  unmap(map, 5 * PAGE);
  mapdirect_on_break(NULL, NULL, 0);
  close(fd);
}

/* A thread makes its stores durable while they are taken away. */

static char *persisted;
static _Atomic long persist_rounds;

static void *persist_until_refused(void *unused) {
  (void)unused;
  fault_seen = (struct fault){0};
  if (sigsetjmp(fault_jump, 1) != 0) return (void *)1;
  for (;;) {
    errno = 0;
    if (mapdirect_persist(persisted, 4 * PAGE) != 0) return errno == EIO ? NULL : (void *)2;
    atomic_fetch_add(&persist_rounds, 1);
  }
}

static void persisting(void) {
  enum { FILES = 8 };
  int faults = 0;
  int others = 0;
  for (int index = 0; index < FILES; index++) {
    char name[32];
    snprintf(name, sizeof name, "breaking-persist-%d", index);
    int fd = make_file(name, "WWWW");
    persisted = map_direct(fd, 0, 4 * PAGE);
    atomic_store(&persist_rounds, 0);
    pthread_t thread;
    if (pthread_create(&thread, NULL, persist_until_refused, NULL) != 0) give_up("a thread");
    while (atomic_load(&persist_rounds) < 10)
      sleep_ms(1);
    begin_truncate(name, PAGE);
    if (end_truncate().error != 0) give_up("a truncate");
    void *result;
    pthread_join(thread, &result);
    faults += result == (void *)1;
    others += result == (void *)2;
    unmap(persisted, 4 * PAGE);
    close(fd);
  }
  report(faults == 0 && others == 0, "persist of a mapping that is being revoked is EIO, and no signal",
         "%d signals and %d other errors of %d", faults, others, FILES);
}

/* The handler unmaps, and other mappings are made before it returns: one of them gets the number of the watch that went. */

static _Atomic int handover; /* 1: the handler has unmapped; 2: it may return */

static void unmap_and_wait(const struct mapdirect_break *what, void *context) {
  (void)context;
  told_count++;
  if (atomic_load(&handover) != 0) return;
  if (unmap(what->address, what->length) != 0) return;
  atomic_store(&handover, 1);
  for (int tries = 0; tries < 1000 && atomic_load(&handover) != 2; tries++)
    sleep_ms(1);
}

static void unmapped_while_told(void) {
  enum { LATER = 4 };
  char name[LATER][32];
  char *map[LATER];
  int fd[LATER];
  for (int index = 0; index < LATER; index++) {
    snprintf(name[index], sizeof name[index], "breaking-later-%d", index);
    fd[index] = make_file(name[index], "WW");
  }
  int first = make_file(NAME, "WWWW");
  map_direct(first, 0, 4 * PAGE);
  sleep_ms(50); /* until it is watched */
  told_count = 0;
  mapdirect_on_break(unmap_and_wait, NULL, 0);
  begin_truncate(NAME, PAGE);
  for (int tries = 0; tries < 1000 && atomic_load(&handover) != 1; tries++)
    sleep_ms(1);
  check(atomic_load(&handover) == 1, "a handler unmaps what it is told of");
  for (int index = 0; index < LATER; index++)
    map[index] = map_direct(fd[index], 0, 2 * PAGE);
  sleep_ms(50);
  atomic_store(&handover, 2);
  check(end_truncate().error == 0, "the truncate succeeds");
  for (int index = 0; index < LATER; index++) {
    truncates("R15: a mapping that was made before the handler returned is told of its break", name[index],
              PAGE, 0, SOON_MS);
    report(told_count == index + 2, "by a call of the handler", "%d calls", told_count);
    unmap(map[index], 2 * PAGE);
    close(fd[index]);
  }
  mapdirect_on_break(NULL, NULL, 0);
  close(first);
}

static void remapped(void) {
  int fd = make_file(NAME, "WHWW");
  if (by_library)
    mapdirect_on_break(NULL, NULL, MAPDIRECT_REMAP);
  else
    setenv("MAPDIRECT_REVOKE", "remap", 1);
  char *map = map_direct(fd, 0, 4 * PAGE);
  map[1] = 'd';
  truncates("a mapping that is to be remapped does not hold the truncate up", NAME, 3 * PAGE, 0, SOON_MS);
  check(becomes(map, MAPDIRECT_CACHED), "R18: by wish, the range is mapped through the page cache");
  char value = 0;
  check(load_fault(map + 1, &value).signal == 0 && value == 'd', "R18: the pointer is valid");
  check(store_fault(map + PAGE + 9, 'p').signal == 0 && store_fault(map + 2, 'q').signal == 0,
        "and can be stored through, to what was a hole, too");
  check(pread(fd, &value, 1, 2) == 1 && value == 'q', "R24: read(2) sees it");
  check(pread(fd, &value, 1, PAGE + 9) == 1 && value == 'p', "R24: there, too");
  check(pwrite(fd, "w", 1, 2 * PAGE) == 1 && load_fault(map + 2 * PAGE, &value).signal == 0 && value == 'w',
        "R24: it sees write(2)");
  expect_sigbus("past the end: SIGBUS", load_fault(map + 3 * PAGE, &value), map + 3 * PAGE);
  check(persist(map, 3 * PAGE) == 0, "it can be made durable");
  check(truncate(path_of(NAME), 0) == 0, "it holds no lease");
  check(unmap(map, 4 * PAGE) == 0 && state_at(map) == UINT32_MAX, "and is unmapped");
  unsetenv("MAPDIRECT_REVOKE");
  mapdirect_on_break(NULL, NULL, 0);
}

/* A child that maps the file, says so, waits for a byte, and exits with 0 if its mapping raises SIGBUS then. */
static pid_t begin_holder(const char *name, int *ready, int *go) {
  int to[2];
  int from[2];
  if (pipe2(to, O_CLOEXEC) != 0 || pipe2(from, O_CLOEXEC) != 0) give_up("pipes");
  pid_t child = fork();
  if (child == 0) {
    char byte = 0;
    int fd = open(path_of(name), O_RDWR | O_CLOEXEC);
    char *map = map_direct(fd, 0, 4 * PAGE);
    if (write(from[1], "r", 1) != 1 || read(to[0], &byte, 1) != 1) _exit(2);
    struct fault fault = store_fault(map + 3, 1);
    _exit(fault.signal == SIGBUS && fault.address == map + 3 ? 0 : 1);
  }
  *go = to[1];
  *ready = from[0];
  char byte;
  if (read(from[0], &byte, 1) != 1) give_up("a holder maps");
  return child;
}

static void others(void) {
  int fd = make_file(NAME, "WWWW");
  int ready;
  int go;
  pid_t holder = begin_holder(NAME, &ready, &go);
  char *map = map_direct(fd, 0, 4 * PAGE);
  truncates("R16: two holders let go before the deadline", NAME, 0, 0, SOON_MS);
  expect_sigbus("R16: one has lost it", store_fault(map, 1), map);
  if (write(go, "g", 1) != 1) give_up("a pipe");
  int status = wait_for(holder);
  report(status == 0, "R16: so has the other", "status %#x", status);
  unmap(map, 4 * PAGE);
  close(go), close(ready);

  fd = make_file(NAME, "WHWW");
  map = map_direct(fd, 0, 4 * PAGE);
  int pipes[2];
  if (pipe2(pipes, O_CLOEXEC) != 0) give_up("a pipe");
  pid_t child = fork();
  if (child == 0) {
    char byte = 0;
    map[2] = 'c';
    if (read(pipes[0], &byte, 1) != 1) _exit(2);
    struct fault fault = store_fault(map + 3, 1);
    struct fault hole = load_fault(map + PAGE, &byte);
    _exit(fault.signal == SIGBUS && fault.address == map + 3 && hole.signal == SIGBUS ? 0 : 1);
  }
  sleep_ms(100);
  truncates("R22: parent and child let go before the deadline", NAME, PAGE, 0, SOON_MS);
  expect_sigbus("R22: the parent has lost it", store_fault(map, 1), map);
  if (write(pipes[1], "g", 1) != 1) give_up("a pipe");
  status = wait_for(child);
  report(status == 0, "R22: so has the forked child", "status %#x", status);
  unmap(map, 4 * PAGE);
}

#define STOPPED_PAGES 64

static void hostile(void) {
  char layout[STOPPED_PAGES + 1];
  memset(layout, 'W', STOPPED_PAGES);
  layout[STOPPED_PAGES] = 0;
  int fd = make_file(NAME, layout);
  int pipes[2];
  if (pipe2(pipes, O_CLOEXEC) != 0) give_up("a pipe");
  pid_t child = fork();
  if (child == 0) {
    volatile char *map = map_direct(fd, 0, STOPPED_PAGES * PAGE);
    if (write(pipes[1], "r", 1) != 1) _exit(1);
    for (;;)
      for (size_t page = 0; page < STOPPED_PAGES; page++)
        store_fault(map + page * PAGE, '!');
  }
  char byte;
  if (read(pipes[0], &byte, 1) != 1) give_up("a child maps");
  stop(child);
  truncates("R19: a stopped holder: the truncate succeeds at the deadline", NAME, 0, BREAK_MS - 200,
            BREAK_MS + 2500);
  /* Whatever the file system gives out now must not be what the child reaches. */
  struct statvfs space;
  int taken = make_file("breaking-taken", "");
  static char block[64 * PAGE];
  memset(block, 'T', sizeof block);
  off_t bytes = 0;
  while (statvfs(directory, &space) == 0 && space.f_bfree > 0) {
    ssize_t count = pwrite(taken, block, sizeof block, bytes);
    if (count <= 0) break;
    bytes += count;
  }
  kill(child, SIGCONT);
  sleep_ms(500);
  off_t wrong = 0;
  for (off_t at = 0; at < bytes; at += (off_t)sizeof block) {
    ssize_t count = pread(taken, block, sizeof block, at);
    for (ssize_t index = 0; index < count; index++)
      wrong += block[index] != 'T';
  }
  report(bytes > 0 && wrong == 0, "R19: after SIGCONT it cannot touch what others got", "%ld of %ld bytes",
         (long)wrong, (long)bytes);
  kill(child, SIGKILL);
  wait_for(child);
  close(taken);
  unlink(path_of("breaking-taken"));

  fd = make_file(NAME, "WWWW");
  child = fork();
  if (child == 0) { /* a holder that does nothing: its threads cannot run because it is stopped */
    map_direct(fd, 0, 4 * PAGE);
    if (write(pipes[1], "r", 1) != 1) _exit(1);
    for (;;)
      pause();
  }
  if (read(pipes[0], &byte, 1) != 1) give_up("a child maps");
  stop(child);
  begin_truncate(NAME, 0);
  sleep_ms(300);
  kill(child, SIGKILL);
  struct outcome outcome = end_truncate();
  report(outcome.error == 0 && outcome.ms >= 250 && outcome.ms < SOON_MS, "R21: kill -9 ends the break",
         "%s after %ld ms", strerrorname_np(outcome.error), outcome.ms);
  wait_for(child);
}

/* The lease is gone within a few seconds. */
static int punch_at_last(const char *name) {
  int error = ETXTBSY;
  for (int tries = 0; tries < 5 && error == ETXTBSY; tries++)
    error = punch_soon(name, 0);
  return error;
}

static void behind_the_back(void) {
  kind("seal");
  int fd = make_file(NAME, "WWHW");
  char *map = map_direct(fd, 0, 4 * PAGE);
  syscall(SYS_munmap, map, 5 * PAGE);
  check(punch_soon(NAME, 0) == 0, "R21: a raw munmap of everything ends a seal");

  fd = make_file(NAME, "WWHW");
  map = map_direct(fd, 0, 5 * PAGE);
  syscall(SYS_munmap, map, 5 * PAGE);
  check(punch_at_last(NAME) == 0, "R21: a raw munmap of what was asked for ends it, a little later");

  fd = make_file(NAME, "WWHW");
  map = map_direct(fd, 0, 5 * PAGE);
  char *mine = raw_mmap(map, 5 * PAGE, MAP_FIXED);
  mine[0] = 'm';
  check(punch_at_last(NAME) == 0, "R21: so does a raw mmap of something else on top");
  report(mine == map && mine[0] == 'm' && state_at(map) == UINT32_MAX, "and what is there now is left alone",
         "%p, %c", (void *)mine, mine[0]);
  syscall(SYS_munmap, mine, 5 * PAGE);

  kind("breakable");
  fd = make_file(NAME, "WWHWW");
  map = map_direct(fd, 0, 5 * PAGE);
  mine = raw_mmap(map + PAGE, 3 * PAGE, MAP_FIXED);
  mine[0] = 'm';
  mine[PAGE] = 'n';
  truncates("a break of what was mapped over in part", NAME, 0, 0, SOON_MS);
  check(mine == map + PAGE && mine[0] == 'm' && mine[PAGE] == 'n', "leaves other memory alone");
  expect_sigbus("and takes the rest", store_fault(map, 1), map);
  expect_sigbus("all of it", store_fault(map + 4 * PAGE, 1), map + 4 * PAGE);
  unmap(map, PAGE), unmap(map + 4 * PAGE, PAGE);
  syscall(SYS_munmap, mine, 3 * PAGE);

  fd = make_file(NAME, "WW");
  map = map_direct(fd, 0, 2 * PAGE);
  syscall(SYS_munmap, map + 2 * PAGE, PAGE); /* the anchor */
  check(becomes(map, MAPDIRECT_REVOKED), "a mapping that lost its lease is revoked");
  expect_sigbus("and raises SIGBUS", store_fault(map, 1), map);
  check(unmap(map, 2 * PAGE) == 0, "it is unmapped");
}

int main(int argc, char **argv) {
  begin(argc, argv);
  kind("breakable");
  catch_faults();
  begin_stranger();
  in_place();
  its_own();
  callback();
  unmapped_while_told();
  persisting();
  rights();
  remapped();
  others();
  hostile();
  behind_the_back();
  return end();
}
