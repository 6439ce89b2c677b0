/*
 * Breaking: find out that a lease is being broken, tell the program, take the memory away.
 *
 *   watcher (a second thread)   waits for news of the watches; runs the program's handler
 *   keeper                      asks what the news is, revokes, closes: descriptors and pieces are its alone
 *
 * A watch is one more open file description of the mapped file. poll(2) on it tells of the lease: nothing
 * while it is held, POLLPRI from the moment it is being broken, POLLHUP when it is gone. It is not the lease
 * description, which lives as long as the anchor is mapped and not a moment longer. The watcher shares the
 * keeper's descriptor table, because the keeper made it (CLONE_FILES). It cannot be the keeper: that one
 * sleeps on a futex, which other threads reach without a descriptor, and serves the handler's own calls.
 *
 * Revocation of one mapping, in this process (R18, R20, R22):
 *   1. what the program took away behind the library's back (a raw munmap) is struck from the table, not
 *      touched: it may be somebody else's memory by now
 *   2. each run of pieces is replaced, by one mmap(MAP_FIXED), by pages that raise SIGBUS; they stay in the
 *      table as REVOKED
 *   3. the anchor goes, and with it this process's share of the lease description
 *   4. nobody else has a copy (never forked): END, so that who waits does not wait for the kernel's news
 *   5. with MAPDIRECT_REMAP, when the lease is gone (POLLHUP) and not before, because until then the daemon
 *      refuses to fill the page cache there: an ordinary shared mapping of the file in place of 2
 * An automatic mapping goes another way: the ordinary mapping that was made beforehand (its shadow) is moved into its
 * place at once, and the daemon has page faults wait until the lease has ended. Then the library forgets it.
 * With MAPDIRECT_INERT zeros take the place in step 2, and the library forgets the mapping as well.
 * A process that cannot watch, or is stopped, does none of this; then the deadline and the quarantine of the
 * daemon keep others safe (R19).
 *
 * The watcher also wakes up every two seconds and has the keeper do step 1 for all mappings: a program
 * without the preload library that uses munmap(2) gives its leases back by it.
 */
#include "internal.h"

#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>

#include "syscall.h"

_Static_assert(MAPDIRECT_REASON_CONFLICT == MAPDIRECT_WIRE_BREAK_REASON_CONFLICT, "reasons are the wire's");
_Static_assert(MAPDIRECT_REASON_ADMINISTRATOR == MAPDIRECT_WIRE_BREAK_REASON_ADMINISTRATOR,
               "reasons are the wire's");
_Static_assert(MAPDIRECT_REASON_UNMOUNT == MAPDIRECT_WIRE_BREAK_REASON_UNMOUNT, "reasons are the wire's");

#define CONFIRM_MS 2000
/* Of no mapping: the watcher is to stop. */
#define STOP_SERIAL 0u
/* A mapping is watched when it is this old. */
#define WATCH_AFTER_MS 2
/* Of the time between two confirmations, no more than this part is spent confirming. */
#define CONFIRM_SHARE 100

struct watcher {
  int epoll_fd;
  int stop_fd; /* an eventfd */
  uint32_t generation;
  pthread_t thread;
};

/* The keeper's alone; a forked child clears it before it has a keeper. */
static struct watcher *watcher;

/* Guarded by the lock. */
static struct {
  mapdirect_break_handler *handler;
  void *context;
  unsigned flags;
} wish;

static struct request watch_again;

void break_wish(mapdirect_break_handler *handler, void *context, unsigned flags) {
  sigset_t mask;
  core_lock(&mask);
  wish.handler = handler;
  wish.context = context;
  wish.flags = flags;
  core_unlock(&mask);
}

void break_wish_remap(void) {
  sigset_t mask;
  core_lock(&mask);
  wish.flags |= MAPDIRECT_REMAP;
  core_unlock(&mask);
}

