/*
 * The library's threads, and the work that is queued for them.
 *
 *   keeper    takes away and lets go: breaks, the ends of mappings, watches. Nothing that it does waits for anybody's lease
 *   mapper    makes mappings. A grant may have to wait (for a snapshot, for pages to be written back), and what the keeper
 *             does meanwhile may be what it waits for
 *   watcher   (break.c) sleeps until a lease is broken, and runs the program's handler
 *
 * The keeper makes the other two, so the three share its descriptor table, which the program does not see. Why a table of
 * their own:
 * - daemons close every descriptor they find, programs count theirs and expect the lowest free number: what
 * has to live as long as a mapping (its watch, the userfaultfd) must not be in their table;
 * - close(2) of *any* descriptor of a file drops all POSIX record locks that the process holds on it, where
 * "the process" is the descriptor table. The lease description is one more descriptor of the program's file:
 * closed in the program's table it would silently drop the program's locks;
 * - a fork in another thread, between our open and our close, would leave the child with a copy of the lease
 * description, and the lease would live as long as the child.
 *
 * They are pthreads, not bare clones, because glibc's setuid() must reach them: a thread left with the
 * credentials that the program gave up would be a way back to them. Every signal of the program is blocked in them; the one
 * by which glibc does that is not, and interrupts what they do (again(), syscall.h). The keeper ends a second after the last
 * mapping, and the others with it.
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

/* What waits for one thread, the oldest first. Guarded by the core lock, except the futex word, which is written under it and
 * waited on without. */
struct queue {
  struct request *head;
  struct request *tail;
  _Atomic uint32_t work; /* futex: changes when there is something to do */
};

/* Guarded by the core lock. */
static struct {
  enum { KEEPER_NONE, KEEPER_STARTING, KEEPER_RUNNING } state;
  uint32_t generation; /* changes when a keeper, and with it its descriptor table, ends */
  bool dozes;          /* it sleeps until there is work, though watches may come due */
  bool forks_prepared;
  struct queue queue;
} keeper;

/* Guarded by the core lock, except the futex word. */
static struct {
  bool running;
  bool busy;   /* a request is being run */
  bool stops;  /* with the keeper */
  bool places; /* addresses are being mapped that the table does not have yet */
  uint64_t forks_begun;
  uint64_t forks_ended;
  _Atomic uint32_t turn; /* futex: changes with the three above */
  pthread_t thread;
  struct queue queue;
} mapper;

/* The mask of the thread that forks, between the prepare handler and the two others; guarded by the lock it holds. */
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
static _Thread_local bool knows_numbers __attribute__((tls_model("initial-exec"))); /* keeper or mapper */
_Thread_local enum thread_table thread_table;

static void assert_knows_numbers(void) {
#ifdef MAPDIRECT_CHECKS
  if (!knows_numbers) __builtin_trap();
#endif
}

struct keeper_fd keeper_fd_of(int number) {
  assert_knows_numbers();
  return knows_numbers ? (struct keeper_fd){.hidden = number} : KEEPER_NO_FD;
}

