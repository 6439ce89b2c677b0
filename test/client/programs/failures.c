/*
 * Each system call by which the library gets memory or a descriptor fails once, in turn. Whatever it answers then: other files
 * of the program are not touched, nothing is mapped that it does not know, no lease is left, and the next attempt succeeds.
 * The library is compiled in, with MAPDIRECT_FAILURES; for MAPDIRECT=auto, the preload library.
 */
#include "tap.h"

long failing_syscall(long number);

static _Atomic long calls_left = -1; /* until the one that fails; negative: none */
static _Atomic bool has_failed;

long failing_syscall(long number) {
  long error = 0;
  switch (number) {
  case SYS_mmap:
  case SYS_mremap:
  case SYS_mprotect:
  case SYS_madvise:
  case SYS_statx:
    error = -ENOMEM;
    break;
  case SYS_openat:
  case SYS_memfd_create:
  case SYS_userfaultfd:
    error = -EMFILE;
    break;
  default:
    return 0;
  }
  if (atomic_load(&calls_left) < 0 || atomic_fetch_sub(&calls_left, 1) != 0) return 0;
  atomic_store(&has_failed, true);
  return error;
}

/* What a child answers besides. */
enum {
  GOOD,
  NOT_REACHED,
  NO_MAPPING_AT_LAST,
  WRONG_BYTES,
  STILL_KNOWN,
  LEASE_LEFT,
  STRANGER_HARMED,
  WRONG_PAGE
};
static const char *const meanings[] = {"",
                                       "",
                                       "the next attempt fails, too",
                                       "wrong bytes",
                                       "what was unmapped is still known",
                                       "a lease is left",
                                       "another file of the program was stored to",
                                       "a page is neither what it was nor revoked"};

static int stranger;

static void surround_by_strangers(void) {
  static char page[PAGE];
  stranger = memfd_create("stranger", MFD_CLOEXEC);
  memset(page, 'S', PAGE);
  for (int index = 0; index < 8; index++)
    if (pwrite(stranger, page, PAGE, (off_t)(index * (off_t)PAGE)) != (ssize_t)PAGE) give_up("a memfd");
  for (int count = 0; count < 32; count++)
    if (dup(stranger) < 0) give_up("dup");
}

