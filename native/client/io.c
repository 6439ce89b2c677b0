/*
 * MAPDIRECT=io: pread(2) and pwrite(2) without a system call, from a direct mapping of the file that the library makes for
 * itself.
 *
 *   descriptor ──► slot ──► map      a slot for each number; a map for each file that is served
 *
 * A descriptor is served after it was asked some times, if it is open for reading and writing and every block of its file is
 * written. The lease is an automatic one (auto.c) of the whole file: whoever needs to change the file's blocks or size, or
 * maps it ordinarily, breaks it, and the calls are system calls again. What is served lies within the file as it was at the
 * grant, so a call that would be short, or make the file larger, is the kernel's.
 *
 * Invariants:
 * - a call is served only while the map is LIVE: from when its lease is watched until it is being broken or has ended;
 * - memory of a map is unmapped only when nobody copies (`users`); until then a lease that is broken leaves the ordinary
 *   mapping of the same bytes in place, so that a copy that is under way ends where it should;
 * - a copy counts only if the watcher has seen, less than BEAT_MS before its end, that nothing is being broken: a process
 *   that was stopped past the deadline of a break asks the kernel;
 * - whatever goes wrong in a copy (a bad buffer, a page that is not there any more) ends in the same call by the kernel,
 *   which gives the answer;
 * - a number is served only from when libc's open, creat, dup or fcntl has given it to the program through us, until it can
 *   mean another file: close, dup2, dup3, close_range, closefrom, or given through us again. What libc closes without us it
 *   has opened without us (fopen, opendir, tmpfile) or taken over (fdopen): none of that is served. A process that shares
 *   memory but not descriptors is known by its id (vfork), or ends all serving (unshare). Each tick of the clock the number
 *   is compared with the file besides: a bare system call may have closed it;
 * - what a slot says about a number and what its map was made for agree by a count of openings, not by the number.
 *
 * Not as by system calls: times change at fsync, close and the end of the program, and not at once; a read leaves the time
 * of access alone; SIGSEGV and SIGBUS have a handler, so programs that handle these themselves are not served.
 */
#include "internal.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/xattr.h>
#include <time.h>

#include "syscall.h"

#define SLOTS 1024
/* Calls before a file is tried, at first; twice as many after each time that it did not last. */
#define TRY_AFTER 8u
#define TRY_AFTER_MAX (1u << 24)
#define COPY_BYTES_MAX (16u << 20)
#define FILE_BYTES_MAX (1ull << 40)
/* A lease is not revoked sooner than this after the watcher has seen that nobody breaks it: what the mount gives holders has
 * to be longer. */
#define BEAT_MS 3000
#define BREAK_TIME_MS_MIN 5000
#define YIELDS_MAX 100

struct io_map {
  struct io_lease lease;
  char *address;
  uint64_t bytes;  /* of the file */
  size_t mapped;   /* whole pages */
  uint32_t opened; /* of the slot that it was made for */
  bool cacheline;
  struct file_facts file;
  struct io_map *next; /* free, or in limbo */
};

struct slot {
  _Atomic(struct io_map *) map;
  _Atomic uint32_t opened; /* which opening through us gave the number to the program; 0: none */
  _Atomic uint32_t asked;
  _Atomic uint32_t try_after;
  _Atomic uint32_t trying;
  _Atomic uint64_t tick_ms; /* when the number was last compared with the file */
};

static struct {
  _Atomic bool on;
  _Atomic pid_t process; /* whose descriptors the slots are about */
  _Atomic uint32_t openings;
  struct slot slots[SLOTS];
  _Atomic uint32_t lock; /* of the two lists below */
  struct io_map *free;
  struct io_map *limbo; /* out of use, but somebody may still copy */
} io;

/* The functions that we stand before, for they are points of cancellation. */
static ssize_t (*next_pread)(int fd, void *buffer, size_t count, off64_t offset);
static ssize_t (*next_pwrite)(int fd, const void *buffer, size_t count, off64_t offset);
static int (*next_close)(int fd);
static int (*next_fsync)(int fd);
static int (*next_fdatasync)(int fd);
static int (*next_fcntl)(int fd, int command, ...);
static int (*next_openat)(int folder, const char *path, int flags, ...);
static int (*next_unshare)(int flags);
static FILE *(*next_fdopen)(int fd, const char *mode);