int keeper_fd_number(struct keeper_fd fd) {
  assert_knows_numbers();
  return knows_numbers ? fd.hidden : -1;
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

/* The queue, with the lock held. */

static void push(struct queue *queue, struct request *request) {
  request->next = NULL;
  atomic_store_explicit(&request->done, 0, memory_order_relaxed);
  if (queue->tail == NULL)
    queue->head = request;
  else
    queue->tail->next = request;
  queue->tail = request;
  atomic_fetch_add_explicit(&queue->work, 1, memory_order_relaxed);
}

static struct request *pop(struct queue *queue) {
  struct request *request = queue->head;
  if (request != NULL) queue->head = request->next;
  if (queue->head == NULL) queue->tail = NULL;
  return request;
}

/* Nothing will run what is queued. */
static void fail_all(struct queue *queue, int error) {
  for (struct request *request; (request = pop(queue)) != NULL;) {
    request->error = error;
    finish(request);
  }
}

static void forget_all(struct queue *queue) {
  queue->head = NULL;
  queue->tail = NULL;
}

/* Give up the lock until there is work, or so long (ms; WATCH_NOTHING: for ever). False: nothing came. */
static bool wait_for_work(struct queue *queue, uint64_t for_ms, const sigset_t *mask) {
  uint32_t work = atomic_load_explicit(&queue->work, memory_order_relaxed);
  core_unlock(mask);
  struct timespec timeout = {.tv_sec = (time_t)(for_ms / 1000), .tv_nsec = (long)(for_ms % 1000) * 1000000};
  futex_wait(&queue->work, work, for_ms == WATCH_NOTHING ? NULL : &timeout);
  sigset_t same;
  core_lock(&same);
  return work != atomic_load_explicit(&queue->work, memory_order_relaxed);
}

static void wake(struct queue *queue) {
  atomic_fetch_add_explicit(&queue->work, 1, memory_order_relaxed);
  futex_wake(&queue->work);
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

static int create(pthread_t *thread, void *(*run)(void *unused)) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  int error = pthread_create(thread, &attributes, run, NULL);
  pthread_attr_destroy(&attributes);
  /* The program's thread-local storage alone may be larger than that. */
  return error == EINVAL ? pthread_create(thread, NULL, run, NULL) : error;
}

/* ---- the mapper */

/* With the lock held, which is given up meanwhile. */
static void wait_for_turn(const sigset_t *mask) {
  uint32_t turn = atomic_load_explicit(&mapper.turn, memory_order_relaxed);
  core_unlock(mask);
  futex_wait(&mapper.turn, turn, NULL);
  sigset_t same;
  core_lock(&same);
}

static void next_turn(void) {
  atomic_fetch_add_explicit(&mapper.turn, 1, memory_order_relaxed);
  futex_wake(&mapper.turn);
}

void mapper_begin_placing(void) {
  sigset_t mask;
  core_lock(&mask);
  uint64_t forks = mapper.forks_begun; /* those before us; who comes later waits for us */
  while (mapper.forks_ended < forks)
    wait_for_turn(&mask);
  mapper.places = true;
  core_unlock(&mask);
}

void mapper_end_placing(void) {
  sigset_t mask;
  core_lock(&mask);
  if (mapper.places) {
    mapper.places = false;
    next_turn();
  }
  core_unlock(&mask);
}

static void *mapper_main(void *unused) {
  prctl(PR_SET_NAME, "mapdirect-map", 0, 0, 0);
  knows_numbers = true;
  thread_table = TABLE_OF_KEEPER;
  sigset_t mask;
  core_lock(&mask);
  while (!mapper.stops) {
    struct request *request = pop(&mapper.queue);
    /* Most mappings that live shortly are gone before their watch is due: for them the keeper need not wake up. */
    uint64_t due_ms = keeper.dozes ? watch_due_ms() : WATCH_NOTHING;
    if (due_ms == 0 || (request != NULL && due_ms != WATCH_NOTHING)) wake(&keeper.queue);
    if (request == NULL) {
      wait_for_work(&mapper.queue, due_ms == 0 ? WATCH_NOTHING : due_ms, &mask);
    } else {
      mapper.busy = true;
      core_unlock(&mask);
      request->run(request);
      finish(request);
      core_lock(&mask);
      mapper.busy = false;
      if (table_empty()) wake(&keeper.queue); /* it may end */
    }
  }
  core_unlock(&mask);
  return unused;
}

static bool mapper_idle(void) {
  return !mapper.busy && mapper.queue.head == NULL;
}

/* On the keeper, with the lock held, which is given up meanwhile. */
static void start_mapper(const sigset_t *mask) {
  mapper.running = true; /* before it can have slept: who queues something from here on wakes it */
  core_unlock(mask);
  int error = create(&mapper.thread, mapper_main);
  sigset_t same;
  core_lock(&same);
  if (error == 0) return;
  mapper.running = false;
  fail_all(&mapper.queue, -error);
}

/* The same. */
static void stop_mapper(const sigset_t *mask) {
  if (!mapper.running) return;
  mapper.stops = true;
  wake(&mapper.queue);
  core_unlock(mask);
  pthread_join(mapper.thread, NULL);
  sigset_t same;
  core_lock(&same);
  mapper.stops = false;
  mapper.running = false;
}

/* ---- the keeper */

static void *keeper_main(void *unused) {
  (void)unused;
  leave_scheduling();
  prctl(PR_SET_NAME, "mapdirect", 0, 0, 0);
  int error = leave_descriptors();
  knows_numbers = error == 0;
  thread_table = TABLE_OF_KEEPER;
  sigset_t mask;
  core_lock(&mask);
  if (error != 0) {
    keeper.state = KEEPER_NONE;
    fail_all(&keeper.queue, error);
    fail_all(&mapper.queue, error);
    core_unlock(&mask);
    return NULL;
  }
  keeper.state = KEEPER_RUNNING;
  bool lingered = false;
  for (;;) {
    if (!mapper.running && mapper.queue.head != NULL) start_mapper(&mask);
    uint64_t due_ms = watch_due_ms();
    struct request *request = due_ms == 0 ? NULL : pop(&keeper.queue);
    if (request != NULL || due_ms == 0) {
      core_unlock(&mask);
      if (request != NULL) {
        request->run(request);
        finish(request);
      } else {
        watch_begin();
      }
      core_lock(&mask);
      lingered = false;
      continue;
    }
    bool unused_now = table_empty() && mapper_idle();
    if (unused_now && lingered) {
      stop_mapper(&mask);
      /* Work that came meanwhile goes first. */
      if (table_empty() && mapper.queue.head == NULL && keeper.queue.head == NULL) break;
      lingered = false;
      continue;
    }
    keeper.dozes = due_ms == WATCH_NOTHING;
    bool came =
        wait_for_work(&keeper.queue, keeper.dozes && unused_now ? LINGER_SECONDS * 1000 : due_ms, &mask);
    keeper.dozes = false;
    lingered = unused_now && !came;
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
  push(&keeper.queue, request);
}

/* Start the thread. Without the lock: pthread_create allocates, and an allocator may unmap. */
static void start(const sigset_t *blocked_from) {
  pthread_t thread;
  int error = create(&thread, keeper_main);
  if (error == 0) {
    pthread_detach(thread);
  } else {
    sigset_t mask;
    core_lock(&mask);
    keeper.state = KEEPER_NONE;
    fail_all(&keeper.queue, -error);
    fail_all(&mapper.queue, -error);
    core_unlock(&mask);
  }
  pthread_sigmask(SIG_SETMASK, blocked_from, NULL);
}

void keeper_kick(void) {
  sigset_t mask;
  core_lock(&mask);
  bool any = keeper.queue.head != NULL || mapper.queue.head != NULL;
  bool begins = keeper.state == KEEPER_NONE && any;
  if (begins) keeper.state = KEEPER_STARTING;
  if (!begins) {
    /* Without a mapper the keeper has to make one. */
    if (mapper.queue.head != NULL && !mapper.running) wake(&keeper.queue);
    core_unlock(&mask);
    futex_wake(&keeper.queue.work);
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

int mapper_run(struct request *request) {
  sigset_t mask;
  core_lock(&mask);
  push(&mapper.queue, request);
  bool running = mapper.running;
  core_unlock(&mask);
  if (running)
    futex_wake(&mapper.queue.work);
  else
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

/*
 * A child would inherit the anchor of a mapping that is still being made, and nobody in the child would know of it. So address
 * spaces are copied while the mapper places nothing: by turns, so that neither threads that map nor threads that fork keep the
 * others waiting. Signals stay blocked: a handler that left with siglongjmp would keep the mapper from its turn.
 */
static void before_fork(void) {
  sigset_t mask;
  sigset_t all;
  sigfillset(&all);
  core_lock(&mask);
  hole_before_fork(&mask);
  mapper.forks_begun++;
  while (mapper.places)
    wait_for_turn(&all);
  fork_mask = mask;
}

static void after_fork_in_parent(void) {
  sigset_t mask = fork_mask;
  mark_forked(false);
  hole_after_fork();
  mapper.forks_ended++;
  next_turn();
  core_unlock(&mask);
}

static void forget_parent(void) {
  keeper.state = KEEPER_NONE;
  keeper.generation++;
  keeper.dozes = false;
  forget_all(&keeper.queue); /* requests of threads that are not here */
  mapper.running = false;
  mapper.busy = false;
  mapper.stops = false;
  mapper.places = false;
  mapper.forks_begun = 0;
  mapper.forks_ended = 0;
  forget_all(&mapper.queue);
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

static void identity_set(struct identity from, struct identity to) {
  if (from.fsgid != to.fsgid) raw_syscall(SYS_setfsgid, (long)to.fsgid, 0, 0, 0, 0, 0);
  if (from.fsuid != to.fsuid) raw_syscall(SYS_setfsuid, (long)to.fsuid, 0, 0, 0, 0, 0);
}

struct identity identity_assume(struct identity identity) {
  struct identity before = identity_of_caller();
  identity_set(before, identity);
  return before;
}

void identity_restore(struct identity before, struct identity assumed) {
  identity_set(assumed, before);
}
