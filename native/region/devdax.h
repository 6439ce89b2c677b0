// What sysfs says about a character DAX device; its st_size and SEEK_END say nothing.
#pragma once

#include <cstdint>
#include <sys/types.h>

namespace mapdirect {

struct DevdaxFacts {
  uint64_t sizeBytes;
  uint64_t alignmentBytes;
};

// 0; -ENODEV when the character device is not a DAX device; another negative errno when sysfs cannot be read.
int readDevdaxFacts(dev_t device, DevdaxFacts &facts);

} // namespace mapdirect
