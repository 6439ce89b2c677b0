/* Inert pages, and breaks that a thread of the program hears of; on a mount with break_time=2. */
#include "tap.h"

static const char *NAME = "relayed";
#define LENGTH (2 * PAGE)

static uint32_t state_at(const void *at) {
  struct mapdirect_lease_info info;
  return mapdirect_query(at, &info) == 0 ? info.state : UINT32_MAX;
}

static char *map_breakable(int fd, size_t length) {
  char *map = mapdirect_map(NULL, length, READ_WRITE, MAP_SHARED_VALIDATE, fd, 0, MAPDIRECT_BREAKABLE);
  if (map == MAP_FAILED) give_up("a mapping that can be broken is made");
  return map;
}

/* In another process, which has no copy of anything: its pid. It ends with the errno. */
static int order[2];
static pid_t stranger;

static void begin_stranger(const char *name) {
  if (pipe(order) != 0) give_up("a pipe");
  stranger = fork();
  if (stranger != 0) return;
  char go;
  if (read(order[0], &go, 1) != 1) _exit(EPIPE);
  _exit(truncate(path_of(name), 0) == 0 ? 0 : errno);
}

static void let_truncate(void) {
  if (write(order[1], "g", 1) != 1) give_up("an order is sent");
}

static int end_stranger(void) {
  int status = wait_for(stranger);
  close(order[0]);
  close(order[1]);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool is_inert(volatile char *map, size_t length) {
  char value = 1;
  for (size_t at = 0; at < length; at += PAGE - 1)
    if (load_fault(map + at, &value).signal != 0 || value != 0) return false;
  if (store_fault(map, 's').signal != 0 || *map != 's') return false;
  *map = 0;
  return true;
}

static void detached(void) {
  int fd = make_file(NAME, "WWW");
  char *map = map_direct(fd, 0, 3 * PAGE);
  map[PAGE] = 'd';
  check(mapdirect_detach(map + PAGE, PAGE) == 0, "a part is detached");
  char seen = 0;
  check(is_inert(map + PAGE, PAGE) && pread(fd, &seen, 1, (off_t)PAGE) == 1 && seen == 'd',
        "what is stored to inert pages is lost, what was stored before is not");
  check(map[0] == 'A' && map[2 * PAGE] == 'C' && state_at(map) == MAPDIRECT_WRITTEN,
        "its neighbours are direct still");
  check(punch(NAME, (off_t)PAGE) == ETXTBSY, "the lease is on the whole range until its last piece is gone");
  check(mapdirect_detach(map, 3 * PAGE) == 0 && punch(NAME, 0) == 0, "then it ends before the call returns");
  check(is_inert(map, 3 * PAGE) && state_at(map) == UINT32_MAX,
        "the addresses stay, and are no direct mapping");
  check(mapdirect_persist(map, 1) == -1 && errno == ENOMEM, "there is nothing to make durable");
  check(munmap(map, 3 * PAGE) == 0, "munmap gives them back");
  check(mapdirect_detach(map + 1, PAGE) == -1 && errno == EINVAL, "an address within a page is refused");
  check(mapdirect_detach(map, 0) == -1 && errno == EINVAL, "and no length");
  close(fd);
}

static void inert(void) {
  int fd = make_file(NAME, "WHW");
  begin_stranger(NAME);
  char *map = map_breakable(fd, 4 * PAGE); /* a hole, and a page past the end, too */
  char *place = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapdirect_remap(map + 2 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place) != place)
    give_up("remap");
  check(mapdirect_on_break(NULL, NULL, MAPDIRECT_INERT | MAPDIRECT_REMAP) == -1 && errno == EINVAL,
        "inert and ordinary pages in one place are refused");
  mapdirect_on_break(NULL, NULL, MAPDIRECT_INERT);
  map[0] = 'i';
  let_truncate();
  report(end_stranger() == 0, "a truncate breaks the lease", " ");
  check(is_inert(map, 2 * PAGE) && is_inert(map + 3 * PAGE, PAGE) && is_inert(place, PAGE),
        "all pieces are inert: no access raises a signal, and none shows what was there");
  check(state_at(map) == UINT32_MAX && mapdirect_persist(map, 1) == -1 && errno == ENOMEM,
        "and are no direct mapping any more");
  check(munmap(map, 4 * PAGE) == 0 && munmap(place, PAGE) == 0, "munmap gives the addresses back");
  close(fd);
}

/* ---- a thread that hears of breaks */

static struct mapdirect_break heard;
static char seen_while_told;
static _Atomic int told;
static int answer_error;
static long answer_after_ms;