static bool is_harmed(void) {
  static char bytes[8 * PAGE];
  if (pread(stranger, bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes) return true;
  for (size_t at = 0; at < sizeof bytes; at++)
    if (bytes[at] != 'S') return true;
  return false;
}

/* A written page after whatever failed: its own content, or a fault. */
static bool page_is_sound(char *at, char content) {
  char value = 0;
  struct fault fault = load_fault(at, &value);
  return fault.signal != 0 || value == content;
}

static int scenario(bool broken) {
  const char *name = "failures";
  int fd = open(path_of(name), O_RDWR | O_CLOEXEC);
  char *map = MAP_FAILED;
  for (int tries = 0; tries < 2 && map == MAP_FAILED; tries++)
    map = map_any(NULL, 5 * PAGE, READ_WRITE, DIRECT, fd, 0);
  if (map == MAP_FAILED) return NO_MAPPING_AT_LAST;
  if (map[0] != 'A' || map[PAGE] != 'B' || map[3 * PAGE] != 'D') return WRONG_BYTES;
  map[0] = 'A';
  sleep_ms(10); /* it is watched by now */
  char *place = mmap(NULL, 5 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char *moved = MAP_FAILED;
  for (int tries = 0; tries < 2 && moved == MAP_FAILED; tries++)
    moved = remap(map, 5 * PAGE, 5 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place);
  if (moved != place || moved[PAGE] != 'B') return NO_MAPPING_AT_LAST;
  if (broken) {
    pid_t child = fork();
    if (child == 0) _exit(truncate(path_of(name), (off_t)(4 * PAGE)) == 0 && punch(name, 0) == 0 ? 0 : 1);
    if (wait_for(child) != 0) return LEASE_LEFT;
    if (!page_is_sound(moved + PAGE, 'B') || !page_is_sound(moved + 3 * PAGE, 'D')) return WRONG_PAGE;
    store_fault(moved + PAGE, 'B');
  } else {
    pid_t child = fork();
    if (child == 0)
      _exit(page_is_sound(moved + PAGE, 'B') && store_fault(moved + 2 * PAGE, 1).signal != 0 ? 0 : 1);
    if (wait_for(child) != 0) return WRONG_PAGE;
  }
  if (store_fault(moved + 2 * PAGE, 1).signal == 0) return WRONG_PAGE;
  int unmapped = unmap(moved, 5 * PAGE);
  if (unmapped != 0) unmapped = unmap(moved, 5 * PAGE);
  struct mapdirect_lease_info info;
  if (unmapped != 0 || mapdirect_query(moved, &info) == 0) return STILL_KNOWN;
  if (punch_soon(name, (off_t)PAGE) != 0) return LEASE_LEFT;
  return is_harmed() ? STRANGER_HARMED : atomic_load(&has_failed) ? GOOD : NOT_REACHED;
}

/* Its content, or zeros that belong to nobody, or a fault. */
static bool page_is_sound_or_inert(char *at, char content) {
  return page_is_sound(at, content) || page_is_sound(at, 0);
}

/* One mapping becomes inert because its lease is broken, another one by the program. */
static int inert_scenario(void) {
  const char *names[] = {"failures", "failures-other"};
  char *maps[2] = {MAP_FAILED, MAP_FAILED};
  mapdirect_on_break(NULL, NULL, MAPDIRECT_INERT);
  for (int index = 0; index < 2; index++) {
    int fd = open(path_of(names[index]), O_RDWR | O_CLOEXEC);
    for (int tries = 0; tries < 2 && maps[index] == MAP_FAILED; tries++)
      maps[index] = map_any(NULL, 5 * PAGE, READ_WRITE, DIRECT, fd, 0);
    if (maps[index] == MAP_FAILED) return NO_MAPPING_AT_LAST;
  }
  sleep_ms(10); /* they are watched by now */
  pid_t child = fork();
  if (child == 0) _exit(truncate(path_of(names[0]), 0) == 0 ? 0 : 1);
  if (wait_for(child) != 0) return LEASE_LEFT;
  if (!page_is_sound_or_inert(maps[0], 'A') || !page_is_sound_or_inert(maps[0] + 3 * PAGE, 'D'))
    return WRONG_PAGE;
  if (mapdirect_detach(maps[1], 5 * PAGE) != 0 && mapdirect_detach(maps[1], 5 * PAGE) != 0)
    return STILL_KNOWN;
  for (int page = 0; page < 5; page++)
    if (!page_is_sound(maps[1] + page * (long)PAGE, 0)) return WRONG_PAGE;
  struct mapdirect_lease_info info;
  if (mapdirect_query(maps[1], &info) == 0) return STILL_KNOWN;
  if (punch_soon(names[1], 0) != 0) return LEASE_LEFT;
  return is_harmed() ? STRANGER_HARMED : atomic_load(&has_failed) ? GOOD : NOT_REACHED;
}

/* Of MAPDIRECT=auto: ordinary or not, it behaves as an ordinary one. */
static int automatic_scenario(void) {
  const char *name = "failures";
  int fd = open(path_of(name), O_RDWR | O_CLOEXEC);
  char *map = MAP_FAILED;
  for (int tries = 0; tries < 2 && map == MAP_FAILED; tries++)
    map = mmap(NULL, 5 * PAGE, READ_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) return NO_MAPPING_AT_LAST;
  map[PAGE] = 'B';
  sleep_ms(10);
  int punched = madvise(map, PAGE, MADV_REMOVE);
  if (punched != 0) punched = madvise(map, PAGE, MADV_REMOVE);
  if (!page_is_sound(map + PAGE, 'B') || !page_is_sound(map + 3 * PAGE, 'D')) return WRONG_PAGE;
  store_fault(map + PAGE, 'B');
  if (punched != 0) return NO_MAPPING_AT_LAST;
  if (munmap(map, 5 * PAGE) != 0 && munmap(map, 5 * PAGE) != 0) return STILL_KNOWN;
  if (punch_soon(name, (off_t)PAGE) != 0) return LEASE_LEFT;
  return is_harmed() ? STRANGER_HARMED : atomic_load(&has_failed) ? GOOD : NOT_REACHED;
}

static int broken_scenario(void) {
  return scenario(true);
}

static int whole_scenario(void) {
  return scenario(false);
}

static void each_in_turn(const char *sentence, const char *kind, int (*act)(void)) {
  enum { CALLS_MAX = 500 };
  setenv("MAPDIRECT_LEASE", kind, 1);
  int call = 0;
  for (;; call++) {
    close(make_file("failures", "WWHWW"));
    close(make_file("failures-other", "WWHWW"));
    pid_t child = fork();
    if (child == 0) {
      surround_by_strangers();
      catch_faults();
      atomic_store(&calls_left, call);
      _exit(act());
    }
    int status = wait_for(child);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (code == NOT_REACHED || call == CALLS_MAX) break;
    if (code == GOOD) continue;
    report(false, sentence, "call %d: status %#x: %s", call, status,
           code > 0 && code < 8 ? meanings[code] : "a signal");
  }
  report(call > 20 && call < CALLS_MAX, sentence, "%d calls", call);
}

int main(int argc, char **argv) {
  begin(argc, argv);
  if (getenv("MAPDIRECT") != NULL) {
    each_in_turn("each call fails once: an automatic mapping has its bytes, and a hole is punched",
                 "breakable", automatic_scenario);
    return end();
  }
  each_in_turn("each call fails once: mapped, moved, forked and unmapped all the same", "seal",
               whole_scenario);
  each_in_turn("each call fails once: and the lease is broken", "breakable", broken_scenario);
  each_in_turn("each call fails once: and what is broken or detached is inert", "breakable", inert_scenario);
  return end();
}
