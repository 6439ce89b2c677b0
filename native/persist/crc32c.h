// CRC-32C (Castagnoli, RFC 3720): the checksum of every structure on a region.
//
// Invariants:
// - every implementation gives the same result for the same bytes, however they are cut into calls:
//   crc32c(crc32c(0, a), b) == crc32c(0, a followed by b);
// - the implementation is chosen once, when the program is loaded, and never changes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mapdirect {

// `seed` is the result for the bytes before these, 0 for the first.
uint32_t crc32c(uint32_t seed, const void *data, size_t length);

// The portable implementation, which the chosen one must agree with.
uint32_t crc32cTable(uint32_t seed, const void *data, size_t length);

// "sse4.2", "armv8-crc" or "table".
const char *crc32cMethod();

} // namespace mapdirect