static void find(const char *name, void *function) {
  *(void **)function = dlsym(RTLD_NEXT, name);
}

/* ---- copying that survives a bad address */

/* With page tables of four levels. With five, addresses above may be good ones, and then cause no such fault. */
#define CANONICAL_END ((uintptr_t)1 << 47)

struct guard {
  void *jump[5]; /* of __builtin_setjmp */
  uintptr_t from;
  uintptr_t to;
  size_t length; /* 0: no copy is under way */
};
static _Thread_local struct guard guard __attribute__((tls_model("initial-exec")));

static void on_fault(int number, siginfo_t *info, void *context) {
  uintptr_t at = (uintptr_t)info->si_addr;
  const ucontext_t *where = context;
  bool inside = at - guard.from < guard.length || at - guard.to < guard.length;
  /* Of an address that no page can have, the CPU does not say which it was. */
  bool untold = info->si_code == SI_KERNEL && guard.length > 0 &&
                (guard.from > CANONICAL_END - guard.length || guard.to > CANONICAL_END - guard.length);
  bool ours = info->si_code > 0 && (inside || untold);
  if (ours) {
    guard.length = 0;
    pthread_sigmask(SIG_SETMASK, &where->uc_sigmask, NULL);
    __builtin_longjmp(guard.jump, 1);
  }
  /* As if there were no handler. */
  struct sigaction fallback = {.sa_handler = SIG_DFL};
  sigaction(number, &fallback, NULL);
  if (info->si_code <= 0)
    raw_syscall(SYS_tgkill, getpid(), raw_syscall(SYS_gettid, 0, 0, 0, 0, 0, 0), number, 0, 0, 0);
}

