/*
 * What happens to direct mappings after they were made: munmap, mremap, something else mapped on top,
 * madvise, mlock.
 *
 * The system call and the change of the table happen under one hold of the lock, so that no other thread's
 * mapping can take the addresses in between and then be taken for direct.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include "syscall.h"

/* ---- the end of a mapping */

static void run_retire(struct request *request) {
  struct mapping *mapping = (struct mapping *)(void *)((char *)request - offsetof(struct mapping, retire));
  if (!mapping->forked) {
    /* The kernel tells the daemon, too (RELEASE, when the last reference to the description is gone, which is
     * now), but queues that behind other background requests; a truncate of ours that follows must find the
     * lease gone. */
    struct keeper_fd fd = keeper_fd_is_one(mapping->watch_fd) ? mapping->watch_fd : mapping->lease_fd;
    watch_end_lease(fd, mapping->lease_id, false);
  }
  if (keeper_fd_is_one(mapping->watch_fd)) watch_close(mapping->watch_fd);
  if (keeper_fd_is_one(mapping->lease_fd)) raw_close(keeper_fd_number(mapping->lease_fd));
  request->error = 0;
}

void change_bury(struct mapping *dead) {
  for (; dead != NULL; dead = dead->next) {
    if (dead->anchor != 0) {
      raw_munmap(dead->anchor, page_bytes());
      table_remove_anchor(dead->anchor);
    }
    if (dead->shadow != 0) raw_munmap(dead->shadow, dead->shadow_bytes);
    dead->shadow = 0;
    watch_never(dead);
    if (dead->io != NULL) {
      atomic_store(&dead->io->state, IO_ENDED);
      dead->io = NULL;
    }
    /* Descriptors of a keeper that has ended were closed with it. */
    if (dead->keeper_generation != keeper_generation()) dead->watch_fd = dead->lease_fd = KEEPER_NO_FD;
    if (!keeper_fd_is_one(dead->watch_fd) && !keeper_fd_is_one(dead->lease_fd)) continue;
    dead->retiring = true;
    dead->retire.run = run_retire;
    keeper_push(&dead->retire);
  }
}

static void free_all(struct mapping *dead) {
  sigset_t mask;
  core_lock(&mask);
  while (dead != NULL) {
    struct mapping *next = dead->next;
    mapping_free(dead);
    dead = next;
  }
  core_unlock(&mask);
}

void change_mourn(struct mapping *dead) {
  if (dead == NULL) return;
  keeper_kick(); /* also to let it see that it may end */
  for (struct mapping *mapping = dead; mapping != NULL; mapping = mapping->next) {
    if (mapping->retiring) keeper_wait(&mapping->retire);
  }
  free_all(dead);
}

/* ---- anchors in the way */

/* Another place for an anchor, outside [start, end), and not where the table has what a raw munmap took. */
static long place_outside(uintptr_t start, uintptr_t end) {
  enum { ATTEMPTS = 64 };
  uintptr_t inside[ATTEMPTS];
  size_t count = 0;
  long place = -ENOMEM;
  while (count < ATTEMPTS) {
    place = raw_mmap(0, page_bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw_failed(place)) break;
    uintptr_t at = (uintptr_t)place;
    if ((at < start || at >= end) && !table_occupied(at, at + page_bytes())) break;
    inside[count++] = at; /* hold it, so that the next one is another */
    place = -ENOMEM;
  }
  while (count > 0)
    raw_munmap(inside[--count], page_bytes());
  return place;
}

/* The program does not know of anchors: it may unmap or map over one that lies in a gap of its own mappings.
 */
static int move_anchors_out(uintptr_t start, uintptr_t end) {
  for (;;) {
    size_t index = table_empty() ? 0 : table_lower(start);
    while (index < table_count() && table_at(index)->state != PIECE_ANCHOR)
      index++;
    if (index == table_count() || table_at(index)->start >= end) return 0;
    struct piece anchor = *table_at(index);
    long place = place_outside(start, end);
    if (raw_failed(place)) return (int)place;
    long moved =
        raw_mremap(anchor.start, page_bytes(), page_bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, (uintptr_t)place);
    if (raw_failed(moved)) {
      raw_munmap((uintptr_t)place, page_bytes());
      return (int)moved;
    }
    table_remove_anchor(anchor.start);
    anchor.start = (uintptr_t)moved;
    anchor.end = anchor.start + page_bytes();
    table_insert(&anchor, 1);
  }
}