static uint64_t now_ms(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

/* ---- what is still there (with the lock held, on the keeper) */

struct area { /* a line of maps (proc(5)) */
  uintptr_t start;
  uintptr_t end;
  uint64_t offset;
  uint64_t inode;
  bool shared;
  int prot;
  const char *name;
};

/* start-end rwxp offset major:minor inode   name */
static bool parse_area(const char *line, struct area *area) {
  uint64_t start;
  uint64_t end;
  uint64_t number;
  if (!parse_field(&line, 16, '-', &start) || !parse_field(&line, 16, ' ', &end) || strnlen(line, 5) < 5)
    return false;
  area->prot =
      (line[0] == 'r' ? PROT_READ : 0) | (line[1] == 'w' ? PROT_WRITE : 0) | (line[2] == 'x' ? PROT_EXEC : 0);
  area->shared = line[3] == 's';
  line += 5;
  if (!parse_field(&line, 16, ' ', &area->offset) || !parse_field(&line, 16, ':', &number) ||
      !parse_field(&line, 16, ' ', &number))
    return false;
  line = parse_number(line, 10, &area->inode);
  while (*line == ' ')
    line++;
  area->start = (uintptr_t)start;
  area->end = (uintptr_t)end;
  area->name = line;
  return true;
}

#define AREA_BYTES (32u << 10) /* the longest path, each byte escaped, and more */

struct seeing {
  bool (*see)(void *context, const struct area *area);
  void *context;
};

static int see_line(void *context, const char *line) {
  const struct seeing *seeing = context;
  struct area area;
  if (line == NULL || !parse_area(line, &area)) return -EIO;
  return seeing->see(seeing->context, &area) ? LINE_GO_ON : LINE_STOP;
}

/* Calls `see` for each line until it returns false. */
static int each_area(bool (*see)(void *context, const struct area *area), void *context) {
  struct seeing seeing = {.see = see, .context = context};
  return each_line_of_process("maps", AREA_BYTES, see_line, &seeing);
}

struct find_inode {
  uintptr_t at;
  uint64_t inode;
};

static bool see_inode(void *context, const struct area *area) {
  struct find_inode *find = context;
  if (area->end <= find->at) return true;
  if (area->start <= find->at) find->inode = area->inode;
  return false;
}

uint64_t region_inode_at(uintptr_t at, const struct stat *region) {
  static struct { /* the keeper's alone; true in a child, too */
    dev_t device;
    ino_t inode;
    uint64_t shown;
  } last;
  if (last.shown == 0 || last.device != region->st_dev || last.inode != region->st_ino) {
    struct find_inode find = {.at = at};
    if (each_area(see_inode, &find) != 0 || find.inode == 0) return REGION_UNKNOWN;
    last.device = region->st_dev;
    last.inode = region->st_ino;
    last.shown = find.inode;
  }
  return last.shown;
}

void spans_free(struct spans *spans) {
  page_free(spans->items, round_up(spans->capacity * sizeof(struct span), page_bytes()));
  *spans = (struct spans){0};
}

static void add_span(struct spans *spans, uintptr_t start, uintptr_t end, int prot) {
  if (start >= end || spans->failed) return;
  if (spans->count == spans->capacity) {
    size_t old_bytes = round_up(spans->capacity * sizeof(struct span), page_bytes());
    size_t bytes = old_bytes == 0 ? page_bytes() : 2 * old_bytes;
    struct span *larger = page_alloc(bytes);
    if (larger == NULL) {
      spans->failed = true;
      return;
    }
    if (spans->count > 0) memcpy(larger, spans->items, spans->count * sizeof(struct span));
    page_free(spans->items, old_bytes);
    spans->items = larger;
    spans->capacity = bytes / sizeof(struct span);
  }
  spans->items[spans->count++] = (struct span){.start = start, .end = end, .prot = prot};
}

int rights_at(const struct spans *rights, uintptr_t at, uintptr_t *upto, int usual) {
  size_t low = 0;
  size_t high = rights->count;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (rights->items[middle].end <= at)
      low = middle + 1;
    else
      high = middle;
  }
  if (low == rights->count || rights->items[low].start >= *upto) return usual;
  const struct span *span = &rights->items[low];
  if (span->start > at) {
    *upto = span->start;
    return usual;
  }
  if (span->end < *upto) *upto = span->end;
  return span->prot;
}

int rights_apply(const struct spans *rights, uintptr_t from, uintptr_t start, size_t length, int usual) {
  for (uintptr_t at = from, upto; at < from + length; at = upto) {
    upto = from + length;
    int prot = rights_at(rights, at, &upto, usual);
    if (prot == usual) continue;
    long error = raw_syscall(SYS_mprotect, (long)(start + (at - from)), (long)(upto - at), prot, 0, 0, 0);
    if (raw_failed(error)) return (int)error;
  }
  return 0;
}

struct confirmation {
  size_t index; /* of the piece that is being looked at */
  uintptr_t at; /* confirmed, or a gap, up to here */
  struct spans gaps;
  struct spans *rights; /* or NULL */
};

static int usual_rights(const struct piece *piece) {
  switch (piece->state) {
  case PIECE_HOLE:
    return piece->mapping->prot | PROT_READ;
  case PIECE_BEYOND:
  case PIECE_REVOKED:
    return piece->mapping->prot & ~PROT_EXEC;
  default:
    return piece->mapping->prot;
  }
}

static bool is_as_it_says(const struct piece *piece, uintptr_t at, const struct area *area) {
  uint64_t offset = area->offset + (at - area->start);
  switch (piece->state) {
  case PIECE_DIRECT:
    if (piece->mapping->region_inode == REGION_UNKNOWN) return true;
    return area->shared && area->inode == piece->mapping->region_inode &&
           offset == piece->physical + (at - piece->start);
  case PIECE_HOLE:
    return !area->shared && area->inode == 0 && hole_is_at(at);
  case PIECE_ANCHOR:
    return !area->shared && area->inode == piece->mapping->inode;
  case PIECE_CACHED:
    return area->shared && area->inode == piece->mapping->inode &&
           offset == piece->offset + (at - piece->start);
  default:
    return area->shared && strstr(area->name, BEYOND_NAME) != NULL;
  }
}

