/*
 * Making stores durable: CPU cache flush and fence where the region has cache-line granularity, msync
 * elsewhere.
 *
 * The flush instruction is chosen once, from what the CPU says. clwb keeps the line cached and may be ordered
 * freely; clflushopt evicts it; clflush is ordered with itself and slow. A store fence completes the first
 * two.
 */
#include "internal.h"

#include "syscall.h"

#if defined(__x86_64__)
#include <cpuid.h>

#define LINE_BYTES 64u

enum flush_method { FLUSH_UNKNOWN, FLUSH_CLFLUSH, FLUSH_CLFLUSHOPT, FLUSH_CLWB };

static enum flush_method flush_method(void) {
  static _Atomic int chosen;
  int method = atomic_load_explicit(&chosen, memory_order_relaxed);
  if (method == FLUSH_UNKNOWN) {
    unsigned a = 0;
    unsigned b = 0;
    unsigned c = 0;
    unsigned d = 0;
    __get_cpuid_count(7, 0, &a, &b, &c, &d);
    if ((b & (1u << 24)) != 0)
      method = FLUSH_CLWB;
    else if ((b & (1u << 23)) != 0)
      method = FLUSH_CLFLUSHOPT;
    else
      method = FLUSH_CLFLUSH; /* part of the x86-64 baseline (SSE2) */
    atomic_store_explicit(&chosen, method, memory_order_relaxed);
  }
  return (enum flush_method)method;
}

bool persist_can_flush(void) {
  return true;
}

static void flush_lines(uintptr_t start, uintptr_t end) {
  uintptr_t line = start & ~(uintptr_t)(LINE_BYTES - 1);
  switch (flush_method()) {
  case FLUSH_CLWB:
    for (; line < end; line += LINE_BYTES)
      __asm__ volatile("clwb %0" : "+m"(*(volatile char *)line));
    break;
  case FLUSH_CLFLUSHOPT:
    for (; line < end; line += LINE_BYTES)
      __asm__ volatile("clflushopt %0" : "+m"(*(volatile char *)line));
    break;
  default:
    for (; line < end; line += LINE_BYTES)
      __asm__ volatile("clflush %0" : "+m"(*(volatile char *)line));
  }
}

static void fence(void) {
  __asm__ volatile("sfence" ::: "memory");
}

#elif defined(__aarch64__)
#include <sys/auxv.h>

#ifndef HWCAP_DCPOP
#define HWCAP_DCPOP (1ul << 16)
#endif

bool persist_can_flush(void) {
  return true;
}

static void flush_lines(uintptr_t start, uintptr_t end) {
  uint64_t cache_type;
  __asm__("mrs %0, ctr_el0" : "=r"(cache_type));
  uintptr_t line_bytes = (uintptr_t)4 << ((cache_type >> 16) & 15);
  uintptr_t line = start & ~(line_bytes - 1);
  /* To the point of persistence where the CPU knows one, else to the point of coherency. */
  if ((getauxval(AT_HWCAP) & HWCAP_DCPOP) != 0) {
    for (; line < end; line += line_bytes)
      __asm__ volatile("sys #3, c7, c12, #1, %0" ::"r"(line) : "memory");
  } else {
    for (; line < end; line += line_bytes)
      __asm__ volatile("dc cvac, %0" ::"r"(line) : "memory");
  }
}

static void fence(void) {
  __asm__ volatile("dsb sy" ::: "memory");
}

#else

bool persist_can_flush(void) {
  return false;
}
static void flush_lines(uintptr_t start, uintptr_t end) {
  (void)start, (void)end;
}
static void fence(void) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

#endif

/* ---- flushing and revocation: a flush of a page that was taken away would raise SIGBUS */

/* In between it is looked whether the mapping leaves. */
#define FLUSH_BYTES (64u << 10)
/* A thread that flushes may have been interrupted by a signal handler that waits for us. */
#define LEAVE_YIELDS_MAX 10000
#define STRIPES 16u

/* Threads that flush, counted in several places so that they do not disturb each other. */
static struct { _Alignas(64) _Atomic uint32_t count; } flushing[STRIPES];

static _Atomic uint32_t *begin_flush(void) {
  /* Of a thread, some number that others hardly have. */
  uintptr_t place = (uintptr_t)__builtin_frame_address(0) >> 16;
  _Atomic uint32_t *count = &flushing[(place ^ place >> 4) % STRIPES].count;
  atomic_fetch_add(count, 1);
  return count;
}