int change_replace(uintptr_t start, uintptr_t end, int (*act)(void *context), void *context,
                   struct mapping **dead) {
  int error = table_reserve(3); /* two for splits, one for an anchor between its two places */
  if (error == 0) error = move_anchors_out(start, end);
  if (error == 0) error = act(context);
  if (error == 0) table_cut(start, end, dead);
  return error;
}

/* ---- munmap */

struct unmap_context {
  uintptr_t start;
  size_t length;
};

static int act_unmap(void *context) {
  const struct unmap_context *unmap = context;
  return raw_munmap(unmap->start, unmap->length);
}

int core_unmap(uintptr_t start, size_t length) {
  if (!is_aligned(start, page_bytes()) || length == 0) return -EINVAL;
  if (length > UINTPTR_MAX - start - page_bytes()) return -EINVAL;
  struct unmap_context context = {.start = start, .length = length};
  struct mapping *dead = NULL;
  sigset_t mask;
  core_lock(&mask);
  int error = change_replace(start, start + round_up(length, page_bytes()), act_unmap, &context, &dead);
  change_bury(dead);
  core_unlock(&mask);
  change_mourn(dead);
  return error;
}

static int act_detach(void *context) {
  const struct unmap_context *range = context;
  return inert_place(range->start, range->length);
}

int core_detach(uintptr_t start, size_t length) {
  if (!is_aligned(start, page_bytes()) || length == 0) return -EINVAL;
  if (length > UINTPTR_MAX - start - page_bytes()) return -EINVAL;
  struct unmap_context context = {.start = start, .length = round_up(length, page_bytes())};
  struct mapping *dead = NULL;
  sigset_t mask;
  core_lock(&mask);
  int error = change_replace(start, start + context.length, act_detach, &context, &dead);
  change_bury(dead);
  core_unlock(&mask);
  change_mourn(dead);
  return error;
}

struct end_request {
  struct request base;
  uintptr_t start;
};

static void run_end(struct request *base) {
  const struct end_request *end = (struct end_request *)(void *)base;
  sigset_t mask;
  core_lock(&mask);
  struct keeper_fd fd = KEEPER_NO_FD;
  uint64_t lease_id = 0;
  size_t index = table_empty() ? 0 : table_lower(end->start);
  if (index < table_count() && table_at(index)->start == end->start) {
    const struct mapping *mapping = table_at(index)->mapping;
    if (!mapping->forked) fd = keeper_fd_is_one(mapping->watch_fd) ? mapping->watch_fd : mapping->lease_fd;
    lease_id = mapping->lease_id;
  }
  core_unlock(&mask);
  base->error = !keeper_fd_is_one(fd) ? 0 : watch_end_lease(fd, lease_id, true);
}

int core_unmap_unchanged(uintptr_t start, size_t length) {
  /* First, because the kernel tells the daemon of the anchor's end as soon as it is unmapped. */
  struct end_request *end = page_alloc(page_bytes()); /* not on the stack: see map.c */
  if (end != NULL) {
    end->base.run = run_end;
    end->start = start;
    keeper_run(&end->base);
    page_free(end, page_bytes());
  }
  return core_unmap(start, length);
}

/* ---- mmap(MAP_FIXED) of something else on top */

struct over_context {
  void *addr;
  size_t length;
  int prot;
  int flags;
  int fd;
  off_t offset;
};

static int act_over(void *context) {
  const struct over_context *over = context;
  long result =
      raw_mmap((uintptr_t)over->addr, over->length, over->prot, over->flags, over->fd, over->offset);
  return raw_failed(result) ? (int)result : 0;
}

