/*
 * The keeper: one thread that owns every descriptor of the library.
 *
 * Why a thread with a descriptor table of its own:
 * - daemons close every descriptor they find, programs count theirs and expect the lowest free number: what
 * has to live as long as a mapping (its watch, the userfaultfd) must not be in their table;
 * - close(2) of *any* descriptor of a file drops all POSIX record locks that the process holds on it, where
 * "the process" is the descriptor table. The lease description is one more descriptor of the program's file:
 * closed in the program's table it would silently drop the program's locks;
 * - a fork in another thread, between our open and our close, would leave the child with a copy of the lease
 * description, and the lease would live as long as the child.
 *
 * It is a pthread, not a bare clone, because glibc's setuid() must reach it: a thread left with the
 * credentials that the program gave up would be a way back to them. Every signal is blocked in it. It ends a
 * second after the last mapping, and with it the watcher (break.c), which shares its descriptor table.
 */
#include "internal.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include "syscall.h"

#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE 2u
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif

#define LINGER_SECONDS 1
#define STACK_BYTES (256u << 10)

/* Guarded by the core lock, except the futex words, which are written under it and waited on without. */
static struct {
  enum { KEEPER_NONE, KEEPER_STARTING, KEEPER_RUNNING } state;
  uint32_t generation; /* changes when a keeper, and with it its descriptor table, ends */
  bool busy;           /* a request is being run */
  bool forks_prepared;
  struct request *head;
  struct request *tail;
  _Atomic uint32_t work; /* futex: changes when there is something to do */
  _Atomic uint32_t idle; /* futex: changes when the keeper has run everything */
} keeper;

/* The mask of the thread that forks, between the prepare handler and the two others; guarded by the lock it
 * holds. */
static sigset_t fork_mask;

/* In a page that the kernel wipes in every copy of the address space: 0 there, 1 here. A child that was made
 * by a bare clone(2), past the fork handlers, finds out by it that it has neither keeper nor descriptors; one
 * that shares our memory (vfork) reads 1. Guarded by the lock. */
static int *copy_marker;

static void futex_wait(_Atomic uint32_t *word, uint32_t value, const struct timespec *timeout) {
  raw_syscall(SYS_futex, (long)word, FUTEX_WAIT_PRIVATE, value, (long)timeout, 0, 0);
}

static void futex_wake(_Atomic uint32_t *word) {
  raw_syscall(SYS_futex, (long)word, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0);
}

/* initial-exec: the other models may allocate at the first touch. */
static _Thread_local bool is_keeper __attribute__((tls_model("initial-exec")));
_Thread_local enum thread_table thread_table;

static void assert_keeper(void) {
#ifdef MAPDIRECT_CHECKS
  if (!is_keeper) __builtin_trap();
#endif
}

struct keeper_fd keeper_fd_of(int number) {
  assert_keeper();
  return is_keeper ? (struct keeper_fd){.hidden = number} : KEEPER_NO_FD;
}

int keeper_fd_number(struct keeper_fd fd) {
  assert_keeper();
  return is_keeper ? fd.hidden : -1;
}

uint32_t keeper_generation(void) {
  return keeper.generation;
}

static void finish(struct request *request) {
  atomic_store_explicit(&request->done, 1, memory_order_release);
  /* The waiter may have freed the request by now; a wake on what took its place is a spurious one, which
   * every futex user expects. */
  futex_wake(&request->done);
}

/* With the lock held: nothing will run what is queued. */
static void fail_all(int error) {
  while (keeper.head != NULL) {
    struct request *request = keeper.head;
    keeper.head = request->next;
    request->error = error;
    finish(request);
  }
  keeper.tail = NULL;
  atomic_fetch_add_explicit(&keeper.idle, 1, memory_order_relaxed);
  futex_wake(&keeper.idle);
}

/* A descriptor table of its own, empty. Atomic in the kernel: nothing of the program's table is ever copied,
 * so that a pipe that the program closes meanwhile is closed. */
static int leave_descriptors(void) {
  long result = raw_syscall(SYS_close_range, 0, (long)UINT_MAX, CLOSE_RANGE_UNSHARE, 0, 0, 0);
  return result == -ENOSYS || result == -EINVAL ? -EOPNOTSUPP : (int)result;
}