static void end_flush(_Atomic uint32_t *count) {
  atomic_fetch_sub_explicit(count, 1, memory_order_release);
}

void persist_leave(struct mapping *mapping, uint32_t leaves) {
  atomic_store(&mapping->leaves, leaves);
  if (!mapping->cacheline) return;
  unsigned yields = 0;
  for (unsigned stripe = 0; stripe < STRIPES; stripe++)
    while (atomic_load(&flushing[stripe].count) != 0 && yields++ < LEAVE_YIELDS_MAX)
      raw_syscall(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
}

void persist_forget(void) {
  for (unsigned stripe = 0; stripe < STRIPES; stripe++)
    atomic_store(&flushing[stripe].count, 0);
}

/* One piece of [at, end): flushed when cache lines make it durable, else left to msync. */
static bool flush_piece(const struct piece *piece, uintptr_t at, uintptr_t upto) {
  if (piece->state != PIECE_DIRECT || !piece->mapping->cacheline) return false;
  bool stays = true;
  for (uintptr_t next; stays && at < upto; at = next) {
    next = upto - at > FLUSH_BYTES ? at + FLUSH_BYTES : upto;
    _Atomic uint32_t *count = begin_flush();
    stays = atomic_load(&piece->mapping->leaves) == LEAVES_NOT;
    if (stays) flush_lines(at, next);
    end_flush(count);
  }
  return stays;
}

/* What msync(2) did then, it did for what is in the place of the pages that were stored to. */
static bool has_gone(const struct piece *piece) {
  return piece->state == PIECE_DIRECT && atomic_load(&piece->mapping->leaves) == LEAVES_FOR_SIGBUS;
}

int core_persist(uintptr_t start, size_t length) {
  uintptr_t end = start + length;
  if (end < start) return -ENOMEM;
  int error = 0;
  for (uintptr_t at = start; at < end;) {
    struct piece piece;
    if (!table_find(at, &piece, NULL) || piece.start > at) return -ENOMEM;
    uintptr_t upto = piece.end < end ? piece.end : end;
    bool by_kernel = piece.state == PIECE_DIRECT || piece.state == PIECE_CACHED;
    if (piece.state == PIECE_REVOKED) {
      error = -EIO; /* what was stored there may not be durable, and can no longer be made so */
    } else if (!flush_piece(&piece, at, upto) && by_kernel) {
      uintptr_t first = at & ~(page_bytes() - 1);
      int result = raw_msync(first, upto - first, MS_SYNC);
      if (has_gone(&piece)) result = -EIO;
      if (result != 0 && error == 0) error = result; /* the rest of the range deserves its chance */
    }
    at = upto;
  }
  fence();
  return error;
}

int core_msync(uintptr_t start, size_t length, int flags) {
  uintptr_t page = page_bytes();
  bool known = (flags & ~(MS_ASYNC | MS_INVALIDATE | MS_SYNC)) == 0;
  bool both = (flags & MS_ASYNC) != 0 && (flags & MS_SYNC) != 0;
  if (!known || both || !is_aligned(start, page)) return -EINVAL;
  if (length > UINTPTR_MAX - start - page) return -ENOMEM;
  uintptr_t end = start + round_up(length, page);
  bool unmapped = false;
  bool revoked = false;
  for (uintptr_t at = start; at < end;) {
    struct piece piece;
    uintptr_t upto = end;
    bool flushed = false;
    if (table_find(at, &piece, NULL) && piece.start < end) {
      bool direct = piece.start <= at;
      upto = direct ? piece.end : piece.start;
      if (upto > end) upto = end;
      flushed = direct && flush_piece(&piece, at, upto); /* device-dax has no msync */
      revoked |= direct && (piece.state == PIECE_REVOKED || has_gone(&piece));
    }
    if (!flushed) {
      int error = raw_msync(at, upto - at, flags);
      if (error == -ENOMEM)
        unmapped = true; /* the kernel goes on over gaps and tells at the end */
      else if (error != 0)
        return error;
    }
    at = upto;
  }
  fence();
  if (unmapped) return -ENOMEM;
  return revoked ? -EIO : 0;
}