/* SIGSEGV and SIGBUS are nobody's, or ours already. */
static bool guard_faults(void) {
  const int numbers[] = {SIGSEGV, SIGBUS};
  for (size_t index = 0; index < 2; index++) {
    struct sigaction action;
    if (sigaction(numbers[index], NULL, &action) != 0) return false;
    if ((action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == on_fault) continue;
    if ((action.sa_flags & SA_SIGINFO) != 0 || action.sa_handler != SIG_DFL) return false;
    struct sigaction wish = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    if (sigaction(numbers[index], &wish, NULL) != 0) return false;
  }
  return true;
}

static __attribute__((noinline)) bool copy(void *to, const void *from, size_t length) {
  struct guard outer = guard; /* of a call that a signal handler has interrupted */
  if (__builtin_setjmp(guard.jump) != 0) {
    guard.length = 0;
    return false;
  }
  guard.from = (uintptr_t)from;
  guard.to = (uintptr_t)to;
  guard.length = length;
  atomic_signal_fence(memory_order_seq_cst);
  memcpy(to, from, length);
  atomic_signal_fence(memory_order_seq_cst);
  guard.length = 0;
  if (__builtin_expect(outer.length != 0, 0)) guard = outer;
  return true;
}

/* ---- maps */

static uint64_t coarse_ms(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
  return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

/* Spins, for it is held for a few stores; with signals blocked, so that a handler may call us. */
static void lists_lock(sigset_t *mask) {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, mask);
  while (atomic_exchange_explicit(&io.lock, 1, memory_order_acquire) != 0)
    sched_yield();
}

static void lists_unlock(const sigset_t *mask) {
  atomic_store_explicit(&io.lock, 0, memory_order_release);
  pthread_sigmask(SIG_SETMASK, mask, NULL);
}

static struct io_map *take_free(void) {
  sigset_t mask;
  lists_lock(&mask);
  struct io_map *map = io.free;
  if (map == NULL) {
    size_t bytes = page_bytes();
    struct io_map *fresh = page_alloc(bytes);
    for (size_t index = 0; fresh != NULL && index < bytes / sizeof *fresh; index++) {
      fresh[index].next = io.free;
      io.free = &fresh[index];
    }
    map = io.free;
  }
  if (map != NULL) io.free = map->next;
  lists_unlock(&mask);
  return map;
}

static void give_back(struct io_map **list, struct io_map *map) {
  sigset_t mask;
  lists_lock(&mask);
  map->next = *list;
  *list = map;
  lists_unlock(&mask);
}

/* Unmap what nobody copies from or to any more. The lease ends with it, if it has not ended before. */
static bool finish(struct io_map *map) {
  for (int yields = 0; atomic_load(&map->lease.users) != 0; yields++) {
    if (yields == YIELDS_MAX) return false; /* perhaps it is this very thread, in a signal handler */
    sched_yield();
  }
  /* Of a lease that was broken, it is an ordinary mapping, which the library has forgotten. */
  if (atomic_load(&map->lease.changed) == 0)
    core_unmap_unchanged((uintptr_t)map->address, map->mapped);
  else
    core_unmap((uintptr_t)map->address, map->mapped);
  give_back(&io.free, map);
  return true;
}

static void sweep_limbo(void) {
  sigset_t mask;
  lists_lock(&mask);
  struct io_map *map = io.limbo;
  io.limbo = NULL;
  lists_unlock(&mask);
  while (map != NULL) {
    struct io_map *next = map->next;
    if (!finish(map)) give_back(&io.limbo, map);
    map = next;
  }
}

/* The number is about to mean something else, or the file is not to be served: true if it was. */
static bool detach(struct slot *slot) {
  struct io_map *map = atomic_exchange(&slot->map, NULL);
  if (map == NULL) return false;
  atomic_store(&map->lease.state, IO_ENDED);
  if (!finish(map)) give_back(&io.limbo, map);
  return true;
}

static struct slot *slot_of(int fd) {
  return fd >= 0 && fd < SLOTS && atomic_load_explicit(&io.on, memory_order_relaxed) ? &io.slots[fd] : NULL;
}

/* Are the descriptors that this thread uses those of the slots? */
static bool is_own_table(void) {
  if (thread_table == TABLE_OF_KEEPER) return false;
  bool own = (pid_t)raw_syscall(SYS_getpid, 0, 0, 0, 0, 0, 0) == atomic_load(&io.process);
  thread_table = own ? TABLE_OF_PROGRAM : TABLE_OF_OTHER_PROCESS;
  return own;
}

static void forget_number(int fd) {
  struct slot *slot = slot_of(fd);
  if (slot == NULL || !is_own_table()) return;
  atomic_store(&slot->opened, 0);
  detach(slot);
  atomic_store_explicit(&slot->asked, 0, memory_order_relaxed);
  atomic_store_explicit(&slot->try_after, TRY_AFTER, memory_order_relaxed);
}

static void forget_numbers(unsigned first, unsigned last) {
  for (unsigned fd = first; fd <= last && fd < SLOTS; fd++)
    forget_number((int)fd);
}

/* The program was given this number, if it is one. */
static int was_opened(int fd) {
  struct slot *slot = slot_of(fd);
  /* The first three libc may close without us (daemon, freopen of stdin). */
  if (slot == NULL || fd <= STDERR_FILENO) return fd;
  int errno_before = errno;
  forget_number(fd);
  uint32_t opening = atomic_fetch_add(&io.openings, 1) + 1;
  if (thread_table == TABLE_OF_PROGRAM) atomic_store(&slot->opened, opening == 0 ? 1 : opening);
  errno = errno_before;
  return fd;
}

static void forget_maps(void) {
  for (int fd = 0; fd < SLOTS; fd++)
    if (atomic_load_explicit(&io.slots[fd].map, memory_order_relaxed) != NULL) detach(&io.slots[fd]);
}

/* From here on threads may not agree on what a number means. */
static void serve_nothing(void) {
  if (!atomic_exchange(&io.on, false)) return;
  forget_maps();
}

static bool may_be_served(int fd) {
  const int others = O_APPEND | O_DIRECT | O_SYNC | O_DSYNC | O_PATH | O_NONBLOCK;
  int flags = (int)raw_syscall(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0);
  return flags >= 0 && (flags & O_ACCMODE) == O_RDWR && (flags & others) == 0;
}

static bool is_regular(int fd) {
  int errno_before = errno;
  struct stat status;
  bool regular = fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  errno = errno_before;
  return regular;
}

/* What a write would take from the file, which only the kernel and the daemon can. */
static bool has_privileges(int fd) {
  struct stat status;
  if (fstat(fd, &status) != 0 || (status.st_mode & (S_ISUID | S_ISGID)) != 0) return true;
  return fgetxattr(fd, "security.capability", NULL, 0) >= 0;
}

static bool all_direct(const struct io_map *map) {
  uintptr_t end = (uintptr_t)map->address + map->mapped;
  for (uintptr_t at = (uintptr_t)map->address; at < end;) {
    struct piece piece;
    if (!table_find(at, &piece, NULL) || piece.start > at || piece.state != PIECE_DIRECT) return false;
    at = piece.end;
  }
  return true;
}

static bool fill(struct io_map *map, int fd) {
  struct rlimit limit;
  struct mapdirect_wire_region *region = page_alloc(round_up(sizeof *region, page_bytes()));
  if (region == NULL) return false;
  bool good = region_of(fd, &map->file, region) == 0 && region->break_time_ms >= BREAK_TIME_MS_MIN;
  map->cacheline = (region->flags & MAPDIRECT_WIRE_REGION_FLAG_CACHELINE) != 0;
  page_free(region, round_up(sizeof *region, page_bytes()));
  if (!good || map->file.bytes == 0 || map->file.bytes > FILE_BYTES_MAX || has_privileges(fd)) return false;
  if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY) return false;
  if (!guard_faults()) return false; /* not before the file is known to be ours: the handlers stay */
  map->mapped = (size_t)round_up(map->file.bytes, page_bytes());
  long shadow = raw_mmap(0, map->mapped, PROT_NONE, MAP_SHARED, fd, 0);
  if (raw_failed(shadow)) return false;
  void *address;
  int error = core_map_io(map->mapped, fd, (uintptr_t)shadow, &map->lease, &address);
  if (error != 0) {
    raw_munmap((uintptr_t)shadow, map->mapped);
    return false;
  }
  map->address = address;
  /* From the grant on the size stays. */
  struct file_facts now;
  bool same = file_facts_of(fd, &now) == 0 && now.device == map->file.device && now.inode == map->file.inode;
  map->bytes = now.bytes < map->mapped ? now.bytes : map->mapped;
  if (same && all_direct(map)) return true;
  core_unmap((uintptr_t)address, map->mapped);
  return false;
}

