#include "persist/flush.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#ifndef HWCAP_DCPOP
#define HWCAP_DCPOP (1 << 16)
#endif
#else
#error "mapdirect knows how to flush caches on x86-64 and aarch64 only"
#endif

namespace mapdirect {
namespace {

struct Lines {
  uintptr_t begin;
  uintptr_t end;
};

Lines linesOf(const void *begin, size_t length) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(begin);
  return {at & ~static_cast<uintptr_t>(kLineBytes - 1), at + length};
}

struct Choice {
  void (*flush)(const void *, size_t);
  const char *name;
};

#if defined(__x86_64__)

// clwb keeps the line in the cache, clflushopt drops it, clflush drops it and orders every flush after the
// other.
__attribute__((target("clwb"))) void flushClwb(const void *begin, size_t length) {
  const Lines lines = linesOf(begin, length);
  for (uintptr_t at = lines.begin; at < lines.end; at += kLineBytes)
    _mm_clwb(reinterpret_cast<void *>(at));
}

__attribute__((target("clflushopt"))) void flushClflushopt(const void *begin, size_t length) {
  const Lines lines = linesOf(begin, length);
  for (uintptr_t at = lines.begin; at < lines.end; at += kLineBytes)
    _mm_clflushopt(reinterpret_cast<void *>(at));
}

void flushClflush(const void *begin, size_t length) {
  const Lines lines = linesOf(begin, length);
  for (uintptr_t at = lines.begin; at < lines.end; at += kLineBytes)
    _mm_clflush(reinterpret_cast<void *>(at));
}

Choice choose() {
  constexpr unsigned kClflushopt = 1U << 23;
  constexpr unsigned kClwb = 1U << 24;
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) ebx = 0;
  if ((ebx & kClwb) != 0) return {flushClwb, "clwb"};
  if ((ebx & kClflushopt) != 0) return {flushClflushopt, "clflushopt"};
  return {flushClflush, "clflush"};
}

#else

void flushCvac(const void *begin, size_t length) {
  const Lines lines = linesOf(begin, length);
  for (uintptr_t at = lines.begin; at < lines.end; at += kLineBytes)
    asm volatile("dc cvac, %0" : : "r"(at) : "memory");
}

// "dc cvap" in its generic spelling, so that assemblers for plain armv8-a take it.
void flushCvap(const void *begin, size_t length) {
  const Lines lines = linesOf(begin, length);
  for (uintptr_t at = lines.begin; at < lines.end; at += kLineBytes)
    asm volatile("sys #3, c7, c12, #1, %0" : : "r"(at) : "memory");
}

Choice choose() {
  if ((getauxval(AT_HWCAP) & HWCAP_DCPOP) != 0) return {flushCvap, "dc cvap"};
  return {flushCvac, "dc cvac"};
}

#endif

const Choice kChoice = choose();

} // namespace

void flushRange(const void *begin, size_t length) {
  if (length > 0) kChoice.flush(begin, length);
}

void drainStores() {
#if defined(__x86_64__)
  _mm_sfence();
#else
  asm volatile("dsb sy" : : : "memory");
#endif
}

const char *flushMethod() {
  return kChoice.name;
}

} // namespace mapdirect
