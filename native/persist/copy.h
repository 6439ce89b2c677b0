// Stores on their way to persistent memory: what these write is durable after the next `drainStores`.
//
// Invariants:
// - no line that a range touches is left dirty in a cache without its flush having been started;
// - bytes outside the range are not written, not even with the value they had (another process may be storing
// there).
#pragma once

#include <cstddef>

namespace mapdirect {

// The ranges do not overlap.
void persistCopy(void *target, const void *source, size_t length);
void persistZero(void *target, size_t length);

} // namespace mapdirect
