/*
 * Which addresses are direct mappings: one array of pieces sorted by address, and the one lock of the
 * library.
 *
 * Invariants (table_check, after every change in test builds with MAPDIRECT_CHECKS):
 * - pieces are sorted, not empty, page-aligned and do not overlap;
 * - a mapping's piece_count is the number of its pieces, and it has exactly one anchor piece while it is in
 * the table, none after revocation;
 * - table_bounds covers every piece;
 * - a piece in the table is mapped as it says, except where the program went behind the library's back.
 *
 * Readers without the lock (table_find) use the sequence: odd while a writer is at work, and changed after.
 * What they read may be half-written, so they look at it only after the sequence proves that it was not;
 * arrays that were outgrown stay mapped (they double, so together they are smaller than the one in use).
 */
#include "internal.h"

#include <pthread.h>
#include <string.h>

#include "syscall.h"

/* A growing array with its capacity in front, so that a reader never indexes past the array it has. */
struct piece_array {
  size_t capacity;
  struct piece items[];
};

struct table_bounds table_bounds = {.low = UINTPTR_MAX, .high = 0};

static struct {
  pthread_mutex_t mutex;
  _Atomic uint32_t sequence;
  _Atomic(struct piece_array *) array;
  _Atomic size_t count;
  struct mapping *free_mappings;
  uint64_t serials;
} table = {.mutex = PTHREAD_MUTEX_INITIALIZER};

void core_lock(sigset_t *saved) {
  /* pthread_sigmask leaves glibc's own two signals (cancellation, setuid for all threads) alone. */
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, saved);
  pthread_mutex_lock(&table.mutex);
  keeper_notice_copy();
}

void core_unlock(const sigset_t *saved) {
  pthread_mutex_unlock(&table.mutex);
  pthread_sigmask(SIG_SETMASK, saved, NULL);
}

uintptr_t page_bytes(void) {
  static _Atomic uintptr_t known;
  uintptr_t bytes = atomic_load_explicit(&known, memory_order_relaxed);
  if (bytes == 0) {
    bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    atomic_store_explicit(&known, bytes, memory_order_relaxed);
  }
  return bytes;
}

char *append_text(char *at, const char *text) {
  size_t length = strlen(text);
  memcpy(at, text, length + 1);
  return at + length;
}

char *append_number(char *at, unsigned number) {
  char digits[10];
  size_t count = 0;
  do {
    digits[count++] = (char)('0' + number % 10);
    number /= 10;
  } while (number > 0);
  while (count > 0)
    *at++ = digits[--count];
  *at = 0;
  return at;
}

char *append_hex(char *at, uintptr_t number) {
  unsigned shift = 8 * sizeof number;
  while (shift > 4 && number >> (shift - 4) == 0)
    shift -= 4;
  for (; shift > 0; shift -= 4)
    *at++ = "0123456789abcdef"[(number >> (shift - 4)) & 15];
  *at = 0;
  return at;
}

void *page_alloc(size_t bytes) {
  long result = raw_mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return raw_failed(result) ? NULL : (void *)result;
}

void page_free(void *memory, size_t bytes) {
  if (memory != NULL) raw_munmap((uintptr_t)memory, bytes);
}

static struct piece_array *array_of(void) {
  return atomic_load_explicit(&table.array, memory_order_relaxed);
}
size_t table_count(void) {
  return atomic_load_explicit(&table.count, memory_order_relaxed);
}
struct piece *table_at(size_t index) {
  return &array_of()->items[index];
}
bool table_empty(void) {
  return table_count() == 0;
}

static void begin_change(void) {
  uint32_t sequence = atomic_load_explicit(&table.sequence, memory_order_relaxed);
  atomic_store_explicit(&table.sequence, sequence + 1, memory_order_relaxed);
  atomic_thread_fence(memory_order_release);
}

