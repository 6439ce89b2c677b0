/*
 * What waits for somebody else's lease keeps nothing else of the process waiting: breaks are answered, fork(2) returns, signals
 * interrupt. On a mount with break_time=5; with MAPDIRECT=auto in the environment, the same of automatic mappings.
 */
#include <sys/ioctl.h>

#include "tap.h"
#include "wire.h"

#define BREAK_MS 5000
#define SOON_MS 3500 /* well before the deadline */

static long now_ms(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* ---- a holder that never answers: a breakable lease on the whole file, without the library */

static int hold(const char *name, size_t pages, uint32_t flags) {
  int fd = open(path_of(name), O_RDWR | O_CLOEXEC);
  struct mapdirect_wire_grant_full wire = {.map = {.version = MAPDIRECT_WIRE_VERSION,
                                                   .kind = MAPDIRECT_WIRE_LEASE_KIND_BREAKABLE, .flags = flags,
                                                   .length = pages * PAGE}};
  if (fd < 0 || ioctl(fd, MAPDIRECT_IOCTL_GRANT, &wire) != 0) give_up("a lease is granted");
  return fd;
}

static bool is_being_broken(int holder) {
  struct mapdirect_wire_status status;
  if (ioctl(holder, MAPDIRECT_IOCTL_STATUS, &status) != 0) give_up("the state of a lease");
  return status.state == MAPDIRECT_WIRE_LEASE_STATE_BREAKING;
}

static void until_broken(int holder) {
  for (int tries = 0; tries < 500 && !is_being_broken(holder); tries++)
    sleep_ms(10);
  if (!is_being_broken(holder)) give_up("a lease is being broken");
}

/* ---- a thread that maps, with the range prepared first */

struct mapper {
  pthread_t thread;
  int fd;
  size_t length;
  void *map;
  int error;
};

static void *map_prepared(void *argument) {
  struct mapper *mapper = argument;
  mapper->map = mapdirect_map(NULL, mapper->length, READ_WRITE, DIRECT, mapper->fd, 0,
                              MAPDIRECT_BREAKABLE | MAPDIRECT_PREPARE);
  mapper->error = mapper->map == MAP_FAILED ? errno : 0;
  return NULL;
}

static void begin_mapper(struct mapper *mapper, int fd, size_t pages) {
  *mapper = (struct mapper){.fd = fd, .length = pages * PAGE};
  if (pthread_create(&mapper->thread, NULL, map_prepared, mapper) != 0) give_up("a thread");
}

static void *truncate_it(void *name) {
  return (void *)(intptr_t)(truncate(path_of(name), 0) == 0 ? 0 : errno);
}

static _Atomic int signals;
static void on_signal(int signal) {
  (void)signal;
  signals++;
}

static void handle(int signal, int flags) {
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = flags};
  sigemptyset(&action.sa_mask);
  sigaction(signal, &action, NULL);
}

static void others_go_on(void) {
  int fd = make_file("waiting", "WHWH");
  int other = make_file("waiting-other", "WW");
  int third = make_file("waiting-third", "WW");
  char *map = mapdirect_map(NULL, 2 * PAGE, READ_WRITE, DIRECT, other, 0, MAPDIRECT_BREAKABLE);
  if (map == MAP_FAILED) give_up("a direct mapping is made");
  sleep_ms(50);
  int holder = hold("waiting", 4, 0);
  handle(SIGUSR1, 0);
  struct mapper mapper;
  begin_mapper(&mapper, fd, 4);
  until_broken(holder);

  void *failure;
  pthread_t thread;
  if (pthread_create(&thread, NULL, truncate_it, "waiting-other") != 0) give_up("a thread");
  pthread_join(thread, &failure);
  check(failure == NULL && is_being_broken(holder), "R15: a break of another lease of the process is answered");
  pid_t child = fork();
  if (child == 0) _exit(0);
  check(wait_for(child) == 0 && is_being_broken(holder), "fork returns");
  char *third_map = mapdirect_map(NULL, 2 * PAGE, READ_WRITE, DIRECT, third, 0, MAPDIRECT_BREAKABLE);
  check(third_map != MAP_FAILED && third_map[0] == 'A' && is_being_broken(holder), "another file is mapped");
  check(unmap(third_map, 2 * PAGE) == 0 && punch("waiting-third", 0) == 0 && is_being_broken(holder),
        "and unmapped: its lease has ended");
  pthread_kill(mapper.thread, SIGUSR1);
  pthread_join(mapper.thread, NULL);
  report(mapper.error == EINTR && is_being_broken(holder), "R15: a signal interrupts what waits", "%s",
         strerrorname_np(mapper.error));
  char value = 0;
  check(pread(fd, &value, 1, PAGE) == 1 && value == 0 && signals == 1, "its handler has run");
  close(holder);
  unmap(map, 2 * PAGE);
}

static void *set_user(void *stop) {
  while (!*(_Atomic bool *)stop) {
    if (setresuid(0, 0, 0) != 0) return stop;
    usleep(100);
  }
  return NULL;
}