static void forget_in_child(void) {
  atomic_store(&io.lock, 0);
  atomic_store(&io.process, getpid());
  for (int fd = 0; fd < SLOTS; fd++) {
    struct io_map *map = atomic_exchange(&io.slots[fd].map, NULL);
    atomic_store(&io.slots[fd].trying, 0);
    /* Threads that were copying are not here. */
    if (map != NULL) core_unmap((uintptr_t)map->address, map->mapped);
  }
}

static void try_file(struct slot *slot, int fd) {
  if (atomic_exchange(&slot->trying, 1) != 0) return;
  int errno_before = errno;
  struct io_map *map = NULL;
  sweep_limbo();
  uint32_t opened = atomic_load(&slot->opened);
  if (opened != 0 && is_own_table() && atomic_load(&slot->map) == NULL && may_be_served(fd) &&
      keeper_prepare_forks() == 0 && (map = take_free()) != NULL) {
    map->opened = opened;
    atomic_store(&map->lease.state, IO_UNWATCHED);
    atomic_store(&map->lease.changed, 0);
    if (fill(map, fd)) {
      atomic_store(&slot->tick_ms, 0);
      atomic_store(&slot->map, map);
      count_up(COUNT_IO, 1);
    } else {
      give_back(&io.free, map);
    }
  }
  uint32_t after = atomic_load(&slot->try_after);
  atomic_store(&slot->try_after, after < TRY_AFTER_MAX ? 2 * after : after);
  atomic_store(&slot->asked, 0);
  atomic_store(&slot->trying, 0);
  errno = errno_before;
}