int core_map_over(void *addr, size_t length, int prot, int flags, int fd, off_t offset, void **result) {
  struct over_context context = {
      .addr = addr, .length = length, .prot = prot, .flags = flags, .fd = fd, .offset = offset};
  uintptr_t start = (uintptr_t)addr;
  if (!is_aligned(start, page_bytes()) || length == 0) return -EINVAL;
  if (length > UINTPTR_MAX - start - page_bytes()) return -ENOMEM;
  struct mapping *dead = NULL;
  sigset_t mask;
  core_lock(&mask);
  int error = change_replace(start, start + round_up(length, page_bytes()), act_over, &context, &dead);
  change_bury(dead);
  core_unlock(&mask);
  change_mourn(dead);
  if (error == 0) *result = addr;
  return error;
}

/* ---- mremap */

struct remap_request {
  struct request base;
  uintptr_t old;
  size_t old_length;
  size_t new_length;
  int flags;
  uintptr_t new;
  struct mapping *dead;
};

/* The mapping whose pieces cover [start, end) without a gap; NULL when there is none. */
static struct mapping *sole_mapping(uintptr_t start, uintptr_t end) {
  if (table_empty()) return NULL;
  size_t index = table_lower(start);
  struct mapping *mapping = NULL;
  for (uintptr_t at = start; at < end; index++) {
    if (index == table_count()) return NULL;
    const struct piece *piece = table_at(index);
    if (piece->start > at || piece->state == PIECE_ANCHOR) return NULL;
    if (mapping != NULL && piece->mapping != mapping) return NULL;
    mapping = piece->mapping;
    at = piece->end;
  }
  return mapping;
}

static int reserve(uintptr_t start, size_t length, int how) {
  long result = raw_mmap(start, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | how, -1, 0);
  return raw_failed(result) ? (int)result : 0;
}

/* Whether a refused mremap leaves the target as it was: since Linux 6.17 it looks before it unmaps. */
static bool refusal_keeps_target(void) {
  struct utsname kernel;
  if (uname(&kernel) != 0) return false;
  char *end = NULL;
  unsigned long major = strtoul(kernel.release, &end, 10);
  unsigned long minor = *end == '.' ? strtoul(end + 1, NULL, 10) : 0;
  return major > 6 || (major == 6 && minor >= 17);
}

/*
 * Move memory onto a reservation. The program's mprotect may have split it into several VMAs, which mremap
 * refuses with EFAULT (before 6.17, and for device-dax since then): halve until each part lies in one; they are
 * multiples of `unit`. An older kernel has unmapped the target by then, so the reservation is renewed; whoever
 * took the place in between keeps it, and the move fails. *moved counts bytes.
 */
static int move_memory(uintptr_t from, size_t length, uintptr_t to, size_t unit, size_t *moved) {
  long result = raw_mremap(from, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to);
  if (!raw_failed(result)) {
    *moved += length;
    return 0;
  }
  if (result != -EFAULT || length <= unit) return (int)result;
  int error = refusal_keeps_target() ? 0 : reserve(to, length, MAP_FIXED_NOREPLACE);
  /* Somebody is in it: refuse rather than overwrite. */
  if (error != 0) return error == -EEXIST ? -ENOMEM : error;
  size_t half = round_up(length / 2, unit);
  error = move_memory(from, half, to, unit, moved);
  if (error == 0) error = move_memory(from + half, length - half, to + half, unit, moved);
  return error;
}

/* A hole cannot be moved (mremap drops the userfaultfd registration): make it there, drop it here. `was`: where its rights were
 * looked up. */
static int move_piece(enum piece_state state, uintptr_t from, size_t length, uintptr_t to,
                      const struct mapping *mapping, const struct spans *rights, uintptr_t was,
                      size_t *moved) {
  size_t unit = state == PIECE_DIRECT ? mapping->map_alignment : page_bytes();
  if (state != PIECE_HOLE) return move_memory(from, length, to, unit, moved);
  int error = hole_place(to, length, mapping->prot, MAP_FIXED);
  if (error == 0) error = rights_apply(rights, was, to, length, mapping->prot | PROT_READ);
  if (error != 0) return error;
  raw_munmap(from, length);
  *moved += length;
  return 0;
}