/*
 * As any thread of a program that asks for nothing special, and the watcher after it: who maps may be pinned to a processor
 * that it never gives up, or have a priority that our work should not.
 */
static void leave_scheduling(void) {
  struct sched_param usual = {0};
  sched_setscheduler(0, SCHED_OTHER, &usual);
  unsigned long all[1024 / sizeof(unsigned long)];
  memset(all, 0xff, sizeof all);
  /* The kernel takes those that the process may have (cpuset). */
  raw_syscall(SYS_sched_setaffinity, 0, sizeof all, (long)all, 0, 0, 0);
}

static void *keeper_main(void *unused) {
  (void)unused;
  leave_scheduling();
  prctl(PR_SET_NAME, "mapdirect", 0, 0, 0);
  int error = leave_descriptors();
  is_keeper = error == 0;
  thread_table = TABLE_OF_KEEPER;
  sigset_t mask;
  core_lock(&mask);
  if (error != 0) {
    keeper.state = KEEPER_NONE;
    fail_all(error);
    core_unlock(&mask);
    return NULL;
  }
  keeper.state = KEEPER_RUNNING;
  bool lingered = false;
  for (;;) {
    uint64_t due_ms = watch_due_ms();
    struct request *request = due_ms == 0 ? NULL : keeper.head;
    if (request != NULL || due_ms == 0) {
      if (request != NULL) keeper.head = request->next;
      if (keeper.head == NULL) keeper.tail = NULL;
      keeper.busy = true;
      core_unlock(&mask);
      if (request != NULL) {
        request->run(request);
        finish(request);
      } else {
        watch_begin();
      }
      core_lock(&mask);
      keeper.busy = false;
      lingered = false;
      if (keeper.head == NULL) {
        atomic_fetch_add_explicit(&keeper.idle, 1, memory_order_relaxed);
        futex_wake(&keeper.idle);
      }
      continue;
    }
    if (table_empty() && lingered) break;
    uint32_t work = atomic_load_explicit(&keeper.work, memory_order_relaxed);
    bool linger = table_empty();
    core_unlock(&mask);
    struct timespec timeout = {.tv_sec = LINGER_SECONDS};
    if (due_ms != WATCH_NOTHING)
      timeout =
          (struct timespec){.tv_sec = (time_t)(due_ms / 1000), .tv_nsec = (long)(due_ms % 1000) * 1000000};
    futex_wait(&keeper.work, work, linger || due_ms != WATCH_NOTHING ? &timeout : NULL);
    core_lock(&mask);
    lingered = linger && work == atomic_load_explicit(&keeper.work, memory_order_relaxed);
  }
  hole_close();
  struct watcher *watcher = watcher_detach();
  keeper.state = KEEPER_NONE;
  keeper.generation++;
  core_unlock(&mask);
  watcher_stop(watcher);
  return NULL;
}

void keeper_push(struct request *request) {
  request->next = NULL;
  atomic_store_explicit(&request->done, 0, memory_order_relaxed);
  if (keeper.tail == NULL)
    keeper.head = request;
  else
    keeper.tail->next = request;
  keeper.tail = request;
  atomic_fetch_add_explicit(&keeper.work, 1, memory_order_relaxed);
}

/* Start the thread. Without the lock: pthread_create allocates, and an allocator may unmap. */
static void start(const sigset_t *blocked_from) {
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  int error = pthread_create(&thread, &attributes, keeper_main, NULL);
  if (error == EINVAL) { /* the program's thread-local storage alone is larger than that */
    pthread_attr_destroy(&attributes);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    error = pthread_create(&thread, &attributes, keeper_main, NULL);
  }
  pthread_attr_destroy(&attributes);
  if (error != 0) {
    sigset_t mask;
    core_lock(&mask);
    keeper.state = KEEPER_NONE;
    fail_all(-error);
    core_unlock(&mask);
  }
  pthread_sigmask(SIG_SETMASK, blocked_from, NULL);
}

void keeper_kick(void) {
  sigset_t mask;
  core_lock(&mask);
  bool create = keeper.state == KEEPER_NONE && keeper.head != NULL;
  if (create) keeper.state = KEEPER_STARTING;
  if (!create) {
    core_unlock(&mask);
    futex_wake(&keeper.work);
    return;
  }
  /* Signals stay blocked until the thread exists: it inherits the mask. */
  sigset_t all;
  sigfillset(&all);
  core_unlock(&all);
  start(&mask);
}

