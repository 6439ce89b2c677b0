// Who maps a region: what /proc/PID/maps of each process says about it. Reading that waits for the process's memory lock,
// and a process may hold it while it waits for anything, us included: each read is on a thread that may be left behind.
#pragma once

#include <cstdint>
#include <string>
#include <sys/types.h>
#include <vector>

namespace mapdirect {

// A region as maps shows it. st_dev says something else on btrfs and overlayfs.
struct MapsIdentity {
  std::string device;
  uint64_t inode = 0;
  // Of a device, whose nodes are many: its number; 0 for a file.
  dev_t number = 0;
};

struct MapperEntry {
  int pid;
  // 0, or why its mappings are not known: a negative errno, -ETIMEDOUT for a read that did not return.
  int failure;
  // Lines of maps, shared mappings of the region alone.
  std::string lines;
};

// How this process's own mapping at `address` is shown. Returns 0 or a negative errno.
int identifyMapping(const void *address, MapsIdentity &identity);

// One pass over all processes but this one, also those that begin meanwhile. `settled`: nobody new was there at the end.
// Only those that map the region, or whose mappings could not be read, are in `found`.
int findMappings(const std::string &proc, const MapsIdentity &identity, uint64_t patienceMs,
                 std::vector<MapperEntry> &found, bool &settled);

} // namespace mapdirect