static int act_reserve(void *context) {
  const struct unmap_context *range = context;
  return reserve(range->start, range->length, MAP_FIXED);
}

/* Move [old, old + length) to `new`, both in the address space and in the table. With the lock held. */
static int move_range(const struct remap_request *remap, size_t length, struct mapping *mapping,
                      struct mapping **dead) {
  uintptr_t old = remap->old;
  uintptr_t new = remap->new;
  struct unmap_context target = {.start = new, .length = length};
  int error = change_replace(new, new + length, act_reserve, &target, dead);
  if (error != 0) return error;

  size_t count = 0;
  for (size_t index = table_lower(old); index < table_count() && table_at(index)->start < old + length;
       index++)
    count++;
  size_t run_bytes = round_up(count * sizeof(struct piece), page_bytes());
  struct piece *run = page_alloc(run_bytes);
  error = run == NULL ? -ENOMEM : table_reserve(count + 1);
  size_t moved = 0; /* bytes from old */
  struct spans rights = {0};
  rights_look_up(&rights);
  if (error == 0) {
    memcpy(run, table_at(table_lower(old)), count * sizeof(struct piece));
    for (size_t at = 0; at < count; at++) { /* clip to the range, then shift */
      struct piece *piece = &run[at];
      if (piece->start < old) {
        piece->offset += old - piece->start;
        if (piece->state == PIECE_DIRECT) piece->physical += old - piece->start;
        piece->start = old;
      }
      if (piece->end > old + length) piece->end = old + length;
      piece->start = piece->start - old + new;
      piece->end = piece->end - old + new;
    }
    for (size_t at = 0; at < count && error == 0; at++) {
      error =
          move_piece((enum piece_state)run[at].state, run[at].start - new + old, run[at].end - run[at].start,
                     run[at].start, mapping, &rights, run[at].start - new + old, &moved);
    }
  }
  if (error == 0) {
    table_insert(run, count); /* before the cut, so that the mapping never looks dead */
    table_cut(old, old + length, dead);
  } else {
    for (size_t at = 0; at < count && moved > 0; at++) { /* put back what moved */
      size_t part = run[at].end - run[at].start < moved ? run[at].end - run[at].start : moved;
      uintptr_t home = run[at].start - new + old;
      size_t returned = 0;
      moved -= part;
      /* Another thread may have something there by now: that stays, and this is lost. */
      if (reserve(home, part, MAP_FIXED_NOREPLACE) == 0) {
        move_piece((enum piece_state)run[at].state, run[at].start, part, home, mapping, &rights, home,
                   &returned);
        if (returned < part) raw_munmap(home + returned, part - returned);
      }
      if (returned < part) table_cut(home + returned, home + part, dead);
    }
    raw_munmap(new, length);
  }
  spans_free(&rights);
  page_free(run, run_bytes);
  return error;
}

static int remap_locked(struct remap_request *remap) {
  uintptr_t page = page_bytes();
  struct mapping *mapping = sole_mapping(remap->old, remap->old + remap->old_length);
  if (mapping == NULL) return -EFAULT;
  bool fixed = (remap->flags & MREMAP_FIXED) != 0;
  if (fixed) {
    bool apart = remap->new + remap->new_length <= remap->old || remap->old + remap->old_length <= remap->new;
    if (!is_aligned(remap->new, page) || !apart || remap->new + remap->new_length < remap->new)
      return -EINVAL;
    if (!is_aligned(remap->new - remap->old, mapping->map_alignment)) return -EINVAL;
  }
  if (remap->new_length < remap->old_length) {
    struct unmap_context tail = {.start = remap->old + remap->new_length,
                                 .length = remap->old_length - remap->new_length};
    int error = change_replace(tail.start, tail.start + tail.length, act_unmap, &tail, &remap->dead);
    if (error != 0) return error;
  }
  return fixed ? move_range(remap, remap->new_length, mapping, &remap->dead) : 0;
}