/* Merge two sorted lists, the lines and the pieces. */
static bool see_area(void *context, const struct area *area) {
  struct confirmation *confirm = context;
  for (; confirm->index < table_count(); confirm->index++) {
    const struct piece *piece = table_at(confirm->index);
    if (confirm->at < piece->start) confirm->at = piece->start;
    if (area->end <= confirm->at) return true;
    uintptr_t upto = area->start < piece->end ? area->start : piece->end;
    if (upto > confirm->at) {
      add_span(&confirm->gaps, confirm->at, upto, 0);
      confirm->at = upto;
    }
    if (confirm->at < piece->end) {
      upto = area->end < piece->end ? area->end : piece->end;
      if (!is_as_it_says(piece, confirm->at, area))
        add_span(&confirm->gaps, confirm->at, upto, 0);
      else if (confirm->rights != NULL && piece->state != PIECE_ANCHOR && area->prot != usual_rights(piece))
        add_span(confirm->rights, confirm->at, upto, area->prot);
      confirm->at = upto;
      if (upto < piece->end) return true;
    }
  }
  return false;
}

void rights_look_up(struct spans *rights) {
  struct confirmation confirm = {.rights = rights};
  each_area(see_area, &confirm);
  spans_free(&confirm.gaps);
}

/* Strike from the table what is not mapped as it says. Without /proc the table is believed. `rights`, if it is not NULL, gets
 * those of what is there. */
static void confirm_all(struct mapping **dead, struct spans *rights) {
  struct confirmation confirm = {.rights = rights};
  int error = each_area(see_area, &confirm);
  for (; error == 0 && confirm.index < table_count(); confirm.index++) {
    const struct piece *piece = table_at(confirm.index);
    add_span(&confirm.gaps, confirm.at > piece->start ? confirm.at : piece->start, piece->end, 0);
  }
  if (error == 0 && !confirm.gaps.failed && table_reserve(confirm.gaps.count + 1) == 0) {
    for (size_t index = 0; index < confirm.gaps.count; index++)
      table_strike(confirm.gaps.items[index].start, confirm.gaps.items[index].end, dead);
  }
  spans_free(&confirm.gaps);
}

int break_forget(uintptr_t start, uintptr_t end, struct mapping **dead) {
  if (!table_occupied(start, end)) return 0;
  confirm_all(dead, NULL); /* first, because it looks at anchors before anybody unmaps them */
  int error = table_reserve(2);
  if (error == 0) table_strike(start, end, dead);
  return error;
}

/* ---- what the watcher asks of the keeper */

struct news {
  struct request base;
  uint64_t serial; /* of the mapping: its watch's number, and its memory, may be another's by now */
  bool found;
  bool revoked; /* before */
  uint64_t address;
  uint64_t length;
  struct mapdirect_wire_status status;
  struct mapping *dead;
};

/* With the lock held: the one that the news is of, if it is in the table and watched. On the keeper its watch stays open
 * though the lock is given up. */
static struct mapping *mapping_of_news(const struct news *news) {
  for (size_t index = 0; index < table_count(); index++) {
    struct mapping *mapping = table_at(index)->mapping;
    if (mapping->serial == news->serial) return keeper_fd_is_one(mapping->watch_fd) ? mapping : NULL;
  }
  return NULL;
}

/* With the lock held: does the run of adjacent pieces of `mapping` go on with the next? */
static bool run_goes_on(const struct mapping *mapping, size_t index, bool by_offset) {
  if (index + 1 >= table_count()) return false;
  const struct piece *here = table_at(index);
  const struct piece *next = table_at(index + 1);
  if (next->mapping != mapping || next->state == PIECE_ANCHOR || next->start != here->end) return false;
  return !by_offset || next->offset == here->offset + (here->end - here->start);
}

/* Do `place` to each run of adjacent pieces of the mapping. */
static int each_run(const struct mapping *mapping, bool by_offset,
                    int (*place)(void *context, const struct piece *first, uintptr_t end), void *context) {
  for (size_t index = 0; index < table_count(); index++) {
    const struct piece *first = table_at(index);
    if (first->mapping != mapping || first->state == PIECE_ANCHOR) continue;
    while (run_goes_on(mapping, index, by_offset))
      index++;
    int error = place(context, first, table_at(index)->end);
    if (error != 0) return error;
  }
  return 0;
}

static void stop_polling(struct keeper_fd fd) {
  if (watcher != NULL) epoll_ctl(watcher->epoll_fd, EPOLL_CTL_DEL, keeper_fd_number(fd), NULL);
}