#ifdef MAPDIRECT_CHECKS
static void table_check(void) {
  uintptr_t previous = 0;
  for (size_t index = 0; index < table_count(); index++) {
    const struct piece *piece = table_at(index);
    bool sound = piece->start >= previous && piece->start < piece->end &&
                 is_aligned(piece->start, page_bytes()) && is_aligned(piece->end, page_bytes()) &&
                 piece->start >= table_bounds.low && piece->end <= table_bounds.high &&
                 piece->mapping != NULL;
    if (!sound) __builtin_trap();
    if (piece->state == PIECE_ANCHOR && table_count() <= 256) {
      size_t pieces = 0;
      for (size_t other = 0; other < table_count(); other++) {
        if (table_at(other)->mapping != piece->mapping) continue;
        if (table_at(other)->state != PIECE_ANCHOR)
          pieces++;
        else if (other != index)
          __builtin_trap();
      }
      if (pieces != piece->mapping->piece_count || piece->start != piece->mapping->anchor) __builtin_trap();
    }
    previous = piece->end;
  }
}
#else
static void table_check(void) {}
#endif

static void end_change(void) {
  size_t count = table_count();
  uintptr_t low = count == 0 ? UINTPTR_MAX : table_at(0)->start;
  uintptr_t high = count == 0 ? 0 : table_at(count - 1)->end;
  atomic_store_explicit(&table_bounds.low, low, memory_order_relaxed);
  atomic_store_explicit(&table_bounds.high, high, memory_order_release);
  uint32_t sequence = atomic_load_explicit(&table.sequence, memory_order_relaxed);
  atomic_store_explicit(&table.sequence, sequence + 1, memory_order_release);
  table_check();
}

int table_reserve(size_t extra) {
  struct piece_array *array = array_of();
  size_t count = table_count();
  size_t capacity = array == NULL ? 0 : array->capacity;
  if (count + extra <= capacity) return 0;
  size_t bytes = round_up(sizeof(struct piece_array) + sizeof(struct piece) * (count + extra), page_bytes());
  size_t doubled = 2 * (sizeof(struct piece_array) + sizeof(struct piece) * capacity);
  if (array != NULL && doubled > bytes) bytes = round_up(doubled, page_bytes());
  struct piece_array *larger = page_alloc(bytes);
  if (larger == NULL) return -ENOMEM;
  larger->capacity = (bytes - sizeof(struct piece_array)) / sizeof(struct piece);
  if (count > 0) memcpy(larger->items, array->items, count * sizeof(struct piece));
  begin_change();
  atomic_store_explicit(&table.array, larger, memory_order_release);
  end_change();
  return 0;
}

