// A region mapped into this process.
//
// Invariants:
// - the whole region is mapped once, shared, at one address, from open to destruction; what it grows by is
// mapped
//   right behind, into address space that was set aside at open: no address ever changes, and a sync on
//   another thread goes on;
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
#include <vector>

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
  uint32_t uid, gid, mode;    // of the file or the device's node
  bool inMemory;              // a file on tmpfs: there is nothing to write back to
  bool discards;              // something lies below that may take back what is not used
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
  // Takes the pages out of our address space, and out of what we are charged for; the region keeps its bytes.
  int unload(uint64_t offset, size_t length) const;
  // Of a region on tmpfs, the whole huge pages in [offset, offset + length): each that has all of its bytes becomes one
  // page instead of many, for whoever maps the region. A hole stays one. `gathered` has a byte for each: 1 it is one now,
  // 0 it has holes, 2 the kernel did not. Blocks for some milliseconds; safe on any thread.
  int gather(uint64_t offset, uint64_t length, std::vector<uint8_t> &gathered) const;
  void drain() const;
  // Sends a descriptor of the region over a connected unix socket: of an open file description of its own, for
  // a lock belongs to the description. Never blocks: -EAGAIN when the socket takes nothing.
  int handOut(int socket) const;
  // The first `bytes` of the region, which its size was when the caller looked. Blocks; safe on any thread.
  int sync(uint64_t bytes) const;

  // How large the file or device is at this moment; info().sizeBytes is how much of it is mapped.
  int measure(uint64_t &bytes) const;
  // The largest size that extend() can reach.
  uint64_t roomBytes() const { return roomBytes_; }
  // See to it that the region is durably at least so large: a file grows, a device that is smaller is -EINVAL.
  // `step` then names what failed. Blocks; safe on any thread.
  int provide(uint64_t bytes, const char *&step) const;
  // Have a file take room for [offset, offset + length) from what it lies on, so that storing there does not fail for lack
  // of it: -ENOSPC if there is none. Where nothing is sparse, or cannot be asked, it does nothing.
  int allocate(uint64_t offset, uint64_t length) const;
  // Tell what lies below that [offset, offset + length), which is inside, is not used: a hole in a file, BLKDISCARD on a
  // block device. -EOPNOTSUPP where that is not known. Blocks; safe on any thread.
  int discard(uint64_t offset, uint64_t length) const;
  // Of a file: what is free where it lies, and what it has taken. -EOPNOTSUPP where that means nothing.
  int below(uint64_t &freeBytes, uint64_t &allocatedBytes) const;
  // Cut a file that provide() has made larger, and nothing has been stored there.
  void takeBack(uint64_t bytes) const;
  // Map the region up to `bytes`, which are there. -ENOMEM where no address space was set aside for that.
  int extend(uint64_t bytes);

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
  template <typename Store> int stored(uint64_t offset, size_t length, Store store) const;
  int readAround(uint64_t offset, uint8_t *target, size_t length) const;
  int inspect(const char *&step);
  int map(const RegionOptions &options, const char *&step);
  void setAside();
  int place(uint64_t from, uint64_t to);

  RegionInfo info_{};
  uint8_t *base_ = nullptr;
  // What is unmapped in the end: the region, and the address space around it.
  uint8_t *reserved_ = nullptr;
  size_t reservedBytes_ = 0;
  uint64_t roomBytes_ = 0;
  int protection_ = 0;
  int mapFlags_ = 0;
  int descriptor_ = -1;
  bool readOnly_ = false;
  bool cacheline_ = false;
};

} // namespace mapdirect