void watch_close(struct keeper_fd fd) {
  stop_polling(fd); /* a mapping of it would keep it in the set */
  raw_close(keeper_fd_number(fd));
}

int watch_end_lease(struct keeper_fd fd, uint64_t lease_id, bool unchanged) {
  struct mapdirect_wire_lease lease = {
      .version = MAPDIRECT_WIRE_VERSION,
      .flags = unchanged ? MAPDIRECT_WIRE_END_FLAG_UNCHANGED : 0,
      .lease_id = lease_id,
  };
  return ioctl(keeper_fd_number(fd), (unsigned long)MAPDIRECT_IOCTL_END, &lease) == 0 ? 0 : -errno;
}

static int note_first_run(void *context, const struct piece *first, uintptr_t end) {
  struct news *news = context;
  news->address = first->start;
  news->length = end - first->start;
  return 1; /* enough */
}

static void run_look(struct request *request) {
  struct news *news = (struct news *)(void *)request;
  sigset_t mask;
  core_lock(&mask);
  struct mapping *mapping = mapping_of_news(news);
  news->found = mapping != NULL;
  struct keeper_fd fd = KEEPER_NO_FD;
  if (mapping != NULL) {
    fd = mapping->watch_fd;
    news->revoked = mapping->revoked;
    each_run(mapping, false, note_first_run, news);
  }
  core_unlock(&mask);
  if (!news->found) return; /* unmapped meanwhile: its end, which comes after us, closes the watch */
  if (ioctl(keeper_fd_number(fd), (unsigned long)MAPDIRECT_IOCTL_STATUS, &news->status) == 0) return;
  /* The daemon is gone, and when it comes back it will find who maps what. */
  stop_polling(fd);
  news->found = false;
}

