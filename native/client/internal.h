/*
 * Shared by the parts of the client library. Floors, each using only what is above it:
 *
 *     syscall.h   system calls without libc in between
 *     lines.c     files of /proc, line by line
 *     table.c     which addresses are direct mappings; the one lock
 *     keeper.c    the thread that owns every descriptor
 *     mount.c     which files are ours, and where their region is
 *     hole.c      pages that read zeros and refuse stores (userfaultfd), pages past the end
 *     map.c       asking for a lease and building the mapping
 *     change.c    munmap, mremap, MAP_FIXED on top, madvise, mlock
 *     break.c     leases that are being broken: watching, revocation
 *     relay.c     what is being broken, for threads of the program
 *     persist.c   cache-line flush, msync
 *     stats.c     what was counted
 *     api.c       the public functions
 *     auto.c      direct mappings for programs that ask for ordinary ones (only in libmapdirect_preload.so)
 *     io.c        pread(2) and pwrite(2) from direct mappings (there, too)
 *     preload.c   mmap(2) and its relatives, interposed (only there, too)
 *
 * Rules of the house:
 * - No malloc and no stdio: mmap and munmap are called by allocators that hold their own locks. Memory comes
 * from the kernel directly (page_alloc).
 * - The lock is held with every signal blocked, so that a handler may unmap.
 * - Nobody waits for the keeper while holding the lock: the keeper takes it.
 * - Internal functions return 0 or a negative errno; only api.c and preload.c touch errno.
 */
#ifndef MAPDIRECT_INTERNAL_H
#define MAPDIRECT_INTERNAL_H

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "mapdirect.h"
#include "wire.h"

_Static_assert(MAP_DIRECT == MAPDIRECT_WIRE_MAP_DIRECT, "the flag is the same on both sides");
_Static_assert(MAPDIRECT_SEAL == MAPDIRECT_WIRE_LEASE_KIND_SEAL, "lease kinds are the wire's");
_Static_assert(MAPDIRECT_BREAKABLE == MAPDIRECT_WIRE_LEASE_KIND_BREAKABLE, "lease kinds are the wire's");
_Static_assert(MAPDIRECT_HOLE == MAPDIRECT_WIRE_EXTENT_STATE_HOLE, "extent states are the wire's");
_Static_assert(MAPDIRECT_UNWRITTEN == MAPDIRECT_WIRE_EXTENT_STATE_UNWRITTEN, "extent states are the wire's");
_Static_assert(MAPDIRECT_WRITTEN == MAPDIRECT_WIRE_EXTENT_STATE_WRITTEN, "extent states are the wire's");
_Static_assert(MAPDIRECT_SHARED == MAPDIRECT_WIRE_EXTENT_STATE_SHARED, "extent states are the wire's");

/* Newer than the headers of the build machine. */
#ifndef MAP_SHARED_VALIDATE
#define MAP_SHARED_VALIDATE 0x03
#endif
#ifndef MAP_SYNC
#define MAP_SYNC 0x80000
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
/* mmap and mmap64 are one function: 64-bit machines only. */
_Static_assert(sizeof(off_t) == 8 && sizeof(void *) == 8, "a 64-bit machine");
#define MAP_TYPE_BITS 0x0f

/* Bounds. A mapping in more pieces is refused with ENOMEM: vm.max_map_count is 65,530 for the whole process.
 */
#define PIECES_MAX 16384u
/* Each 2 MiB of a hole costs a page table: 64 GiB, 128 MiB. */
#define HOLE_BYTES_MAX (64ull << 30)
#define HUGE_PAGE_BYTES (2ull << 20)

/* ------------------------------------------------------------------------------------------------ lines.c */

/* Digits of the base (at most 16, lower case) from `at` on; returns what is behind them. */
const char *parse_number(const char *at, unsigned base, uint64_t *value);
/* The same up to and with what has to end them. False, and *at means nothing any more, if something else does. */
bool parse_field(const char **at, unsigned base, char end, uint64_t *value);

/* Gets a line without its end, or NULL for one that is longer than it may be. Returns one of these, or a negative errno. */
enum { LINE_STOP, LINE_GO_ON };
typedef int line_seen(void *context, const char *line);
/*
 * Each line, of up to `longest` bytes, of what /proc says of this process under `name`. 0; or what stopped it: -EIO for a last
 * line without an end, too, and for a file without any line: it does not say that there is nothing, but says nothing.
 */
int each_line_of_process(const char *name, size_t longest, line_seen *see, void *context);