static void *listen_once(void *argument) {
  (void)argument;
  while (mapdirect_wait_break(&heard, -1) != 0)
    continue;
  seen_while_told = *(volatile char *)heard.address;
  atomic_store(&told, 1);
  sleep_ms(answer_after_ms);
  errno = 0;
  answer_error = mapdirect_answer_break(&heard) == 0 ? 0 : errno;
  return NULL;
}

static void heard_of(bool slow) {
  int fd = make_file(NAME, "WW");
  begin_stranger(NAME);
  char *map = map_breakable(fd, LENGTH);
  map[0] = 'h';
  mapdirect_on_break(mapdirect_hand_over, NULL, MAPDIRECT_INERT);
  atomic_store(&told, 0);
  answer_after_ms = slow ? 4000 : 50;
  pthread_t listener;
  if (pthread_create(&listener, NULL, listen_once, NULL) != 0) give_up("a thread");
  sleep_ms(20);
  let_truncate();
  report(end_stranger() == 0,
         slow ? "a thread that does not answer delays the truncate, but not for ever"
              : "a truncate breaks the lease",
         " ");
  check(atomic_load(&told) == 1 && heard.address == map && heard.length == LENGTH && seen_while_told == 'h' &&
            heard.reason == MAPDIRECT_REASON_CONFLICT,
        "a thread of the program was told of it first, and could still read");
  check(is_inert(map, LENGTH), "then the pages are inert");
  pthread_join(listener, NULL);
  report(answer_error == (slow ? ETIMEDOUT : 0),
         slow ? "an answer that comes late is told so" : "the answer counts", "%s",
         strerrorname_np(answer_error));
  munmap(map, LENGTH);
  close(fd);
}

static void before_anybody_waits(void) {
  int fd = make_file(NAME, "WW");
  begin_stranger(NAME);
  char *map = map_breakable(fd, LENGTH);
  map[0] = 'h';
  mapdirect_on_break(mapdirect_hand_over, MAPDIRECT_UNTIL_ANSWERED, MAPDIRECT_INERT);
  let_truncate();
  sleep_ms(300);
  check(map[0] == 'h', "without a limit the memory stays until a thread has come and answered");
  pthread_t listener;
  atomic_store(&told, 0);
  answer_after_ms = 0;
  if (pthread_create(&listener, NULL, listen_once, NULL) != 0) give_up("a thread");
  report(end_stranger() == 0, "then the truncate goes on", " ");
  pthread_join(listener, NULL);
  check(atomic_load(&told) == 1 && answer_error == 0 && is_inert(map, LENGTH), "and the pages are inert");
  munmap(map, LENGTH);
  close(fd);
}

static void waits(void) {
  struct mapdirect_break what;
  check(mapdirect_wait_break(&what, 0) == -1 && errno == ETIMEDOUT, "nothing to hear is ETIMEDOUT, at once");
  check(mapdirect_wait_break(&what, 30) == -1 && errno == ETIMEDOUT, "or after the time that was given");
}

/* The parent listens, the child does not: its copy goes without anybody being asked. */
static void in_a_child(void) {
  int fd = make_file(NAME, "WW");
  begin_stranger(NAME);
  char *map = map_breakable(fd, LENGTH);
  map[0] = 'c';
  mapdirect_on_break(mapdirect_hand_over, NULL, MAPDIRECT_INERT);
  answer_after_ms = 0;
  atomic_store(&told, 0);
  pthread_t listener;
  if (pthread_create(&listener, NULL, listen_once, NULL) != 0) give_up("a thread");
  sleep_ms(20);
  pid_t child = fork();
  if (child == 0) {
    for (int tries = 0; tries < 500 && *(volatile char *)map == 'c'; tries++)
      sleep_ms(10);
    _exit(is_inert(map, LENGTH) ? 0 : 1);
  }
  let_truncate();
  report(end_stranger() == 0, "a truncate breaks the lease that a child has a copy of", " ");
  report(wait_for(child) == 0, "the child's copy is inert, too", " ");
  pthread_join(listener, NULL);
  report(atomic_load(&told) == 1 && is_inert(map, LENGTH), "and the parent was told", " ");
  munmap(map, LENGTH);
  close(fd);
}

int main(int argc, char **argv) {
  begin(argc, argv);
  catch_faults();
  before_anybody_waits();
  waits();
  detached();
  inert();
  heard_of(false);
  heard_of(true);
  heard_of(false);
  in_a_child();
  return end();
}