static int place_sigbus(void *context, const struct piece *first, uintptr_t end) {
  const struct spans *rights = context;
  size_t length = end - first->start;
  int prot = first->mapping->prot;
  if (beyond_place(first->start, length, prot) == 0) {
    rights_apply(rights, first->start, first->start, length, prot);
    return 0;
  }
  /* No descriptor left for the pages that raise SIGBUS: then SIGSEGV. Access is what has to end. */
  long result = raw_mmap(first->start, length, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  return raw_failed(result) ? (int)result : 0;
}

/* ---- automatic mappings (with the lock held) */

/* One that has pieces in [start, end), or NULL. */
static struct mapping *automatic_in(uintptr_t start, uintptr_t end) {
  for (size_t index = table_empty() ? 0 : table_lower(start); index < table_count(); index++) {
    const struct piece *piece = table_at(index);
    if (piece->start >= end) break;
    if (piece->state != PIECE_ANCHOR && piece->mapping->shadow != 0) return piece->mapping;
  }
  return NULL;
}

struct reversion {
  const struct mapping *mapping;
  const struct spans *rights;
  bool begun; /* something is ordinary already */
};

/* A copy of the shadow's part, in one step. MREMAP_DONTUNMAP: what is left behind stays ours, to be unmapped as a whole. */
static int place_shadow(void *context, const struct piece *first, uintptr_t end) {
  struct reversion *reversion = context;
  const struct mapping *mapping = reversion->mapping;
  for (uintptr_t at = first->start, upto; at < end; at = upto) {
    upto = end;
    int prot = rights_at(reversion->rights, at, &upto, mapping->prot);
    size_t part = upto - at;
    uintptr_t from =
        mapping->shadow + (uintptr_t)(first->offset + (at - first->start) - mapping->shadow_offset);
    long error = raw_syscall(SYS_mprotect, (long)from, (long)part, prot, 0, 0, 0);
    if (raw_failed(error)) return (int)error;
    long moved = raw_mremap(from, part, part, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, at);
    if (raw_failed(moved)) return (int)moved;
    reversion->begun = true;
  }
  return 0;
}

static int cut_first(void *context, const struct piece *first, uintptr_t end) {
  struct mapping **dead = context;
  table_cut(first->start, end, dead);
  return 1; /* the table is another one now */
}

/*
 * On the keeper: make an ordinary mapping of an automatic one, and forget it: it is prepended to *dead. If nothing could be
 * done, nothing is done (wanted: by the program, which gets the error), or access ends.
 */
static int automatic_revert(struct mapping *mapping, bool wanted, const struct spans *rights,
                            struct mapping **dead) {
  struct reversion reversion = {.mapping = mapping, .rights = rights};
  int error = table_reserve(2);
  persist_leave(mapping, LEAVES_FOR_ORDINARY);
  if (error == 0) error = each_run(mapping, true, place_shadow, &reversion);
  if (error != 0 && wanted && !reversion.begun) {
    atomic_store(&mapping->leaves, LEAVES_NOT);
    return error;
  }
  if (mapping->io != NULL) atomic_store(&mapping->io->state, IO_ENDED);
  if (error != 0) error = each_run(mapping, false, place_sigbus, (void *)(uintptr_t)rights);
  if (error != 0) return error;
  count_up(COUNT_REVOKED, 1);
  mapping->revoked = true;
  while (each_run(mapping, false, cut_first, dead) != 0)
    continue;
  return 0;
}

static int place_inert(void *context, const struct piece *first, uintptr_t end) {
  (void)context;
  return inert_place(first->start, end - first->start);
}

/*
 * On the keeper, with MAPDIRECT_INERT: inert pages in place of a mapping, which is forgotten then: it is prepended to *dead. The
 * table says so first: who reads a zero there, and then asks, has to hear why.
 */
static int withdraw(struct mapping *mapping, const struct spans *rights, struct mapping **dead) {
  int error = table_reserve(2);
  if (error != 0) return error;
  persist_leave(mapping, LEAVES_FOR_SIGBUS);
  table_set_state(mapping, PIECE_REVOKED);
  error = each_run(mapping, false, place_inert, NULL);
  if (error != 0) error = each_run(mapping, false, place_sigbus, (void *)(uintptr_t)rights);
  if (error != 0) return error;
  count_up(COUNT_REVOKED, 1);
  mapping->revoked = true;
  while (each_run(mapping, false, cut_first, dead) != 0)
    continue;
  return 0;
}

struct revert_request {
  struct request base;
  uintptr_t start;
  uintptr_t end;
  struct mapping *dead;
};

static void run_revert(struct request *base) {
  struct revert_request *revert = (struct revert_request *)(void *)base;
  struct mapping *automatic;
  sigset_t mask;
  core_lock(&mask);
  struct spans rights = {0};
  confirm_all(&revert->dead, &rights);
  base->error = 0;
  while (base->error == 0 && (automatic = automatic_in(revert->start, revert->end)) != NULL)
    base->error = automatic_revert(automatic, true, &rights, &revert->dead);
  change_bury(revert->dead);
  core_unlock(&mask);
  spans_free(&rights);
}

/* By the keeper: what cannot become ordinary raises SIGBUS by way of a descriptor of its. */
int automatic_revert_all(uintptr_t start, uintptr_t end) {
  sigset_t mask;
  core_lock(&mask);
  bool any = automatic_in(start, end) != NULL;
  core_unlock(&mask);
  if (!any) return 0;
  struct revert_request *revert = page_alloc(page_bytes()); /* not on the stack: see map.c */
  if (revert == NULL) return -ENOMEM;
  revert->base.run = run_revert;
  revert->start = start;
  revert->end = end;
  int error = keeper_run(&revert->base);
  change_mourn(revert->dead);
  page_free(revert, page_bytes());
  return error;
}

static void run_revoke(struct request *request) {
  struct news *news = (struct news *)(void *)request;
  bool forked = false;
  bool keep = false;
  sigset_t mask;
  struct spans rights = {0};
  core_lock(&mask);
  confirm_all(&news->dead, &rights);
  struct mapping *mapping = mapping_of_news(news);
  if (mapping != NULL && (mapping->shadow != 0 || (wish.flags & MAPDIRECT_INERT) != 0)) {
    /* Its end, which it meets as if it had been unmapped, closes the watch. */
    struct keeper_fd watch = mapping->watch_fd;
    request->error = mapping->shadow != 0 ? automatic_revert(mapping, false, &rights, &news->dead)
                                          : withdraw(mapping, &rights, &news->dead);
    change_bury(news->dead);
    core_unlock(&mask);
    spans_free(&rights);
    if (request->error != 0) stop_polling(watch);
    return;
  }
  struct keeper_fd fd = mapping == NULL ? KEEPER_NO_FD : mapping->watch_fd;
  if (mapping != NULL) persist_leave(mapping, LEAVES_FOR_SIGBUS);
  request->error = mapping == NULL ? -ENOENT : each_run(mapping, false, place_sigbus, &rights);
  if (request->error == 0) {
    count_up(COUNT_REVOKED, 1);
    table_set_state(mapping, PIECE_REVOKED);
    mapping->revoked = true;
    if (mapping->anchor != 0) {
      raw_munmap(mapping->anchor, page_bytes());
      table_remove_anchor(mapping->anchor);
      mapping->anchor = 0;
    }
    forked = mapping->forked;
    keep = (wish.flags & MAPDIRECT_REMAP) != 0;
    if (!keep) mapping->watch_fd = KEEPER_NO_FD;
  }
  change_bury(news->dead);
  core_unlock(&mask);
  spans_free(&rights);
  if (!keeper_fd_is_one(fd)) return; /* unmapped meanwhile */
  if (request->error != 0) {
    stop_polling(fd);
    return;
  }
  if (!forked) watch_end_lease(fd, news->status.lease_id, false);
  if (!keep) {
    watch_close(fd);
    return;
  }
  struct epoll_event until_gone = {.data.u64 = news->serial};
  if (watcher != NULL) epoll_ctl(watcher->epoll_fd, EPOLL_CTL_MOD, keeper_fd_number(fd), &until_gone);
}

static int place_file(void *context, const struct piece *first, uintptr_t end) {
  const struct reversion *reversion = context;
  const struct mapping *mapping = reversion->mapping;
  for (uintptr_t at = first->start, upto; at < end; at = upto) {
    upto = end;
    int prot = rights_at(reversion->rights, at, &upto, mapping->prot);
    long result = raw_mmap(at, upto - at, prot, MAP_SHARED | MAP_FIXED, keeper_fd_number(mapping->watch_fd),
                           (off_t)(first->offset + (at - first->start)));
    if (raw_failed(result)) return (int)result;
  }
  return 0;
}

static void run_replace(struct request *request) {
  struct news *news = (struct news *)(void *)request;
  sigset_t mask;
  struct spans rights = {0};
  core_lock(&mask);
  confirm_all(&news->dead, &rights);
  struct mapping *mapping = mapping_of_news(news);
  struct reversion reversion = {.mapping = mapping, .rights = &rights};
  struct keeper_fd fd = KEEPER_NO_FD;
  if (mapping != NULL && mapping->revoked) {
    fd = mapping->watch_fd;
    if (each_run(mapping, true, place_file, &reversion) == 0)
      table_set_state(mapping, PIECE_CACHED);
    else
      each_run(mapping, false, place_sigbus, &rights); /* a kernel that does not map such files */
    mapping->watch_fd = KEEPER_NO_FD;
  }
  change_bury(news->dead);
  core_unlock(&mask);
  spans_free(&rights);
  if (keeper_fd_is_one(fd)) watch_close(fd);
  request->error = 0;
}

static void run_confirm(struct request *request) {
  struct news *news = (struct news *)(void *)request;
  sigset_t mask;
  core_lock(&mask);
  confirm_all(&news->dead, NULL);
  change_bury(news->dead);
  core_unlock(&mask);
  request->error = 0;
}

/* ---- the watcher */

/* False: the keeper that this watcher belongs to has ended. */
static bool ask(const struct watcher *self, struct news *news, void (*run)(struct request *request)) {
  news->base.run = run;
  news->dead = NULL;
  sigset_t mask;
  core_lock(&mask);
  bool ours = keeper_generation() == self->generation;
  if (ours) keeper_push(&news->base);
  core_unlock(&mask);
  if (!ours) return false;
  keeper_kick();
  keeper_wait(&news->base);
  change_mourn(news->dead);
  return true;
}

static void tell(const struct news *news) {
  sigset_t mask;
  core_lock(&mask);
  mapdirect_break_handler *handler = wish.handler;
  void *context = wish.context;
  core_unlock(&mask);
  if (handler == NULL) return;
  struct mapdirect_break what = {
      .lease_id = news->status.lease_id,
      .address = (void *)(uintptr_t)news->address,
      .length = news->length,
      .offset = news->status.offset,
      .conflict_length = news->status.length,
      .remaining_ms = news->status.remaining_ms,
      .reason = news->status.reason,
  };
  handler(&what, context);
}

static bool attend(const struct watcher *self, uint64_t serial) {
  struct news news = {.serial = serial};
  if (!ask(self, &news, run_look)) return false;
  if (!news.found) return true;
  bool gone = news.status.state == MAPDIRECT_WIRE_LEASE_STATE_GONE;
  if (news.revoked) return !gone || ask(self, &news, run_replace);
  if (news.status.state == MAPDIRECT_WIRE_LEASE_STATE_HELD) return true;
  /* Gone, and still in the table: the anchor was unmapped behind our back. What is left of the mapping
   * reaches blocks that are nobody's any more. */
  if (!gone) tell(&news);
  return ask(self, &news, run_revoke);
}

/* When the watcher last began to look and found nothing. */
static _Atomic uint64_t beat_ms;

uint64_t watcher_beat_ms(void) {
  return atomic_load_explicit(&beat_ms, memory_order_relaxed);
}

static void *watcher_main(void *argument) {
  const struct watcher *self = argument;
  prctl(PR_SET_NAME, "mapdirect-watch", 0, 0, 0);
  thread_table = TABLE_OF_KEEPER;
  uint64_t confirm_at = now_ms() + CONFIRM_MS;
  for (bool goes_on = true; goes_on;) {
    uint64_t now = now_ms();
    if (now >= confirm_at) {
      struct news news = {0};
      goes_on = ask(self, &news, run_confirm);
      uint64_t spent = now_ms() - now;
      confirm_at = now_ms() + (spent * CONFIRM_SHARE > CONFIRM_MS ? spent * CONFIRM_SHARE : CONFIRM_MS);
      continue;
    }
    struct epoll_event event;
    int count = epoll_wait(self->epoll_fd, &event, 1, 0);
    if (count == 0) {
      atomic_store(&beat_ms, now);
      count = epoll_wait(self->epoll_fd, &event, 1, (int)(confirm_at - now));
    }
    if (count < 0 && errno != EINTR) break;
    if (count != 1) continue;
    goes_on = event.data.u64 != STOP_SERIAL && attend(self, event.data.u64);
  }
  return NULL;
}

static void release(struct watcher *self) {
  if (self->epoll_fd >= 0) raw_close(self->epoll_fd);
  if (self->stop_fd >= 0) raw_close(self->stop_fd);
  page_free(self, round_up(sizeof *self, page_bytes()));
}

void watcher_start(void) {
  if (watcher != NULL) return;
  struct watcher *fresh = page_alloc(round_up(sizeof *fresh, page_bytes()));
  if (fresh == NULL) return;
  fresh->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  fresh->stop_fd = eventfd(0, EFD_CLOEXEC);
  sigset_t mask;
  core_lock(&mask);
  fresh->generation = keeper_generation();
  core_unlock(&mask);
  struct epoll_event stop = {.events = EPOLLIN, .data.u64 = STOP_SERIAL};
  /* The handler is the program's: it gets a stack as any thread of the program. */
  bool good = fresh->epoll_fd >= 0 && fresh->stop_fd >= 0 &&
              epoll_ctl(fresh->epoll_fd, EPOLL_CTL_ADD, fresh->stop_fd, &stop) == 0 &&
              pthread_create(&fresh->thread, NULL, watcher_main, fresh) == 0;
  if (good)
    watcher = fresh;
  else
    release(fresh);
}

struct watcher *watcher_detach(void) {
  struct watcher *self = watcher;
  watcher = NULL;
  return self;
}

void watcher_stop(struct watcher *self) {
  if (self == NULL) return;
  eventfd_write(self->stop_fd, 1);
  pthread_join(self->thread, NULL);
  release(self);
}

/* ---- watches (on the keeper) */

/* Descriptors are for watches only up to half of the table: a mapping that is made needs some, too. */
static bool worth_keeping(int fd) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return false;
  return limit.rlim_cur == RLIM_INFINITY || (rlim_t)fd < limit.rlim_cur / 2;
}

