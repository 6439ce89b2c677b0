#include "persist/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#define CRC_TARGET __attribute__((target("sse4.2")))
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>
#define CRC_TARGET __attribute__((target("+crc")))
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#endif

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are loaded as they lie in memory");

namespace mapdirect {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78; // reflected

using Table = std::array<uint32_t, 256>;

// kTables[k][b]: the effect of byte b followed by k zero bytes (slicing by eight).
constexpr std::array<Table, 8> makeTables() {
  std::array<Table, 8> tables{};
  for (uint32_t byte = 0; byte < 256; byte++) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; bit++)
      crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (size_t k = 1; k < 8; k++)
    for (size_t byte = 0; byte < 256; byte++)
      tables[k][byte] = tables[0][tables[k - 1][byte] & 0xff] ^ (tables[k - 1][byte] >> 8);
  return tables;
}
constexpr std::array<Table, 8> kTables = makeTables();

uint64_t load64(const uint8_t *at) {
  uint64_t word;
  memcpy(&word, at, sizeof word);
  return word;
}

#ifdef CRC_TARGET

// The crc instruction has a latency of three cycles and a throughput of one: three independent streams hide
// it. Each lane is kLane bytes; joining two lanes means running the first one's crc over kLane zero bytes,
// which is linear and therefore a lookup by byte.
constexpr size_t kLane = 256;

constexpr std::array<Table, 4> makeLaneShift() {
  std::array<uint32_t, 32> basis{};
  for (size_t bit = 0; bit < 32; bit++) {
    uint32_t crc = 1U << bit;
    for (size_t zeros = 0; zeros < kLane; zeros++)
      crc = kTables[0][crc & 0xff] ^ (crc >> 8);
    basis[bit] = crc;
  }
  std::array<Table, 4> shift{};
  for (size_t part = 0; part < 4; part++)
    for (size_t byte = 0; byte < 256; byte++)
      for (size_t bit = 0; bit < 8; bit++)
        if ((byte >> bit & 1) != 0) shift[part][byte] ^= basis[part * 8 + bit];
  return shift;
}
constexpr std::array<Table, 4> kLaneShift = makeLaneShift();

uint32_t shiftLane(uint32_t crc) {
  return kLaneShift[0][crc & 0xff] ^ kLaneShift[1][crc >> 8 & 0xff] ^ kLaneShift[2][crc >> 16 & 0xff] ^
         kLaneShift[3][crc >> 24];
}

#if defined(__x86_64__)
CRC_TARGET inline uint32_t step64(uint32_t crc, uint64_t word) {
  return static_cast<uint32_t>(_mm_crc32_u64(crc, word));
}
CRC_TARGET inline uint32_t step8(uint32_t crc, uint8_t byte) {
  return _mm_crc32_u8(crc, byte);
}
#else
CRC_TARGET inline uint32_t step64(uint32_t crc, uint64_t word) {
  return __crc32cd(crc, word);
}
CRC_TARGET inline uint32_t step8(uint32_t crc, uint8_t byte) {
  return __crc32cb(crc, byte);
}
#endif

CRC_TARGET uint32_t crc32cHardware(uint32_t seed, const void *data, size_t length) {
  const uint8_t *at = static_cast<const uint8_t *>(data);
  uint32_t crc = ~seed;
  for (; length >= 3 * kLane; length -= 3 * kLane, at += 3 * kLane) {
    uint32_t second = 0;
    uint32_t third = 0;
    for (size_t i = 0; i < kLane; i += 8) {
      crc = step64(crc, load64(at + i));
      second = step64(second, load64(at + kLane + i));
      third = step64(third, load64(at + 2 * kLane + i));
    }
    crc = shiftLane(crc) ^ second;
    crc = shiftLane(crc) ^ third;
  }
  for (; length >= 8; length -= 8, at += 8)
    crc = step64(crc, load64(at));
  for (; length > 0; length--, at++)
    crc = step8(crc, *at);
  return ~crc;
}

bool hardwarePresent() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("sse4.2") != 0;
#else
  return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
#endif
}

#endif // CRC_TARGET

struct Choice {
  uint32_t (*run)(uint32_t, const void *, size_t);
  const char *name;
};

Choice choose() {
#if defined(__x86_64__)
  if (hardwarePresent()) return {crc32cHardware, "sse4.2"};
#elif defined(__aarch64__)
  if (hardwarePresent()) return {crc32cHardware, "armv8-crc"};
#endif
  return {crc32cTable, "table"};
}

const Choice kChoice = choose();

} // namespace

uint32_t crc32cTable(uint32_t seed, const void *data, size_t length) {
  const uint8_t *at = static_cast<const uint8_t *>(data);
  uint32_t crc = ~seed;
  for (; length >= 8; length -= 8, at += 8) {
    const uint64_t word = load64(at) ^ crc;
    crc = kTables[7][word & 0xff] ^ kTables[6][word >> 8 & 0xff] ^ kTables[5][word >> 16 & 0xff] ^
          kTables[4][word >> 24 & 0xff] ^ kTables[3][word >> 32 & 0xff] ^ kTables[2][word >> 40 & 0xff] ^
          kTables[1][word >> 48 & 0xff] ^ kTables[0][word >> 56];
  }
  for (; length > 0; length--, at++)
    crc = kTables[0][(crc ^ *at) & 0xff] ^ (crc >> 8);
  return ~crc;
}

uint32_t crc32c(uint32_t seed, const void *data, size_t length) {
  return kChoice.run(seed, data, length);
}

const char *crc32cMethod() {
  return kChoice.name;
}

} // namespace mapdirect