/* ------------------------------------------------------------------------------------------------ table.c */

enum piece_state {
  PIECE_DIRECT,  /* MAP_SHARED of the region */
  PIECE_HOLE,    /* anonymous, write-protected by userfaultfd */
  PIECE_BEYOND,  /* past the end of an empty memfd */
  PIECE_REVOKED, /* the same; what was there was taken away */
  PIECE_CACHED,  /* revoked, and then mapped through the page cache */
  PIECE_ANCHOR,  /* the PROT_NONE page of the lease description; not part of what the program asked for */
};

/* A run of addresses of one kind. Guarded by the lock; readers without it go through table_find(). */
struct piece {
  uintptr_t start;
  uintptr_t end;
  uint64_t offset;   /* in the file, of start */
  uint64_t physical; /* in the region, of start; DIRECT only */
  struct mapping *mapping;
  uint64_t state; /* enum piece_state */
};

/* Work for the keeper. It lies inside the struct of whoever waits for it. */
struct request {
  struct request *next;
  void (*run)(struct request *request);
  _Atomic uint32_t done;
  int error; /* result of run: 0 or a negative errno */
};

/* A thread's file-system identity: it may have one of its own (setfsuid), and the keeper acts in its place. */
struct identity {
  uid_t fsuid;
  gid_t fsgid;
};

/* A number of the keeper's descriptor table. To other threads it would mean another file, so what it is only the keeper gets
 * to know: see keeper_fd_number(). */
struct keeper_fd {
  int hidden;
};
#define KEEPER_NO_FD ((struct keeper_fd){.hidden = -1})
static inline bool keeper_fd_is_one(struct keeper_fd fd) {
  return fd.hidden >= 0;
}

/* What io.c and a mapping that it made share. */
enum { IO_UNWATCHED, IO_WATCHED, IO_ENDED };
struct io_lease {
  _Atomic uint32_t state;
  _Atomic uint32_t users;   /* copies under way */
  _Atomic uint32_t changed; /* something was stored */
};

/* What its pages are about to become, or are. */
enum { LEAVES_NOT, LEAVES_FOR_SIGBUS, LEAVES_FOR_ORDINARY };

/* One successful mapdirect_map(). Fields above the line never change after publication. */
struct mapping {
  uint64_t serial; /* given to no other mapping, though this memory may be */
  uint64_t lease_id;
  uint8_t lease_token[16]; /* for a watch on another description */
  uint64_t generation;
  uint64_t device; /* of the file */
  uint64_t inode;
  uint64_t region_inode; /* as /proc/self/maps names it; REGION_UNKNOWN */
  uint64_t map_alignment;
  uint32_t kind;
  bool cacheline;
  int prot;
  struct identity identity; /* of whoever mapped it */
  /* An automatic mapping (auto.c): an ordinary one of the same range of the file, PROT_NONE, to be moved into place when
   * the lease is broken. 0: none. */
  uintptr_t shadow;
  uint64_t shadow_offset; /* in the file, of shadow */
  size_t shadow_bytes;
  /* ---- guarded by the lock */
  uint32_t keeper_generation; /* the keeper whose table these two are in */
  struct keeper_fd watch_fd;  /* another description of the file, which tells of the lease */
  struct keeper_fd lease_fd;  /* the lease's own description, until there is a watch */
  uint64_t watch_at_ms;       /* when that is to be */
  struct mapping *watch_next; /* to be watched after this one */
  struct io_lease *io;        /* of a mapping that serves calls (io.c), until it has ended */
  bool retiring;              /* `retire` is in the keeper's hands */
  bool watch_tried;
  bool forked; /* some child may hold a copy of the anchor: the kernel alone knows when the lease ends */
  size_t piece_count; /* without the anchor; 0: the mapping is gone */
  uintptr_t anchor;   /* 0: none any more */
  bool revoked;
  _Atomic uint32_t leaves; /* read without the lock, by persist.c */
  struct mapping *next;    /* free list, or list of those that just died */
  struct request retire;
};

struct table_bounds {
  _Atomic uintptr_t low;  /* of any piece; UINTPTR_MAX when there is none */
  _Atomic uintptr_t high; /* 0 when there is none */
};
extern struct table_bounds table_bounds;

/* Does [start, start + length) come near a direct mapping? Lock-free; "no" is certain, "yes" is a maybe. */
static inline bool table_near(const void *address, size_t length) {
  uintptr_t start = (uintptr_t)address;
  uintptr_t end = start + length;
  if (end < start) end = UINTPTR_MAX;
  uintptr_t high = atomic_load_explicit(&table_bounds.high, memory_order_acquire);
  return start < high && end > atomic_load_explicit(&table_bounds.low, memory_order_relaxed);
}