static int reopen(int fd) {
  char path[48];
  append_number(append_text(path, "/proc/thread-self/fd/"), (unsigned)fd);
  return raw_open(path, O_RDWR | O_CLOEXEC | O_NOCTTY, 0);
}

static struct mapdirect_wire_lease named_lease(const struct mapping *mapping) {
  struct mapdirect_wire_lease lease = {.version = MAPDIRECT_WIRE_VERSION, .lease_id = mapping->lease_id};
  memcpy(lease.token, mapping->lease_token, sizeof lease.token);
  return lease;
}

static struct keeper_fd begin_watch(int fd, struct mapdirect_wire_lease lease, uint64_t serial) {
  if (worth_keeping(fd) && ioctl(fd, (unsigned long)MAPDIRECT_IOCTL_WATCH, &lease) == 0) {
    struct epoll_event event = {.events = EPOLLPRI, .data.u64 = serial};
    /* A watch that cannot be polled is still good for END. */
    if (watcher != NULL) epoll_ctl(watcher->epoll_fd, EPOLL_CTL_ADD, fd, &event);
    return keeper_fd_of(fd);
  }
  raw_close(fd);
  return KEEPER_NO_FD;
}

/* Mappings that wait for their watch, the oldest first; and the one whose watch is being made. Guarded by the lock. */
static struct {
  struct mapping *head;
  struct mapping *tail;
} unwatched;

