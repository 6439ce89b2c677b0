#include "persist/copy.h"

#include "persist/flush.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace mapdirect {

#if defined(__x86_64__)
namespace {

// Below this, going through the cache and flushing is faster than the write-combining buffers.
constexpr size_t kStreamFrom = 256;

// Bytes up to the first line boundary. Only whole lines are streamed: a partly filled write-combining buffer
// becomes several bus transactions, and the line could still be dirty in the cache from an earlier plain
// store.
size_t headBytes(const void *target) {
  const size_t past = reinterpret_cast<uintptr_t>(target) & (kLineBytes - 1);
  return past == 0 ? 0 : kLineBytes - past;
}

void cachedCopy(uint8_t *target, const uint8_t *source, size_t length) {
  if (length == 0) return;
  memcpy(target, source, length);
  flushRange(target, length);
}

void cachedZero(uint8_t *target, size_t length) {
  if (length == 0) return;
  memset(target, 0, length);
  flushRange(target, length);
}

} // namespace

void persistCopy(void *target, const void *source, size_t length) {
  uint8_t *to = static_cast<uint8_t *>(target);
  const uint8_t *from = static_cast<const uint8_t *>(source);
  if (length < kStreamFrom) return cachedCopy(to, from, length);

  const size_t head = headBytes(to);
  cachedCopy(to, from, head);
  to += head;
  from += head;
  length -= head;
  for (; length >= kLineBytes; length -= kLineBytes, to += kLineBytes, from += kLineBytes) {
    const __m128i *words = reinterpret_cast<const __m128i *>(from);
    __m128i *line = reinterpret_cast<__m128i *>(to);
    const __m128i first = _mm_loadu_si128(words);
    const __m128i second = _mm_loadu_si128(words + 1);
    const __m128i third = _mm_loadu_si128(words + 2);
    const __m128i fourth = _mm_loadu_si128(words + 3);
    _mm_stream_si128(line, first);
    _mm_stream_si128(line + 1, second);
    _mm_stream_si128(line + 2, third);
    _mm_stream_si128(line + 3, fourth);
  }
  cachedCopy(to, from, length);
}

void persistZero(void *target, size_t length) {
  uint8_t *to = static_cast<uint8_t *>(target);
  if (length < kStreamFrom) return cachedZero(to, length);

  const size_t head = headBytes(to);
  cachedZero(to, head);
  to += head;
  length -= head;
  const __m128i zero = _mm_setzero_si128();
  for (; length >= kLineBytes; length -= kLineBytes, to += kLineBytes) {
    __m128i *line = reinterpret_cast<__m128i *>(to);
    for (size_t i = 0; i < kLineBytes / sizeof zero; i++)
      _mm_stream_si128(line + i, zero);
  }
  cachedZero(to, length);
}

#else

// aarch64's stnp is a hint only and stays in the cache, so the flush is needed in any case.
void persistCopy(void *target, const void *source, size_t length) {
  if (length == 0) return;
  memcpy(target, source, length);
  flushRange(target, length);
}

void persistZero(void *target, size_t length) {
  if (length == 0) return;
  memset(target, 0, length);
  flushRange(target, length);
}

#endif

} // namespace mapdirect