void core_lock(sigset_t *saved);
void core_unlock(const sigset_t *saved);

uintptr_t page_bytes(void);
static inline uint64_t round_up(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}
static inline bool is_aligned(uint64_t value, uint64_t unit) {
  return value % unit == 0;
}
/* Text without libc: append at `at`, return the end. */
char *append_text(char *at, const char *text);
char *append_number(char *at, unsigned number);
char *append_hex(char *at, uintptr_t number);
/* Zeroed memory straight from the kernel; NULL when there is none. */
void *page_alloc(size_t bytes);
void page_free(void *memory, size_t bytes);

/* With the lock held: */
int table_reserve(size_t extra);       /* room for `extra` more pieces, so that what follows cannot fail */
size_t table_lower(uintptr_t address); /* index of the first piece that ends after address */
bool table_occupied(uintptr_t start, uintptr_t end); /* any piece or anchor there? */
size_t table_count(void);
struct piece *table_at(size_t index);
void table_insert(const struct piece *run, size_t count); /* adjacent in the table; room was reserved */
/* Take [start, end) out of the table (no anchors in it). Mappings without pieces are prepended to *dead. */
void table_cut(uintptr_t start, uintptr_t end, struct mapping **dead);
void table_remove_anchor(uintptr_t anchor);
/* The same for what the program took away behind the library's back, anchors too: they are forgotten, not
 * unmapped. Room for two more pieces was reserved. */
void table_strike(uintptr_t start, uintptr_t end, struct mapping **dead);
/* All pieces of the mapping but the anchor. */
void table_set_state(const struct mapping *mapping, enum piece_state state);
/* Nothing in the table? */
bool table_empty(void);
struct mapping *mapping_alloc(void); /* NULL: no memory */
void mapping_free(struct mapping *mapping);

/* Without the lock: a copy of the first piece that ends after address, and of its mapping if that is wanted. False when
 * there is none. Fields of piece->mapping that never change may be read: its memory stays. */
bool table_find(uintptr_t address, struct piece *piece, struct mapping *mapping);

/* ------------------------------------------------------------------------------------------------ keeper.c
 */

/* Run `request` on the keeper and wait. Returns request->error, or why there is no keeper. */
int keeper_run(struct request *request);
/* In two steps, for work found while holding the lock: push, unlock, then kick and wait for each. */
void keeper_push(struct request *request);
void keeper_kick(void);
int keeper_wait(struct request *request);
/* With the lock held. */
uint32_t keeper_generation(void);
/* On the keeper: put a number of its table away, and get it back. Anywhere else -1, which is no file at all. */
struct keeper_fd keeper_fd_of(int number);
int keeper_fd_number(struct keeper_fd fd);
/* Called with the lock just taken: is this a copy of the process that the library knows? */
void keeper_notice_copy(void);
/* Register the fork handlers; 0 or a negative errno. */
int keeper_prepare_forks(void);

/* Whose descriptors this thread uses. io.c finds out about processes that share memory but not descriptors (vfork). */
enum thread_table { TABLE_OF_PROGRAM, TABLE_OF_OTHER_PROCESS, TABLE_OF_KEEPER };
extern _Thread_local enum thread_table thread_table __attribute__((tls_model("initial-exec")));

struct identity identity_of_caller(void);
/* On the keeper: take on an identity; returns the one before. */
struct identity identity_assume(struct identity identity);

/* ------------------------------------------------------------------------------------------------ mount.c */

struct file_facts {
  dev_t device;
  uint64_t inode;
  uint64_t bytes;    /* size */
  uint64_t mount_id; /* given to no other mount while the machine runs; 0: the kernel has no such numbers */
};
/* Of a regular file; -EOPNOTSUPP for any other. */
int file_facts_of(int fd, struct file_facts *facts);
/* The region behind the mount of fd; -EOPNOTSUPP when it is not a regular file of a mapdirect mount. */
int region_of(int fd, struct file_facts *facts, struct mapdirect_wire_region *region);
/* On the keeper: who mounted it. False when that cannot be found out: the mount is not in our namespace, or there is no /proc. */
bool mounter_of(const struct file_facts *facts, uid_t *uid);

/* ------------------------------------------------------------------------------------------------ hole.c */