int keeper_wait(struct request *request) {
  while (atomic_load_explicit(&request->done, memory_order_acquire) == 0)
    futex_wait(&request->done, 0, NULL);
  return request->error;
}

int keeper_run(struct request *request) {
  sigset_t mask;
  core_lock(&mask);
  keeper_push(request);
  core_unlock(&mask);
  keeper_kick();
  return keeper_wait(request);
}

/* ---- fork */

/* Leases live as long as the last copy of their anchor: after a fork only the kernel knows. */
static void mark_forked(bool in_child) {
  for (size_t index = 0; index < table_count(); index++) {
    struct mapping *mapping = table_at(index)->mapping;
    mapping->forked = true;
    if (!in_child) continue;
    mapping->watch_fd = KEEPER_NO_FD;
    mapping->lease_fd = KEEPER_NO_FD;
    mapping->watch_tried = false;
  }
}

/* Wait until the keeper is idle: a child would inherit the anchor of a mapping that is still being built, and
 * nobody in the child would know of it. */
static void before_fork(void) {
  sigset_t mask;
  core_lock(&mask);
  hole_before_fork(&mask);
  while (keeper.busy || keeper.head != NULL) {
    uint32_t idle = atomic_load_explicit(&keeper.idle, memory_order_relaxed);
    core_unlock(&mask);
    futex_wait(&keeper.idle, idle, NULL);
    core_lock(&mask);
  }
  fork_mask = mask;
}

static void after_fork_in_parent(void) {
  sigset_t mask = fork_mask;
  mark_forked(false);
  hole_after_fork();
  core_unlock(&mask);
}

static void forget_parent(void) {
  keeper.state = KEEPER_NONE;
  keeper.generation++;
  keeper.busy = false;
  keeper.head = NULL; /* requests of threads that are not here */
  keeper.tail = NULL;
  hole_forget();
  watch_forget();
  persist_forget();
  count_from_zero();
  mark_forked(true);
}

static void after_fork_in_child(void) {
  sigset_t mask = fork_mask;
  forget_parent();
  if (copy_marker != NULL) *copy_marker = 1;
  bool anything = !table_empty();
  core_unlock(&mask);
  if (!anything) return;
  hole_rebuild_all();
  core_lock(&mask);
  watch_all_again();
  core_unlock(&mask);
  keeper_kick();
}

void keeper_notice_copy(void) {
  if (copy_marker == NULL || *copy_marker != 0) return;
  *copy_marker = 1;
  forget_parent();
}

/* With the lock held. Without the page (a kernel before 4.14) a bare clone goes unnoticed. */
static void mark_copies(void) {
  if (copy_marker != NULL) return;
  int *page = page_alloc(page_bytes());
  if (page == NULL) return;
  if (raw_madvise((uintptr_t)page, page_bytes(), MADV_WIPEONFORK) != 0) {
    page_free(page, page_bytes());
    return;
  }
  *page = 1;
  copy_marker = page;
}

int keeper_prepare_forks(void) {
  sigset_t mask;
  core_lock(&mask);
  bool prepared = keeper.forks_prepared;
  keeper.forks_prepared = true;
  mark_copies();
  core_unlock(&mask);
  if (prepared) return 0;
  int error = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  if (error == 0) return 0;
  core_lock(&mask);
  keeper.forks_prepared = false;
  core_unlock(&mask);
  return -error;
}

/* ---- whose file system access it is */

struct identity identity_of_caller(void) {
  /* setfsuid(-1) changes nothing and returns the current one. Not the libc functions: they are the same
   * system call, but documented to be obsolete. */
  struct identity identity = {
      .fsuid = (uid_t)raw_syscall(SYS_setfsuid, -1, 0, 0, 0, 0, 0),
      .fsgid = (gid_t)raw_syscall(SYS_setfsgid, -1, 0, 0, 0, 0, 0),
  };
  return identity;
}

struct identity identity_assume(struct identity identity) {
  struct identity before = identity_of_caller();
  if (before.fsgid != identity.fsgid) raw_syscall(SYS_setfsgid, (long)identity.fsgid, 0, 0, 0, 0, 0);
  if (before.fsuid != identity.fsuid) raw_syscall(SYS_setfsuid, (long)identity.fsuid, 0, 0, 0, 0, 0);
  return before;
}