static size_t lower_bound(const struct piece_array *array, size_t count, uintptr_t address) {
  size_t low = 0;
  size_t high = count;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (array->items[middle].end <= address)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

size_t table_lower(uintptr_t address) {
  return lower_bound(array_of(), table_count(), address);
}

bool table_occupied(uintptr_t start, uintptr_t end) {
  if (table_empty()) return false;
  size_t index = table_lower(start);
  return index < table_count() && table_at(index)->start < end;
}

/* Between begin_change and end_change. */
static void open_gap(size_t index, size_t count) {
  struct piece_array *array = array_of();
  size_t old = table_count();
  memmove(&array->items[index + count], &array->items[index], (old - index) * sizeof(struct piece));
  atomic_store_explicit(&table.count, old + count, memory_order_relaxed);
}

static void close_gap(size_t index, size_t count) {
  struct piece_array *array = array_of();
  size_t old = table_count();
  memmove(&array->items[index], &array->items[index + count], (old - index - count) * sizeof(struct piece));
  atomic_store_explicit(&table.count, old - count, memory_order_relaxed);
}

void table_insert(const struct piece *run, size_t count) {
  if (count == 0) return;
  begin_change();
  size_t index = table_lower(run[0].start);
  open_gap(index, count);
  memcpy(table_at(index), run, count * sizeof(struct piece));
  for (size_t at = 0; at < count; at++) {
    if (run[at].state == PIECE_ANCHOR)
      run[at].mapping->anchor = run[at].start;
    else
      run[at].mapping->piece_count++;
  }
  end_change();
}

static void advance_start(struct piece *piece, uintptr_t start) {
  uint64_t delta = start - piece->start;
  piece->start = start;
  piece->offset += delta;
  if (piece->state == PIECE_DIRECT) piece->physical += delta;
}

void table_cut(uintptr_t start, uintptr_t end, struct mapping **dead) {
  if (table_empty()) return;
  size_t first = table_lower(start);
  if (first == table_count() || table_at(first)->start >= end) return;
  begin_change();
  struct piece *piece = table_at(first);
  if (piece->start < start && piece->end > end) { /* in the middle: the room was reserved */
    open_gap(first, 1);
    piece[0] = piece[1];
    piece[0].end = start;
    advance_start(&piece[1], end);
    piece->mapping->piece_count++;
    end_change();
    return;
  }
  if (piece->start < start) {
    piece->end = start;
    first++;
  }
  size_t past = first;
  while (past < table_count() && table_at(past)->end <= end) {
    struct mapping *mapping = table_at(past)->mapping;
    if (--mapping->piece_count == 0) {
      mapping->next = *dead;
      *dead = mapping;
    }
    past++;
  }
  if (past < table_count() && table_at(past)->start < end) advance_start(table_at(past), end);
  close_gap(first, past - first);
  end_change();
}

void table_remove_anchor(uintptr_t anchor) {
  size_t index = table_lower(anchor);
  begin_change();
  close_gap(index, 1);
  end_change();
}

void table_strike(uintptr_t start, uintptr_t end, struct mapping **dead) {
  if (table_empty()) return;
  for (size_t index = table_lower(start); index < table_count() && table_at(index)->start < end;) {
    const struct piece *piece = table_at(index);
    if (piece->state == PIECE_ANCHOR) {
      piece->mapping->anchor = 0;
      table_remove_anchor(piece->start);
    } else {
      table_cut(start, piece->end < end ? piece->end : end, dead);
      index = table_lower(start);
    }
  }
}

void table_set_state(const struct mapping *mapping, enum piece_state state) {
  begin_change();
  for (size_t index = 0; index < table_count(); index++) {
    struct piece *piece = table_at(index);
    if (piece->mapping == mapping && piece->state != PIECE_ANCHOR) piece->state = state;
  }
  end_change();
}

bool table_find(uintptr_t address, struct piece *piece, struct mapping *mapping) {
  for (;;) {
    uint32_t before = atomic_load_explicit(&table.sequence, memory_order_acquire);
    if (before % 2 == 0) {
      const struct piece_array *array = atomic_load_explicit(&table.array, memory_order_acquire);
      size_t count = atomic_load_explicit(&table.count, memory_order_relaxed);
      bool found = false;
      if (array != NULL) {
        if (count > array->capacity) count = array->capacity;
        size_t index = lower_bound(array, count, address);
        while (index < count && array->items[index].state == PIECE_ANCHOR)
          index++;
        found = index < count;
        if (found) *piece = array->items[index];
        if (found && mapping != NULL) {
          /* A torn pointer is possible only when the sequence has moved on: prove that it has not, then
           * follow it. */
          atomic_thread_fence(memory_order_acquire);
          if (before != atomic_load_explicit(&table.sequence, memory_order_relaxed)) continue;
          memcpy(mapping, piece->mapping, sizeof *mapping); /* never unmapped */
        }
      }
      atomic_thread_fence(memory_order_acquire);
      if (before == atomic_load_explicit(&table.sequence, memory_order_relaxed)) return found;
    }
  }
}

struct mapping *mapping_alloc(void) {
  if (table.free_mappings == NULL) {
    size_t bytes = round_up(16 * sizeof(struct mapping), page_bytes());
    struct mapping *slab = page_alloc(bytes);
    if (slab == NULL) return NULL;
    for (size_t index = 0; index < bytes / sizeof(struct mapping); index++)
      mapping_free(&slab[index]);
  }
  struct mapping *mapping = table.free_mappings;
  table.free_mappings = mapping->next;
  memset(mapping, 0, sizeof *mapping);
  mapping->serial = ++table.serials;
  mapping->watch_fd = KEEPER_NO_FD;
  mapping->lease_fd = KEEPER_NO_FD;
  return mapping;
}

void mapping_free(struct mapping *mapping) {
  mapping->next = table.free_mappings;
  table.free_mappings = mapping;
}
