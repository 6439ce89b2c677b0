// A region mapped into this process.
//
// Invariants:
// - the whole region is mapped once, shared, at one address, from open to destruction;
// - every access is bounds-checked and guarded: outside is -EINVAL, a bus error is -EIO, a store to a
// read-only
//   mapping is -EROFS;
// - with the lock, no other daemon has the region open: flock on the inode, and O_EXCL on a block device,
// which also
//   keeps a mounted device from being taken.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <sys/types.h>

namespace mapdirect {

enum class RegionKind { file, block, devdax };

struct RegionOptions {
  bool readOnly;
  bool lock;
  bool mapSync;
};

struct RegionInfo {
  RegionKind kind;
  uint64_t sizeBytes;
  uint64_t mapAlignmentBytes;
  bool dax; // a mapping bypasses the page cache
  bool mapSync;
  std::string mapSyncRefusal; // empty when granted
  uint64_t device;            // st_dev of a file, st_rdev of a device
  uint64_t inode;             // 0 for a device
};

class Mapping {
public:
  // Returns 0 or a negative errno; `step` then names what failed ("open", "flock", "mmap"…).
  static int open(const char *path, const RegionOptions &options, std::shared_ptr<Mapping> &mapping,
                  const char *&step);
  ~Mapping();
  Mapping(const Mapping &) = delete;
  Mapping &operator=(const Mapping &) = delete;

  const RegionInfo &info() const { return info_; }
  void setCacheline(bool on) { cacheline_ = on; }

  int read(uint64_t offset, void *target, size_t length) const;
  int write(uint64_t offset, const void *source, size_t length);
  int zero(uint64_t offset, size_t length);
  int copy(uint64_t source, uint64_t target, size_t length);
  // Start the write-back of CPU caches over what others have stored; `drain` completes it.
  int flush(uint64_t offset, size_t length) const;
  void drain() const;
  // Sends a descriptor of the region over a connected unix socket: of an open file description of its own, for
  // a lock belongs to the description. Never blocks: -EAGAIN when the socket takes nothing.
  int handOut(int socket) const;
  // Blocks; safe on any thread.
  int sync() const;

  // The address of [offset, offset + length), or null when that is not inside. For handing to the kernel,
  // which answers EFAULT where we would get SIGBUS.
  const void *addressOf(uint64_t offset, uint64_t length) const {
    return inside(offset, length) ? base_ + offset : nullptr;
  }

private:
  Mapping() = default;
  bool inside(uint64_t offset, uint64_t length) const {
    return offset <= info_.sizeBytes && length <= info_.sizeBytes - offset;
  }
  int inspect(const char *&step);
  int map(const RegionOptions &options, const char *&step);

  RegionInfo info_{};
  uint8_t *base_ = nullptr;
  int descriptor_ = -1;
  bool readOnly_ = false;
  bool cacheline_ = false;
};

} // namespace mapdirect
