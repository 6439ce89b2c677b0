/* Counters of the process. Atomic, each for itself: read together they may be a moment apart. */
#include "internal.h"

#include "syscall.h"

static _Atomic uint64_t counters[COUNTERS];
static _Atomic pid_t counting; /* the process that they are of */

void count_up(enum counter counter, uint64_t by) {
  atomic_fetch_add_explicit(&counters[counter], by, memory_order_relaxed);
}

uint64_t counted(enum counter counter) {
  return atomic_load_explicit(&counters[counter], memory_order_relaxed);
}

bool counts_are_ours(void) {
  return (pid_t)raw_syscall(SYS_getpid, 0, 0, 0, 0, 0, 0) == atomic_load(&counting);
}

void count_from_zero(void) {
  atomic_store(&counting, (pid_t)raw_syscall(SYS_getpid, 0, 0, 0, 0, 0, 0));
  for (size_t index = 0; index < COUNTERS; index++)
    atomic_store_explicit(&counters[index], 0, memory_order_relaxed);
}