void watch_later(struct mapping *mapping) {
  mapping->watch_next = NULL;
  mapping->watch_at_ms = now_ms() + WATCH_AFTER_MS;
  if (unwatched.head == NULL)
    unwatched.head = mapping;
  else
    unwatched.tail->watch_next = mapping;
  unwatched.tail = mapping;
}

void watch_never(const struct mapping *mapping) {
  struct mapping *before = NULL;
  for (struct mapping *at = unwatched.head; at != NULL; before = at, at = at->watch_next) {
    if (at != mapping) continue;
    if (before == NULL)
      unwatched.head = at->watch_next;
    else
      before->watch_next = at->watch_next;
    if (unwatched.tail == at) unwatched.tail = before;
    return;
  }
}

uint64_t watch_due_ms(void) {
  if (unwatched.head == NULL) return WATCH_NOTHING;
  uint64_t now = now_ms();
  return unwatched.head->watch_at_ms <= now ? 0 : unwatched.head->watch_at_ms - now;
}

void watch_begin(void) {
  sigset_t mask;
  core_lock(&mask);
  struct mapping *mapping = unwatched.head;
  if (mapping == NULL) {
    core_unlock(&mask);
    return;
  }
  watch_never(mapping);
  /* It may die from here on, but is not freed before its `retire` has been run: by this thread, later. */
  int lease_fd = keeper_fd_number(mapping->lease_fd);
  uint64_t serial = mapping->serial;
  struct mapdirect_wire_lease lease = named_lease(mapping);
  struct identity identity = mapping->identity;
  core_unlock(&mask);
  struct identity before = identity_assume(identity);
  int fd = reopen(lease_fd);
  identity_assume(before);
  /* A program that has given up its rights since may not open the file again. Then the lease's own description has to
   * do: if somebody unmaps behind the library's back, the lease ends within two seconds and not at once. */
  bool apart = fd >= 0 || (errno != EACCES && errno != EPERM);
  struct keeper_fd watch_fd = KEEPER_NO_FD;
  if (fd >= 0 || !apart) watch_fd = begin_watch(fd >= 0 ? fd : lease_fd, lease, serial);
  core_lock(&mask);
  mapping->watch_fd = watch_fd;
  mapping->lease_fd = KEEPER_NO_FD;
  uint32_t unwatched_state = IO_UNWATCHED;
  if (fd >= 0 && keeper_fd_is_one(watch_fd) && watcher != NULL && mapping->io != NULL)
    atomic_compare_exchange_strong(&mapping->io->state, &unwatched_state, IO_WATCHED);
  core_unlock(&mask);
  /* From here on the anchor alone keeps the lease description: it lives exactly as long as the mapping. */
  if (apart) raw_close(lease_fd);
}