static void run_remap(struct request *base) {
  struct remap_request *remap = (struct remap_request *)(void *)base;
  sigset_t mask;
  core_lock(&mask);
  base->error = remap_locked(remap);
  change_bury(remap->dead);
  core_unlock(&mask);
}

int core_remap(uintptr_t old, size_t old_length, size_t new_length, int flags, uintptr_t new, void **result) {
  uintptr_t page = page_bytes();
  if ((flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED)) != 0)
    return -EINVAL; /* MREMAP_DONTUNMAP would leave a second copy */
  if ((flags & MREMAP_FIXED) != 0 && (flags & MREMAP_MAYMOVE) == 0) return -EINVAL;
  if (!is_aligned(old, page) || old_length == 0 || new_length == 0) return -EINVAL;
  if (old_length > UINTPTR_MAX - old - page || new_length > SIZE_MAX - page) return -EINVAL;
  old_length = round_up(old_length, page);
  new_length = round_up(new_length, page);
  if (new_length > old_length) return -EINVAL;             /* never beyond the grant */
  struct remap_request *remap = page_alloc(sizeof *remap); /* not on the stack: see map.c */
  if (remap == NULL) return -ENOMEM;
  remap->base.run = run_remap;
  remap->old = old;
  remap->old_length = old_length;
  remap->new_length = new_length;
  remap->flags = flags;
  remap->new = new;
  int error = keeper_run(&remap->base);
  change_mourn(remap->dead);
  page_free(remap, sizeof *remap);
  if (error == 0) *result = (void *)((flags & MREMAP_FIXED) != 0 ? new : old);
  return error;
}

struct move_context {
  uintptr_t old;
  size_t old_length;
  size_t new_length;
  int flags;
  uintptr_t new;
  long result;
};

static int act_move(void *context) {
  struct move_context *move = context;
  move->result = raw_mremap(move->old, move->old_length, move->new_length, move->flags, move->new);
  return raw_failed(move->result) ? (int)move->result : 0;
}

int core_remap_any(uintptr_t old, size_t old_length, size_t new_length, int flags, uintptr_t new,
                   void **result) {
  uintptr_t page = page_bytes();
  uintptr_t old_end = old + (old_length == 0 ? 1 : old_length);
  if (old_end < old) return -EINVAL;
  sigset_t mask;
  core_lock(&mask);
  struct mapping *dead = NULL;
  bool from_direct = table_occupied(old, old_end);
  bool moves = old_length >= new_length && new_length > 0 && (flags & MREMAP_DONTUNMAP) == 0;
  if (from_direct && !moves) { /* what a direct mapping does not do, an ordinary one does */
    core_unlock(&mask);
    int failure = automatic_revert_all(old, old_end);
    if (failure != 0) return failure;
    core_lock(&mask);
    from_direct = table_occupied(old, old_end);
  }
  if (from_direct) {
    core_unlock(&mask);
    return core_remap(old, old_length, new_length, flags, new, result);
  }
  /* Other memory: the kernel's mremap, which may land on a direct mapping. */
  struct move_context move = {
      .old = old, .old_length = old_length, .new_length = new_length, .flags = flags, .new = new};
  int error;
  bool onto = (flags & MREMAP_FIXED) != 0 && is_aligned(new, page) && new_length > 0;
  /* Without a sum that could overflow. */
  if (onto && new_length >= UINTPTR_MAX - new - page) onto = false;
  if (onto) onto = table_occupied(new, new + round_up(new_length, page));
  if (onto)
    error = change_replace(new, new + round_up(new_length, page), act_move, &move, &dead);
  else
    error = act_move(&move);
  change_bury(dead);
  core_unlock(&mask);
  change_mourn(dead);
  if (error == 0) *result = (void *)move.result;
  return error;
}

/* ---- madvise */

#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

/* Advice that would take the write protection off a hole, or let a child inherit it without. What it asks for
 * is so already: a hole's pages are zeros that take no memory. */