/* On the keeper. how: MAP_FIXED or MAP_FIXED_NOREPLACE. */
int hole_place(uintptr_t start, size_t length, int prot, int how);
int beyond_open(void); /* so that beyond_place needs no new descriptor */
int beyond_place(uintptr_t start, size_t length, int prot);
#define BEYOND_NAME "mapdirect-beyond"
/* On any thread, in one step: zeros that belong to nobody. */
int inert_place(uintptr_t start, size_t length);
/* Is the anonymous memory at `at` ours? */
bool hole_is_at(uintptr_t at);
/* Before a fork: what holes a child will have to make again, and with which rights. With the lock held, which may be given up
 * meanwhile. */
void hole_before_fork(sigset_t *mask);
/* After it, in the parent. */
void hole_after_fork(void);
/* In a forked child: the userfaultfd of the parent's keeper is not ours. */
void hole_forget(void);
/* On the keeper, when it ends. */
void hole_close(void);
/* In a forked child: hole pieces did not come along (MADV_DONTFORK); make them again. */
void hole_rebuild_all(void);

/* ------------------------------------------------------------------------------------------------ map.c,
 * change.c */

int core_map(void *addr, size_t length, int prot, int flags, int fd, off_t offset, unsigned lease,
             void **result);
/* The same, for a program that asks for an ordinary mapping: see mapping.shadow. Takes the shadow, if it succeeds. */
int core_map_automatic(void *addr, size_t length, int prot, int flags, int fd, off_t offset, uintptr_t shadow,
                       void **result);
/* The same of a whole file, as it is, for io.c. */
int core_map_io(size_t length, int fd, uintptr_t shadow, struct io_lease *io, void **result);
/* Flag checks that come before anything about the descriptor: R3. */
int core_check_type(int flags);

int core_unmap(uintptr_t start, size_t length);
/* The same of a mapping that nobody has stored through, from its first byte on: the times of the file stay. */
int core_unmap_unchanged(uintptr_t start, size_t length);
/* The same, and inert pages are left there. */
int core_detach(uintptr_t start, size_t length);
/* mmap(MAP_FIXED) of something else on top of [start, start + length). */
int core_map_over(void *addr, size_t length, int prot, int flags, int fd, off_t offset, void **result);
int core_remap(uintptr_t old, size_t old_length, size_t new_length, int flags, uintptr_t new, void **result);
/* mremap(2) as a whole: of direct mappings, and of other memory onto one. */
int core_remap_any(uintptr_t old, size_t old_length, size_t new_length, int flags, uintptr_t new,
                   void **result);
int core_madvise(uintptr_t start, size_t length, int advice);
/* Is process_madvise(2) of this process meant, with advice that core_madvise has to be asked for? */
bool core_advises_itself(int pidfd, int advice);
/* mlock2(2); with no flags, mlock(2). */
int core_mlock(uintptr_t start, size_t length, int flags);

/*
 * With the lock held: replace [start, end) by what `act` does to the address space. Anchors in the way are
 * moved out of it, then act runs, and if it succeeds the table forgets the range. Dead mappings are prepended
 * to *dead: pass them to change_bury() (which unmaps their anchors), unlock, then change_mourn().
 */
int change_replace(uintptr_t start, uintptr_t end, int (*act)(void *context), void *context,
                   struct mapping **dead);
/* With the lock held: unmap anchors of the dead, hand their leases to the keeper. */
void change_bury(struct mapping *dead);
/* Without the lock, and not on the keeper: wait until the keeper has let go of them. */
void change_mourn(struct mapping *dead);

/* ------------------------------------------------------------------------------------------------ break.c */

#define REGION_UNKNOWN UINT64_MAX
/* On the keeper: what inode number the kernel shows for a mapping of the region at `at`. On a stacked file
 * system it need not be st_ino. */
uint64_t region_inode_at(uintptr_t at, const struct stat *region);

/*
 * Runs of addresses, ascending; of rights: what the program's mprotect(2) has made other than its mapping says. It is looked up
 * when pages are replaced, for the library does not see that call. Empty where it cannot be looked up.
 */
struct span {
  uintptr_t start;
  uintptr_t end;
  int prot;
};
struct spans {
  struct span *items;
  size_t count;
  size_t capacity;
  bool failed; /* not all of them are there */
};
void spans_free(struct spans *spans);
/* On the keeper, with the lock held. */
void rights_look_up(struct spans *rights);
/* What [at, *upto) has; *upto becomes smaller if not all of it has the same. */
int rights_at(const struct spans *rights, uintptr_t at, uintptr_t *upto, int usual);
/* Give [start, end) the rights that `from` and what follows it had. */
int rights_apply(const struct spans *rights, uintptr_t from, uintptr_t start, size_t length, int usual);