/* ---- in a forked child */

struct find_path {
  uintptr_t anchor;
  char *path; /* PATH_MAX bytes */
};

static bool see_anchor(void *context, const struct area *area) {
  struct find_path *find = context;
  if (area->end <= find->anchor) return true;
  if (area->start <= find->anchor && strlen(area->name) < PATH_MAX) strcpy(find->path, area->name);
  return false;
}

/* The file of an anchor once more: it has no descriptor here. By its place in the address space, which only
 * the privileged may; else by its path, if that still leads to it. O_PATH first, so that whatever else is at
 * that path is not disturbed. */
static int open_by_anchor(const struct mapping *mapping, char *path) {
  for (int by_path = 0; by_path < 2; by_path++) {
    if (by_path == 0) {
      char *at = append_hex(append_text(path, "/proc/self/map_files/"), mapping->anchor);
      append_hex(append_text(at, "-"), mapping->anchor + page_bytes());
    } else {
      struct find_path find = {.anchor = mapping->anchor, .path = path};
      path[0] = 0;
      if (each_area(see_anchor, &find) != 0 || path[0] != '/') return -1;
    }
    int found = raw_open(path, O_PATH | O_CLOEXEC, 0);
    if (found < 0) continue;
    struct stat status;
    bool same = fstat(found, &status) == 0 && S_ISREG(status.st_mode) && status.st_dev == mapping->device &&
                status.st_ino == mapping->inode;
    int fd = same ? reopen(found) : -1;
    raw_close(found);
    if (fd >= 0) return fd;
  }
  return -1;
}

/* With the lock held: a mapping that nobody has tried to watch. */
static struct mapping *never_watched(void) {
  for (size_t index = 0; index < table_count(); index++) {
    const struct piece *piece = table_at(index);
    if (piece->state == PIECE_ANCHOR && !piece->mapping->watch_tried) return piece->mapping;
  }
  return NULL;
}

static void run_watch_again(struct request *request) {
  char *path = page_alloc(round_up(PATH_MAX, page_bytes()));
  request->error = 0;
  if (path == NULL) return;
  watcher_start();
  for (;;) {
    sigset_t mask;
    core_lock(&mask);
    struct mapping *mapping = never_watched();
    struct mapping copy = {0};
    if (mapping != NULL) {
      mapping->watch_tried = true;
      copy = *mapping;
    }
    core_unlock(&mask);
    if (mapping == NULL) break;
    int fd = open_by_anchor(&copy, path);
    if (fd < 0) continue;
    struct keeper_fd watch_fd = begin_watch(fd, named_lease(&copy), copy.serial);
    if (!keeper_fd_is_one(watch_fd)) continue;
    core_lock(&mask);
    size_t index = table_empty() ? 0 : table_lower(copy.anchor);
    bool there =
        index < table_count() && table_at(index)->mapping == mapping && mapping->serial == copy.serial;
    if (there) {
      mapping->watch_fd = watch_fd;
      mapping->keeper_generation = keeper_generation();
    }
    core_unlock(&mask);
    if (!there) watch_close(watch_fd);
  }
  page_free(path, round_up(PATH_MAX, page_bytes()));
}

void watch_forget(void) {
  watcher = NULL;
  unwatched.head = NULL;
  unwatched.tail = NULL;
}

/* With the lock held. Nobody waits for it: what happened meanwhile is seen when the watch begins. */
void watch_all_again(void) {
  watch_again.run = run_watch_again;
  keeper_push(&watch_again);
}
