/* Counters of the process. Atomic, each for itself: read together they may be a moment apart. */
#include "internal.h"

static _Atomic uint64_t counters[COUNTERS];

void count_up(enum counter counter, uint64_t by) {
  atomic_fetch_add_explicit(&counters[counter], by, memory_order_relaxed);
}

uint64_t counted(enum counter counter) {
  return atomic_load_explicit(&counters[counter], memory_order_relaxed);
}

void count_from_zero(void) {
  for (size_t index = 0; index < COUNTERS; index++)
    atomic_store_explicit(&counters[index], 0, memory_order_relaxed);
}