/* On the keeper, with the lock held: the kernel says that these addresses were free. What the table has there
 * was taken away without the library's knowledge: forget it. */
int break_forget(uintptr_t start, uintptr_t end, struct mapping **dead);

/* On the keeper: start the watcher if there is none. Without one leases end by their deadline. */
void watcher_start(void);
/* CLOCK_MONOTONIC: what was being broken then, the watcher has heard of. */
uint64_t watcher_beat_ms(void);
/* On the keeper when it ends: with the lock held, then without. */
struct watcher *watcher_detach(void);
void watcher_stop(struct watcher *self);
/* With the lock held: watch the lease of a new mapping in a moment. A mapping that is gone by then costs no watch. */
void watch_later(struct mapping *mapping);
/* With the lock held: it is dead, and needs none any more. */
void watch_never(const struct mapping *mapping);
/* With the lock held: milliseconds until watch_begin() has something to do, 0 for now; WATCH_NOTHING. */
#define WATCH_NOTHING UINT64_MAX
uint64_t watch_due_ms(void);
/* On the keeper: the watch that is due. */
void watch_begin(void);
void watch_close(struct keeper_fd fd);
/* unchanged: nothing was stored, so times stay. */
int watch_end_lease(struct keeper_fd fd, uint64_t lease_id, bool unchanged);
/* In a forked child, with the lock held. */
void watch_forget(void);
void watch_all_again(void);

/*
 * Make ordinary mappings of the automatic ones that have pieces in [start, end). Nobody who touches their pages meanwhile
 * notices more than a delay: the daemon lets a page fault wait until the lease has ended. An error leaves them direct.
 */
int automatic_revert_all(uintptr_t start, uintptr_t end);

void break_wish(mapdirect_break_handler *handler, void *context, unsigned flags);
void break_wish_remap(void);

/* ------------------------------------------------------------------------------------------------ relay.c */

/* On the watcher. */
void relay_hand_over(const struct mapdirect_break *what, bool until_answered);
/* Some thread of this process will wait, or waits. */
void relay_listen(void);
/* On any other thread. -ETIMEDOUT, -EINTR. */
int relay_wait(struct mapdirect_break *what, int timeout_ms);
/* -ETIMEDOUT: nobody waits for it any more. */
int relay_answer(const struct mapdirect_break *what);

/* ------------------------------------------------------------------------------------------------ persist.c
 */

bool persist_can_flush(void);
/* With the lock held: nobody flushes pages of the mapping from here on. */
void persist_leave(struct mapping *mapping, uint32_t leaves);
/* In a forked child: threads that were flushing are not here. */
void persist_forget(void);
int core_persist(uintptr_t start, size_t length);
int core_msync(uintptr_t start, size_t length, int flags);

/* ------------------------------------------------------------------------------------------------ stats.c */

enum counter {
  COUNT_DIRECT,       /* direct mappings made */
  COUNT_DIRECT_BYTES, /* and their bytes */
  COUNT_AUTOMATIC,    /* of them, by auto.c */
  COUNT_REVOKED,      /* taken away again */
  COUNT_IO,           /* files whose calls are served, by io.c */
  /* Mappings that auto.c left ordinary: */
  COUNT_PAST_END,
  COUNT_BUSY,
  COUNT_NO_SPACE,
  COUNT_NO_ACCESS,
  COUNT_UNSUPPORTED,
  COUNT_OTHER,
  COUNTERS
};
void count_up(enum counter counter, uint64_t by);
uint64_t counted(enum counter counter);
/* At the beginning, and in a forked child. */
void count_from_zero(void);
/* False in a process that only shares our memory (vfork). */
bool counts_are_ours(void);

/* ------------------------------------------------------------------------------------------------ auto.c */

/* Is this an mmap(2) that MAPDIRECT=auto is about, as far as the arguments tell? */
bool auto_applies(int prot, int flags, int fd);
/* Tries a direct mapping: true, and the address in *result; or false: make the ordinary one. */
bool auto_map(void *addr, size_t length, int prot, int flags, int fd, off_t offset, void **result);
/* To where MAPDIRECT_STATS says; once. */
void auto_report(void);

/* ------------------------------------------------------------------------------------------------ io.c */

/* Before main(). */
void io_enable(void);

#endif
