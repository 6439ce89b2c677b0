// Flushing CPU caches towards persistent memory.
//
// Invariants:
// - the instruction is chosen once, from what the CPU says it has, and never changes;
// - `flushRange` starts the write-back of every line that the range touches; it is complete only after
// `drainStores`;
// - neither changes any byte.
#pragma once

#include <cstddef>

namespace mapdirect {

constexpr size_t kLineBytes =
    64; // the flush granule assumed everywhere; larger real granules flush more, never less

void flushRange(const void *begin, size_t length);

// Order everything stored and flushed before this against everything after, and wait for it.
void drainStores();

// "clwb", "clflushopt", "clflush", "dc cvap", "dc cvac".
const char *flushMethod();

} // namespace mapdirect