static bool harms_hole(int advice) {
  switch (advice) {
  case MADV_DONTNEED:
  case MADV_DONTNEED_LOCKED:
  case MADV_FREE:
  case MADV_REMOVE:
  case MADV_DOFORK:
  case MADV_WIPEONFORK:
  case MADV_KEEPONFORK:
  case MADV_GUARD_REMOVE:
    return true;
  default:
    return false;
  }
}

/* One call of the kernel's for [at, upto), which lies in `piece` or, if that is NULL, in no direct mapping. */
typedef int (*piecewise)(uintptr_t at, uintptr_t upto, const struct piece *piece, int argument);

/* As madvise(2) and mlock(2) do: over gaps, which are told at the end, and up to the first other error. */
static int for_each_piece(uintptr_t start, uintptr_t end, piecewise act, int argument) {
  bool unmapped = false;
  for (uintptr_t at = start; at < end;) {
    struct piece found;
    uintptr_t upto = end;
    const struct piece *piece = NULL;
    if (table_find(at, &found, NULL) && found.start < end) {
      if (found.start <= at) piece = &found;
      upto = piece != NULL ? found.end : found.start;
      if (upto > end) upto = end;
    }
    int error = act(at, upto, piece, argument);
    if (error == -ENOMEM)
      unmapped = true;
    else if (error != 0)
      return error;
    at = upto;
  }
  return unmapped ? -ENOMEM : 0;
}

static int see_process(void *context, const char *line) {
  uint64_t *process = context;
  if (line == NULL || strncmp(line, "Pid:\t", 5) != 0) return LINE_GO_ON;
  parse_number(line + 5, 10, process);
  return LINE_STOP;
}

bool core_advises_itself(int pidfd, int advice) {
  if (advice != MADV_GUARD_INSTALL && !harms_hole(advice)) return false;
  /* Names for the caller itself, where the kernel has them. */
  if (pidfd < 0) return raw_syscall(SYS_process_madvise, pidfd, 0, 0, advice, 0, 0) == 0;
  char name[32];
  append_number(append_text(name, "fdinfo/"), (unsigned)pidfd);
  uint64_t process = 0;
  each_line_of_process(name, 256, see_process, &process);
  return process == (uint64_t)getpid();
}

static int advise(uintptr_t at, uintptr_t upto, const struct piece *piece, int advice) {
  /* MADV_REMOVE punches the file: a change of the block map under our own lease, and the file would be the
   * region. */
  if (piece != NULL && advice == MADV_REMOVE) return -ETXTBSY;
  /* A guard would be lost with the page when the lease is broken, and takes a hole's protection away when it goes. */
  if (piece != NULL && advice == MADV_GUARD_INSTALL) return -EINVAL;
  if (piece != NULL && piece->state == PIECE_HOLE && harms_hole(advice)) return 0;
  return raw_madvise(at, upto - at, advice);
}

int core_madvise(uintptr_t start, size_t length, int advice) {
  if (!is_aligned(start, page_bytes()) || length > UINTPTR_MAX - start - page_bytes()) return -EINVAL;
  uintptr_t end = start + round_up(length, page_bytes());
  if (advice == MADV_REMOVE || advice == MADV_GUARD_INSTALL) {
    int error = automatic_revert_all(start, end);
    if (error != 0) return error;
  }
  return for_each_piece(start, end, advise, advice);
}

/* ---- mlock */

#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif

/* The kernel puts pages of private memory in place by storing to them, which a hole refuses. Its pages are zeros that
 * take no memory: there is nothing to put in place. */
static int lock_pages(uintptr_t at, uintptr_t upto, const struct piece *piece, int flags) {
  if (piece != NULL && piece->state == PIECE_HOLE) flags |= (int)MLOCK_ONFAULT;
  return flags == 0 ? raw_mlock(at, upto - at) : raw_mlock2(at, upto - at, flags);
}

int core_mlock(uintptr_t start, size_t length, int flags) {
  uintptr_t first = start & ~(page_bytes() - 1);
  if (length > UINTPTR_MAX - start - page_bytes()) return -EINVAL;
  return for_each_piece(first, round_up(start + length, page_bytes()), lock_pages, flags);
}