/* Once for each tick of the clock: is this number still that file, and open as it was? */
static bool still_true(struct slot *slot, const struct io_map *map, int fd, uint64_t now) {
  struct file_facts file;
  if (file_facts_of(fd, &file) != 0 || file.device != map->file.device || file.inode != map->file.inode ||
      file.mount_id != map->file.mount_id || !may_be_served(fd) || !guard_faults())
    return false;
  atomic_store_explicit(&slot->tick_ms, now, memory_order_relaxed);
  return true;
}

/* The map to serve [offset, offset + count) from, its `users` counted up; NULL: the kernel has to. */
static struct io_map *enter(int fd, size_t count, off64_t offset) {
  struct slot *slot = slot_of(fd);
  if (slot == NULL || (__builtin_expect(thread_table != TABLE_OF_PROGRAM, 0) && !is_own_table())) return NULL;
  struct io_map *map = atomic_load_explicit(&slot->map, memory_order_acquire);
  if (map == NULL) {
    if (atomic_load_explicit(&slot->opened, memory_order_relaxed) == 0) return NULL;
    uint32_t asked = atomic_fetch_add_explicit(&slot->asked, 1, memory_order_relaxed);
    uint32_t after = atomic_load_explicit(&slot->try_after, memory_order_relaxed);
    if (asked >= (after == 0 ? TRY_AFTER : after)) {
      if (after == 0) atomic_store(&slot->try_after, TRY_AFTER);
      try_file(slot, fd);
    }
    return NULL;
  }
  atomic_fetch_add(&map->lease.users, 1);
  uint32_t state = atomic_load(&map->lease.state);
  bool same = atomic_load(&slot->map) == map && atomic_load(&slot->opened) == map->opened;
  if (same && state == IO_WATCHED) {
    uint64_t now = coarse_ms();
    bool inside = offset >= 0 && count > 0 && count <= COPY_BYTES_MAX && (uint64_t)offset < map->bytes &&
                  count <= map->bytes - (uint64_t)offset;
    bool known = now == atomic_load_explicit(&slot->tick_ms, memory_order_relaxed);
    int errno_before = errno;
    bool sound = !inside || known || still_true(slot, map, fd, now);
    errno = errno_before;
    if (inside && sound) return map;
    atomic_fetch_sub(&map->lease.users, 1);
    if (!sound) detach(slot);
    return NULL;
  }
  atomic_fetch_sub(&map->lease.users, 1);
  if (state == IO_ENDED || !same) detach(slot);
  return NULL;
}

static bool leave(struct io_map *map, bool copied) {
  bool good = copied && coarse_ms() < watcher_beat_ms() + BEAT_MS;
  atomic_fetch_sub(&map->lease.users, 1);
  return good;
}

/* ---- what is interposed; the dynamic linker and the constructors of others may call before we have found the next one */

static long long_answer(long result) {
  if (!raw_failed(result)) return result;
  errno = (int)-result;
  return -1;
}

static int integer_answer(long result) {
  return (int)long_answer(result);
}

MAPDIRECT_API ssize_t pread64(int fd, void *buffer, size_t count, off64_t offset) {
  struct io_map *map = enter(fd, count, offset);
  if (map != NULL && leave(map, copy(buffer, map->address + offset, count))) return (ssize_t)count;
  if (next_pread == NULL)
    return (ssize_t)long_answer(raw_syscall(SYS_pread64, fd, (long)buffer, (long)count, (long)offset, 0, 0));
  return next_pread(fd, buffer, count, offset);
}