static void not_interrupted(void) {
  int fd = make_file("waiting", "WHWH");
  int holder = hold("waiting", 4, 0);
  signal(SIGUSR1, SIG_DFL);
  handle(SIGUSR2, SA_RESTART);
  _Atomic bool stop = false;
  pthread_t thread;
  struct mapper mapper;
  signals = 0;
  begin_mapper(&mapper, fd, 4);
  until_broken(holder);
  pthread_kill(mapper.thread, SIGUSR2);
  if (pthread_create(&thread, NULL, set_user, &stop) != 0) give_up("a thread");
  sleep_ms(100);
  close(holder);
  pthread_join(mapper.thread, NULL);
  report(mapper.error == 0 && signals == 1,
         "neither a handler that lets calls go on nor another thread's setuid() ends what waits", "%s, %d",
         strerrorname_np(mapper.error), signals);
  if (mapper.error == 0) unmap(mapper.map, mapper.length);
  int failures_seen[2] = {0, 0};
  for (int round = 0; round < 60; round++) {
    int fresh = make_file("waiting-fresh", "WHW");
    void *map = mapdirect_map(NULL, 3 * PAGE, READ_WRITE, DIRECT, fresh, 0,
                              MAPDIRECT_BREAKABLE | (round % 2 == 0 ? 0 : MAPDIRECT_PREPARE));
    if (map == MAP_FAILED) failures_seen[errno == EINTR]++;
    else unmap(map, 3 * PAGE);
    close(fresh);
  }
  stop = true;
  pthread_join(thread, &(void *){0});
  report(failures_seen[0] == 0 && failures_seen[1] == 0, "setuid() in another thread makes no mapping fail",
         "%d times EINTR, %d times something else", failures_seen[1], failures_seen[0]);
}

static void over_its_own(void) {
  int fd = make_file("waiting", "WHWH");
  char *map = mapdirect_map(NULL, 4 * PAGE, READ_WRITE, DIRECT, fd, 0, MAPDIRECT_BREAKABLE);
  if (map == MAP_FAILED) give_up("a direct mapping is made");
  map[0] = 'm';
  long begun = now_ms();
  struct mapper mapper = {.fd = fd, .length = 4 * PAGE};
  map_prepared(&mapper);
  long ms = now_ms() - begun;
  report(mapper.error == 0 && ms < SOON_MS, "a mapping whose range has to be prepared breaks the process's own lease",
         "%s after %ld ms", strerrorname_np(mapper.error), ms);
  if (mapper.error == 0) {
    char *again = mapper.map;
    struct fault fault = store_fault(again + PAGE, 'p');
    check(fault.signal == 0 && again[0] == 'm', "and is made, every page of it");
    unmap(again, 4 * PAGE);
  }
  unmap(map, 4 * PAGE);
}

/* ---- a grant that waits itself: for the page of a fault that waits for a lease */

static void *load_page(void *at) {
  char value = 0;
  return (void *)(uintptr_t)(load_fault(at, &value).signal != 0);
}

static void *map_rest(void *argument) {
  struct mapper *mapper = argument;
  mapper->map =
      mapdirect_map(NULL, mapper->length, READ_WRITE, DIRECT, mapper->fd, 4 * (off_t)PAGE, MAPDIRECT_BREAKABLE);
  mapper->error = mapper->map == MAP_FAILED ? errno : 0;
  return NULL;
}

