/*
 * Breaks for threads of the program: mapdirect_hand_over() is a handler that offers each break to whoever is in
 * mapdirect_wait_break(), and waits for the answer. For languages whose code cannot run on a thread of the library.
 *
 * One slot is enough, for the watcher tells of one break after the other. Its word is the number of the offer and a state:
 *
 *   EMPTY -> OFFERED    by the watcher, which has filled in `what`
 *   OFFERED -> TAKEN    by a thread of the program
 *   TAKEN -> EMPTY      by its answer
 *   any -> EMPTY        by the watcher, when it waits no longer
 *
 * `what` is written when the word is EMPTY alone, so whoever has copied it and then takes that offer has it whole. A number is
 * not used again for a billion offers: an answer that comes late is never taken for that to the next.
 */
#include "internal.h"

#include <limits.h>
#include <linux/futex.h>
#include <time.h>

#include "syscall.h"

enum { EMPTY, OFFERED, TAKEN, STATES = 4 };

static struct {
  _Atomic uint32_t word; /* futex */
  _Atomic pid_t
      listening; /* the process that has waited: a forked child has no thread that does before it says so */
  struct mapdirect_break what;
} slot;

static uint64_t now_ms(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

static long wait_while(uint32_t word, uint64_t limit_ms) {
  struct timespec timeout = {.tv_sec = (time_t)(limit_ms / 1000),
                             .tv_nsec = (long)(limit_ms % 1000) * 1000000};
  return raw_syscall(SYS_futex, (long)&slot.word, FUTEX_WAIT_PRIVATE, (long)word, (long)&timeout, 0, 0);
}

static void change_to(uint32_t word) {
  atomic_store(&slot.word, word);
  raw_syscall(SYS_futex, (long)&slot.word, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0);
}

void relay_hand_over(const struct mapdirect_break *what, bool until_answered) {
  if (atomic_load(&slot.listening) != getpid()) return;
  /* A quarter of the time is left for taking the memory away. */
  uint64_t end_ms = until_answered ? UINT64_MAX : now_ms() + what->remaining_ms / 4 * 3;
  uint32_t number = atomic_load(&slot.word) / STATES * STATES + STATES;
  slot.what = *what;
  slot.what.reserved = number;
  change_to(number | OFFERED);
  for (;;) {
    uint32_t word = atomic_load(&slot.word);
    if (word == (number | EMPTY)) return;
    uint64_t now = now_ms();
    if (now >= end_ms) break;
    wait_while(word, end_ms - now < INT_MAX ? end_ms - now : INT_MAX);
  }
  change_to(number | EMPTY);
}

/* What a parent had in its slot is not this process's to take. */
void relay_listen(void) {
  pid_t self = getpid();
  if (atomic_load(&slot.listening) == self) return;
  sigset_t mask;
  core_lock(&mask);
  if (atomic_load(&slot.listening) != self) {
    atomic_store(&slot.word, atomic_load(&slot.word) / STATES * STATES);
    atomic_store(&slot.listening, self);
  }
  core_unlock(&mask);
}

int relay_wait(struct mapdirect_break *what, int timeout_ms) {
  relay_listen();
  uint64_t end_ms = now_ms() + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms);
  for (;;) {
    uint32_t word = atomic_load(&slot.word);
    if (word % STATES == OFFERED) {
      *what = slot.what;
      if (atomic_compare_exchange_strong(&slot.word, &word, word - OFFERED + TAKEN)) return 0;
      continue;
    }
    uint64_t now = now_ms();
    if (timeout_ms >= 0 && now >= end_ms) return -ETIMEDOUT;
    uint64_t limit_ms = timeout_ms < 0 ? INT_MAX : end_ms - now;
    if (wait_while(word, limit_ms) == -EINTR) return -EINTR;
  }
}

int relay_answer(const struct mapdirect_break *what) {
  uint32_t taken = what->reserved | TAKEN;
  if (!atomic_compare_exchange_strong(&slot.word, &taken, what->reserved | EMPTY)) return -ETIMEDOUT;
  raw_syscall(SYS_futex, (long)&slot.word, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0);
  return 0;
}