MAPDIRECT_API ssize_t pwrite64(int fd, const void *buffer, size_t count, off64_t offset) {
  struct io_map *map = enter(fd, count, offset);
  if (map != NULL) {
    if (atomic_load_explicit(&map->lease.changed, memory_order_relaxed) == 0)
      atomic_store(&map->lease.changed, 1);
    bool copied = copy(map->address + offset, buffer, count);
    /* There a write is durable when it returns. */
    if (copied && map->cacheline) core_persist((uintptr_t)map->address + (uintptr_t)offset, count);
    if (leave(map, copied)) return (ssize_t)count;
  } else if (offset >= 0 && slot_of(fd) != NULL) {
    struct slot *slot = slot_of(fd);
    map = atomic_load(&slot->map);
    /* It makes the file larger, and would have to break the lease first. */
    if (map != NULL && (uint64_t)offset + count > map->bytes) detach(slot);
  }
  if (next_pwrite == NULL)
    return (ssize_t)long_answer(raw_syscall(SYS_pwrite64, fd, (long)buffer, (long)count, (long)offset, 0, 0));
  return next_pwrite(fd, buffer, count, offset);
}

MAPDIRECT_API ssize_t pread(int fd, void *buffer, size_t count, off_t offset)
    __attribute__((alias("pread64")));
MAPDIRECT_API ssize_t pwrite(int fd, const void *buffer, size_t count, off_t offset)
    __attribute__((alias("pwrite64")));

/* Times are due. Who may not set them leaves that to the end of the mapping. */
static void settle_times(int fd) {
  struct slot *slot = slot_of(fd);
  struct io_map *map = slot == NULL ? NULL : atomic_load(&slot->map);
  if (map == NULL || atomic_load(&map->lease.changed) == 0) return;
  raw_syscall(SYS_utimensat, fd, 0, 0, 0, 0, 0);
}

MAPDIRECT_API int fsync(int fd) {
  settle_times(fd);
  if (next_fsync == NULL) return integer_answer(raw_syscall(SYS_fsync, fd, 0, 0, 0, 0, 0));
  return next_fsync(fd);
}

MAPDIRECT_API int fdatasync(int fd) {
  settle_times(fd);
  if (next_fdatasync == NULL) return integer_answer(raw_syscall(SYS_fdatasync, fd, 0, 0, 0, 0, 0));
  return next_fdatasync(fd);
}

MAPDIRECT_API int close(int fd) {
  forget_number(fd);
  if (next_close == NULL) return integer_answer(raw_syscall(SYS_close, fd, 0, 0, 0, 0, 0));
  return next_close(fd);
}

MAPDIRECT_API int dup(int fd) {
  return was_opened(integer_answer(raw_syscall(SYS_dup, fd, 0, 0, 0, 0, 0)));
}

MAPDIRECT_API int dup2(int fd, int target) {
  if (fd == target) return fcntl(fd, F_GETFD) < 0 ? -1 : target;
  forget_number(target);
  return was_opened(integer_answer(raw_syscall(SYS_dup3, fd, target, 0, 0, 0, 0)));
}

MAPDIRECT_API int dup3(int fd, int target, int flags) {
  if (fd != target) forget_number(target);
  return was_opened(integer_answer(raw_syscall(SYS_dup3, fd, target, flags, 0, 0, 0)));
}

static int open_any(int folder, const char *path, int flags, mode_t mode) {
  if (next_openat == NULL)
    return was_opened(integer_answer(raw_syscall(SYS_openat, folder, (long)path, flags, (long)mode, 0, 0)));
  return was_opened(next_openat(folder, path, flags, mode));
}

static bool has_mode(int flags) {
  return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
}

MAPDIRECT_API int open64(const char *path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  mode_t mode = has_mode(flags) ? va_arg(list, mode_t) : 0;
  va_end(list);
  return open_any(AT_FDCWD, path, flags, mode);
}

MAPDIRECT_API int openat64(int folder, const char *path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  mode_t mode = has_mode(flags) ? va_arg(list, mode_t) : 0;
  va_end(list);
  return open_any(folder, path, flags, mode);
}