static void beside_a_grant(void) {
  int fd = make_file("waiting", "WWWWWWWW");
  int other = make_file("waiting-other", "WW");
  char *map = mapdirect_map(NULL, 2 * PAGE, READ_WRITE, DIRECT, other, 0, MAPDIRECT_BREAKABLE);
  char *plain = mmap(NULL, 8 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
  char value = 0;
  /* A page of the other half is in the page cache, so the grant of that half has something to drop. */
  if (map == MAP_FAILED || plain == MAP_FAILED || load_fault(plain + 4 * PAGE, &value).signal != 0)
    give_up("mappings are made");
  sleep_ms(50);
  int holder = hold("waiting", 4, MAPDIRECT_WIRE_LEASE_FLAG_AUTOMATIC);
  pthread_t faulting;
  pthread_t truncating;
  if (pthread_create(&faulting, NULL, load_page, plain) != 0) give_up("a thread");
  until_broken(holder);
  struct mapper mapper = {.fd = fd, .length = 4 * PAGE};
  if (pthread_create(&mapper.thread, NULL, map_rest, &mapper) != 0) give_up("a thread");
  sleep_ms(100);
  void *failure;
  if (pthread_create(&truncating, NULL, truncate_it, "waiting-other") != 0) give_up("a thread");
  pthread_join(truncating, &failure);
  check(failure == NULL && is_being_broken(holder), "R15: a break is answered while a grant waits");
  pid_t child = fork();
  if (child == 0) _exit(0);
  check(wait_for(child) == 0 && is_being_broken(holder), "and fork returns");
  check(unmap(map, 2 * PAGE) == 0 && is_being_broken(holder), "and munmap");
  close(holder);
  pthread_join(faulting, &failure);
  pthread_join(mapper.thread, NULL);
  /* R16: no new lease on that file so soon after a break. */
  report(failure == NULL && (mapper.error == 0 || mapper.error == EAGAIN),
         "the fault goes on when the lease has ended, and the grant is answered", "%s",
         strerrorname_np(mapper.error));
  if (mapper.error == 0) unmap(mapper.map, mapper.length);
  munmap(plain, 8 * PAGE);
}

/* ---- fork and mmap at the same time */

enum { MAPPERS = 16, FORKS = 8, MAPS_MEANWHILE_MAX = 500 };
static _Atomic long maps_made;
static _Atomic bool enough;

static void *map_all_the_time(void *argument) {
  char name[32];
  snprintf(name, sizeof name, "waiting-%d", (int)(intptr_t)argument);
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  char page[PAGE] = {0};
  if (pwrite(fd, page, PAGE, 0) != (ssize_t)PAGE) return argument;
  while (!enough) {
    void *map = mapdirect_map(NULL, PAGE, READ_WRITE, DIRECT, fd, 0, MAPDIRECT_BREAKABLE);
    if (map == MAP_FAILED) return argument;
    maps_made++;
    unmap(map, PAGE);
  }
  return NULL;
}

static void forks_beside_maps(void) {
  pthread_t threads[MAPPERS];
  for (int index = 0; index < MAPPERS; index++)
    if (pthread_create(&threads[index], NULL, map_all_the_time, (void *)(intptr_t)(index + 1)) != 0)
      give_up("a thread");
  long most = 0;
  for (int count = 0; count < FORKS; count++) {
    long before = maps_made;
    pid_t child = fork();
    if (child == 0) _exit(0);
    long meanwhile = maps_made - before;
    if (meanwhile > most) most = meanwhile;
    wait_for(child);
  }
  long before = maps_made;
  for (int tries = 0; tries < 1000 && maps_made < before + MAPPERS; tries++) {
    pid_t child = fork();
    if (child == 0) _exit(0);
    wait_for(child);
  }
  check(maps_made >= before + MAPPERS, "threads that map go on beside one that forks");
  enough = true;
  bool failed = false;
  for (int index = 0; index < MAPPERS; index++) {
    void *failure;
    pthread_join(threads[index], &failure);
    failed |= failure != NULL;
  }
  check(!failed, "each mapping is made");
  report(most <= MAPS_MEANWHILE_MAX, "fork waits for the mappings that were begun, not for each that comes",
         "%ld mappings were made meanwhile", most);
}

/* ---- MAPDIRECT=auto */

static uint32_t state_at(const void *at) {
  struct mapdirect_lease_info info;
  return mapdirect_query(at, &info) == 0 ? info.state : UINT32_MAX;
}

static void populated_over(const char *sentence, size_t first, off_t offset, char expected) {
  int fd = make_file("waiting", "WWWWWWWW");
  char *map = mmap(NULL, 8 * PAGE, READ_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED || state_at(map) != MAPDIRECT_WRITTEN) give_up("an automatic mapping is made");
  map[first * PAGE] = 'a';
  long begun = now_ms();
  char *over = mmap(map + first * PAGE, 4 * PAGE, PROT_READ, MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, offset);
  long ms = now_ms() - begun;
  report(over == map + first * PAGE && over[0] == expected && ms < SOON_MS, sentence, "%ld ms", ms);
  munmap(map, 8 * PAGE);
  close(fd);
}

static void automatic_over_its_own(void) {
  int fd = make_file("waiting", "WHWH");
  char *held = mapdirect_map(NULL, 4 * PAGE, READ_WRITE, DIRECT, fd, 0, MAPDIRECT_BREAKABLE);
  if (held == MAP_FAILED) give_up("a direct mapping is made");
  long begun = now_ms();
  char *map = mmap(NULL, 4 * PAGE, READ_WRITE, MAP_SHARED, fd, 0);
  map[PAGE] = 'p';
  long ms = now_ms() - begun;
  report(map != MAP_FAILED && ms < SOON_MS, "an automatic mapping breaks the process's own lease", "%ld ms", ms);
  munmap(map, 4 * PAGE);
  munmap(held, 4 * PAGE);
}

int main(int argc, char **argv) {
  begin(argc, argv);
  const char *words = getenv("MAPDIRECT");
  catch_faults();
  if (words != NULL && strcmp(words, "auto") == 0) {
    populated_over("R15: an ordinary mapping with MAP_POPULATE on top of an automatic one of the same pages", 0, 0, 'a');
    populated_over("the same over a part of it, of pages that stay mapped", 0, 4 * PAGE, 'E');
    automatic_over_its_own();
    return end();
  }
  over_its_own();
  others_go_on();
  beside_a_grant();
  not_interrupted();
  forks_beside_maps();
  return end();
}