MAPDIRECT_API int creat64(const char *path, mode_t mode) {
  return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

MAPDIRECT_API int open(const char *path, int flags, ...) __attribute__((alias("open64")));
MAPDIRECT_API int openat(int folder, const char *path, int flags, ...) __attribute__((alias("openat64")));
MAPDIRECT_API int creat(const char *path, mode_t mode) __attribute__((alias("creat64")));

/* What _FORTIFY_SOURCE makes of calls without a mode. Where one is due, libc ends the program, too. */
MAPDIRECT_API int __open64_2(const char *path, int flags);
MAPDIRECT_API int __openat64_2(int folder, const char *path, int flags);

MAPDIRECT_API int __open64_2(const char *path, int flags) {
  if (has_mode(flags)) abort();
  return open_any(AT_FDCWD, path, flags, 0);
}

MAPDIRECT_API int __openat64_2(int folder, const char *path, int flags) {
  if (has_mode(flags)) abort();
  return open_any(folder, path, flags, 0);
}

MAPDIRECT_API int __open_2(const char *path, int flags) __attribute__((alias("__open64_2")));
MAPDIRECT_API int __openat_2(int folder, const char *path, int flags) __attribute__((alias("__openat64_2")));

MAPDIRECT_API int unshare(int flags) {
  if ((flags & CLONE_FILES) != 0) serve_nothing();
  if (next_unshare == NULL) return integer_answer(raw_syscall(SYS_unshare, flags, 0, 0, 0, 0, 0));
  return next_unshare(flags);
}

#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE 2
#endif

MAPDIRECT_API int close_range(unsigned first, unsigned last, int flags) {
  if ((flags & (int)CLOSE_RANGE_UNSHARE) != 0) serve_nothing();
  forget_numbers(first, last);
  return integer_answer(raw_syscall(SYS_close_range, (long)first, (long)last, flags, 0, 0, 0));
}

MAPDIRECT_API void closefrom(int first) {
  static void (*next)(int);
  unsigned from = first < 0 ? 0 : (unsigned)first;
  forget_numbers(from, UINT_MAX);
  if (raw_syscall(SYS_close_range, (long)from, (long)UINT_MAX, 0, 0, 0, 0) == 0) return;
  if (next == NULL) *(void **)&next = dlsym(RTLD_NEXT, "closefrom");
  if (next != NULL) next(first);
}

/* fclose() and freopen() close past us: until it is opened again, the number is the kernel's. */
MAPDIRECT_API FILE *fdopen(int fd, const char *mode) {
  forget_number(fd);
  if (next_fdopen == NULL) find("fdopen", &next_fdopen);
  return next_fdopen(fd, mode);
}

MAPDIRECT_API int fcntl64(int fd, int command, ...) {
  va_list list;
  va_start(list, command);
  void *argument = va_arg(list, void *);
  va_end(list);
  int result = next_fcntl == NULL
                   ? integer_answer(raw_syscall(SYS_fcntl, fd, command, (long)argument, 0, 0, 0))
                   : next_fcntl(fd, command, argument);
  if (command == F_DUPFD || command == F_DUPFD_CLOEXEC) return was_opened(result);
  /* The flags are those of every number that the open file has. */
  if (command == F_SETFL && result == 0 && slot_of(fd) != NULL && is_regular(fd)) forget_maps();
  return result;
}

MAPDIRECT_API int fcntl(int fd, int command, ...) __attribute__((alias("fcntl64")));

__attribute__((constructor(101))) static void find_all(void) {
  find("pread64", &next_pread);
  find("pwrite64", &next_pwrite);
  find("close", &next_close);
  find("fsync", &next_fsync);
  find("fdatasync", &next_fdatasync);
  find("fcntl64", &next_fcntl);
  find("fdopen", &next_fdopen);
  find("openat64", &next_openat);
  find("unshare", &next_unshare);
}

void io_enable(void) {
  atomic_store(&io.process, getpid());
  io.on = keeper_prepare_forks() == 0 && pthread_atfork(NULL, NULL, forget_in_child) == 0;
}
