#include "region/mapping.h"

#include "persist/copy.h"
#include "persist/flush.h"
#include "region/devdax.h"
#include "region/guard.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/stat.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef MAP_SHARED_VALIDATE
#define MAP_SHARED_VALIDATE 0x03
#endif
#ifndef MAP_SYNC
#define MAP_SYNC 0x80000
#endif

namespace mapdirect {
namespace {

// Whether a mapping of this file bypasses the page cache, whatever made it so: a mount option or a flag of the inode.
bool isDaxFile(int descriptor) {
#if defined(STATX_ATTR_DAX) && defined(SYS_statx)
  struct statx status {};
  if (syscall(SYS_statx, descriptor, "", AT_EMPTY_PATH, 0u, &status) != 0) return false;
  return (status.stx_attributes & STATX_ATTR_DAX) != 0;
#else
  (void)descriptor;
  return false;
#endif
}

const char *whyNoMapSync(RegionKind kind, bool dax, int failure) {
  if (failure == EOPNOTSUPP && kind == RegionKind::file && dax)
    return "EOPNOTSUPP: the file is mapped directly, but its device is flushed by the host alone, as "
           "virtio-pmem is";
  if (failure == EOPNOTSUPP && kind == RegionKind::file)
    return "EOPNOTSUPP: the file does not lie on a file system mounted with DAX, or its device cannot do it";
  if (failure == EOPNOTSUPP && kind == RegionKind::block)
    return "EOPNOTSUPP: a raw block device is always mapped through the page cache";
  if (failure == EOPNOTSUPP) return "EOPNOTSUPP: the device cannot do it";
  if (failure == EINVAL) return "EINVAL: this kernel does not know MAP_SYNC (Linux 4.15 does)";
  return strerror(failure);
}

// Set aside for a region to grow into, at least. Nothing but numbers: no memory, no page tables.
constexpr uint64_t kRoomBytes = uint64_t{4} << 40;
// Huge pages need it of address and offset alike.
constexpr uint64_t kHugePageBytes = 2 << 20;
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 // Linux 6.1
#endif

uint64_t roundUp(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

} // namespace

int Mapping::open(const char *path, const RegionOptions &options, std::shared_ptr<Mapping> &mapping,
                  const char *&step) {
  step = "install the SIGBUS handler";
  if (const int failure = installGuard(); failure != 0) return failure;

  std::shared_ptr<Mapping> opened(new Mapping);
  opened->readOnly_ = options.readOnly;

  step = "stat";
  struct stat status;
  if (stat(path, &status) != 0) return -errno;
  // Never open what is not a region: opening a fifo blocks, opening a tape rewinds.
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode) && !S_ISCHR(status.st_mode))
    return S_ISDIR(status.st_mode) ? -EISDIR : -ENODEV;
  step = "open";
  const int exclusive = options.lock && S_ISBLK(status.st_mode) ? O_EXCL : 0;
  opened->descriptor_ =
      ::open(path, (options.readOnly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | exclusive);
  if (opened->descriptor_ < 0) return -errno;
  if (options.lock) {
    step = "flock";
    if (flock(opened->descriptor_, LOCK_EX | LOCK_NB) != 0) return errno == EWOULDBLOCK ? -EBUSY : -errno;
  }
  if (const int failure = opened->inspect(step); failure != 0) return failure;
  if (const int failure = opened->map(options, step); failure != 0) return failure;
  mapping = std::move(opened);
  return 0;
}

int Mapping::handOut(int socket) const {
  char path[40];
  /* Of this thread: where the first one has ended, /proc/self has no descriptors. */
  snprintf(path, sizeof path, "/proc/thread-self/fd/%d", descriptor_);
  const int opened = ::open(path, O_RDWR | O_CLOEXEC | O_NOCTTY);
  if (opened < 0) return -errno;
  char byte = 0;
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &opened, sizeof opened);
  const int failure = sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == 1 ? 0 : -errno;
  close(opened);
  return failure;
}

int Mapping::inspect(const char *&step) {
  step = "fstat";
  struct stat status;
  if (fstat(descriptor_, &status) != 0) return -errno;
  info_.uid = status.st_uid;
  info_.gid = status.st_gid;
  info_.mode = status.st_mode & 07777;
  info_.mapAlignmentBytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  if (S_ISREG(status.st_mode)) {
    info_.kind = RegionKind::file;
    info_.sizeBytes = static_cast<uint64_t>(status.st_size);
    info_.device = status.st_dev;
    info_.inode = status.st_ino;
    info_.dax = isDaxFile(descriptor_);
    step = "fstatfs";
    struct statfs filesystem;
    if (fstatfs(descriptor_, &filesystem) != 0) return -errno;
    // Its files are mapped by whole huge pages, and the statfs block is one.
    if (filesystem.f_type == HUGETLBFS_MAGIC)
      info_.mapAlignmentBytes = static_cast<uint64_t>(filesystem.f_bsize);
    info_.inMemory = filesystem.f_type == TMPFS_MAGIC;
    // Not on DAX: the next store would have to allocate again, and huge pages would be gone for good. Nor where pages come
    // from a pool of which the mapping has reserved its own.
    info_.discards = !readOnly_ && !info_.dax && filesystem.f_type != HUGETLBFS_MAGIC;
    return 0;
  }
  info_.device = status.st_rdev;
  info_.inode = 0;
  if (S_ISBLK(status.st_mode)) {
    step = "ioctl BLKGETSIZE64";
    info_.kind = RegionKind::block;
    info_.discards = !readOnly_;
    return measure(info_.sizeBytes);
  }
  if (!S_ISCHR(status.st_mode)) return -ENODEV;
  step = "read the device's size and alignment from sysfs";
  info_.kind = RegionKind::devdax;
  DevdaxFacts facts{};
  if (const int failure = readDevdaxFacts(status.st_rdev, facts); failure != 0) return failure;
  info_.sizeBytes = facts.sizeBytes;
  info_.mapAlignmentBytes = facts.alignmentBytes;
  info_.dax = true;
  return 0;
}

int Mapping::measure(uint64_t &bytes) const {
  switch (info_.kind) {
  case RegionKind::file: {
    struct stat status;
    if (fstat(descriptor_, &status) != 0) return -errno;
    bytes = static_cast<uint64_t>(status.st_size);
    return 0;
  }
  case RegionKind::block:
    return ioctl(descriptor_, BLKGETSIZE64, &bytes) != 0 ? -errno : 0;
  case RegionKind::devdax: {
    DevdaxFacts facts{};
    const int failure = readDevdaxFacts(info_.device, facts);
    bytes = facts.sizeBytes;
    return failure;
  }
  }
  return -EINVAL;
}

int Mapping::map(const RegionOptions &options, const char *&step) {
  step = "mmap";
  if (info_.sizeBytes == 0) return -EINVAL;
  protection_ = options.readOnly ? PROT_READ : PROT_READ | PROT_WRITE;
  mapFlags_ = MAP_SHARED;
  if (options.mapSync) {
    // Tried where nothing is lost: a refusal may come after the kernel has taken away what was there.
    constexpr int flags = MAP_SHARED_VALIDATE | MAP_SYNC;
    void *trial = mmap(nullptr, info_.mapAlignmentBytes, protection_, flags, descriptor_, 0);
    if (trial != MAP_FAILED) {
      munmap(trial, info_.mapAlignmentBytes);
      mapFlags_ = flags;
      info_.mapSync = true;
    } else
      info_.mapSyncRefusal = whyNoMapSync(info_.kind, info_.dax, errno);
  } else {
    info_.mapSyncRefusal = "not asked for";
  }
  if (!options.readOnly) setAside();
  if (base_ != nullptr) return place(0, info_.sizeBytes);
  void *base = mmap(nullptr, info_.sizeBytes, protection_, mapFlags_, descriptor_, 0);
  if (base == MAP_FAILED) return -errno;
  base_ = reserved_ = static_cast<uint8_t *>(base);
  reservedBytes_ = roomBytes_ = info_.sizeBytes;
  return 0;
}

void Mapping::setAside() {
  // Under a limit it would be taken from what the rest of the process may use.
  rlimit limit;
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY) return;
  const uint64_t alignment = std::max(kHugePageBytes, info_.mapAlignmentBytes);
  for (uint64_t room = std::max(kRoomBytes, 8 * roundUp(info_.sizeBytes, alignment)); room > info_.sizeBytes;
       room /= 2) {
    const size_t bytes = room + alignment;
    void *reserved = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) continue;
    reserved_ = static_cast<uint8_t *>(reserved);
    reservedBytes_ = bytes;
    roomBytes_ = room;
    const auto address = reinterpret_cast<uintptr_t>(reserved);
    base_ = reserved_ + (roundUp(address, alignment) - address);
    return;
  }
}

int Mapping::place(uint64_t from, uint64_t to) {
  uint8_t *at = base_ + from;
  if (mmap(at, to - from, protection_, mapFlags_ | MAP_FIXED, descriptor_, static_cast<off_t>(from)) !=
      MAP_FAILED)
    return 0;
  const int failure = -errno;
  // The kernel may have taken away what was there, and given the place to another thread. From there on nothing
  // is ours to touch any more; behind it, all is.
  const uint64_t end = roundUp(to, kHugePageBytes);
  uint8_t *const last = reserved_ + reservedBytes_;
  if (base_ + end < last) munmap(base_ + end, static_cast<size_t>(last - (base_ + end)));
  reservedBytes_ = static_cast<size_t>(at - reserved_);
  roomBytes_ = std::min(roomBytes_, from);
  return failure;
}

int Mapping::provide(uint64_t bytes, const char *&step) const {
  step = "measure";
  if (readOnly_) return -EROFS;
  uint64_t found = 0;
  if (const int failure = measure(found); failure != 0) return failure;
  if (info_.kind != RegionKind::file) return found < bytes ? -EINVAL : 0;
  step = "ftruncate";
  if (bytes > INT64_MAX) return -EFBIG;
  if (found < bytes && ftruncate(descriptor_, static_cast<off_t>(bytes)) != 0) return -errno;
  // Whoever made it larger: a superblock that names the new size must not survive a power cut that the size does
  // not.
  step = "fsync";
  return fsync(descriptor_) != 0 ? -errno : 0;
}

void Mapping::takeBack(uint64_t bytes) const {
  if (info_.kind != RegionKind::file) return;
  if (ftruncate(descriptor_, static_cast<off_t>(bytes)) != 0) return; // it stays larger, which harms nobody
}

int Mapping::extend(uint64_t bytes) {
  if (bytes <= info_.sizeBytes) return 0;
  if (bytes > roomBytes_) return -ENOMEM;
  // The page that held the end is there already, whole.
  const uint64_t from = roundUp(info_.sizeBytes, info_.mapAlignmentBytes);
  if (from < bytes)
    if (const int failure = place(from, bytes); failure != 0) return failure;
  info_.sizeBytes = bytes;
  return 0;
}

Mapping::~Mapping() {
  if (reserved_ != nullptr) munmap(reserved_, reservedBytes_);
  if (descriptor_ >= 0) close(descriptor_);
}

int Mapping::allocate(uint64_t offset, uint64_t length) const {
  if (readOnly_) return -EROFS;
  if (!inside(offset, length)) return -EINVAL;
  if (info_.kind != RegionKind::file || length == 0) return 0;
  uint64_t found = 0;
  if (const int failure = measure(found); failure != 0) return failure;
  // Others have cut it short: nothing is to be kept behind its end.
  if (offset + length > found) return -EIO;
  while (fallocate(descriptor_, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                   static_cast<off_t>(length)) != 0) {
    if (errno == EINTR) continue;
    if (errno == EOPNOTSUPP || errno == ENOSYS) return 0;
    return errno == EDQUOT ? -ENOSPC : -errno;
  }
  return 0;
}

int Mapping::discard(uint64_t offset, uint64_t length) const {
  if (!info_.discards) return -EOPNOTSUPP;
  if (length == 0) return 0;
  if (info_.kind == RegionKind::block) {
    uint64_t range[2] = {offset, length};
    return ioctl(descriptor_, BLKDISCARD, range) != 0 ? -errno : 0;
  }
  while (fallocate(descriptor_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                   static_cast<off_t>(length)) != 0) {
    if (errno == EINTR) continue;
    return errno == ENOSYS ? -EOPNOTSUPP : -errno;
  }
  return 0;
}

int Mapping::below(uint64_t &freeBytes, uint64_t &allocatedBytes) const {
  if (info_.kind != RegionKind::file) return -EOPNOTSUPP;
  struct statfs system {};
  struct stat status {};
  if (fstatfs(descriptor_, &system) != 0 || fstat(descriptor_, &status) != 0) return -errno;
  // A tmpfs without a limit.
  if (system.f_blocks == 0) return -EOPNOTSUPP;
  // Not what is kept for root: ext4 keeps some of that even from root.
  freeBytes = static_cast<uint64_t>(system.f_bavail) * static_cast<uint64_t>(system.f_bsize);
  allocatedBytes = static_cast<uint64_t>(status.st_blocks) * 512;
  return 0;
}

// Where a file is sparse and what it lies on is full, a store has no page to go to.
template <typename Store> int Mapping::stored(uint64_t offset, size_t length, Store store) const {
  const int failure = guarded(base_, info_.sizeBytes, store);
  if (failure != -EIO || info_.kind != RegionKind::file) return failure;
  const int room = allocate(offset, length);
  if (room == -ENOSPC) return room;
  return room == 0 ? guarded(base_, info_.sizeBytes, store) : failure;
}

int Mapping::readAround(uint64_t offset, uint8_t *target, size_t length) const {
  for (size_t done = 0; done < length;) {
    const ssize_t bytes = pread(descriptor_, target + done, length - done, static_cast<off_t>(offset + done));
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes <= 0) return -EIO;
    done += static_cast<size_t>(bytes);
  }
  return 0;
}

int Mapping::read(uint64_t offset, void *target, size_t length) const {
  if (!inside(offset, length)) return -EINVAL;
  const uint8_t *from = base_ + offset;
  const int failure = guarded(base_, info_.sizeBytes, [=] { memcpy(target, from, length); });
  // On a full tmpfs even looking at a hole through a mapping wants a page.
  if (failure == -EIO && info_.kind == RegionKind::file)
    return readAround(offset, static_cast<uint8_t *>(target), length);
  return failure;
}

int Mapping::write(uint64_t offset, const void *source, size_t length) {
  if (readOnly_) return -EROFS;
  if (!inside(offset, length)) return -EINVAL;
  uint8_t *to = base_ + offset;
  if (cacheline_) return stored(offset, length, [=] { persistCopy(to, source, length); });
  return stored(offset, length, [=] { memcpy(to, source, length); });
}

int Mapping::zero(uint64_t offset, size_t length) {
  if (readOnly_) return -EROFS;
  if (!inside(offset, length)) return -EINVAL;
  uint8_t *to = base_ + offset;
  if (cacheline_) return stored(offset, length, [=] { persistZero(to, length); });
  return stored(offset, length, [=] { memset(to, 0, length); });
}

int Mapping::copy(uint64_t source, uint64_t target, size_t length) {
  if (readOnly_) return -EROFS;
  if (!inside(source, length) || !inside(target, length)) return -EINVAL;
  if (length > 0 && source < target + length && target < source + length) return -EINVAL;
  const uint8_t *from = base_ + source;
  uint8_t *to = base_ + target;
  if (cacheline_) return stored(target, length, [=] { persistCopy(to, from, length); });
  return stored(target, length, [=] { memcpy(to, from, length); });
}

int Mapping::flush(uint64_t offset, size_t length) const {
  if (!inside(offset, length)) return -EINVAL;
  if (!cacheline_) return 0;
  const uint8_t *from = base_ + offset;
  return guarded(base_, info_.sizeBytes, [=] { flushRange(from, length); });
}

int Mapping::unload(uint64_t offset, size_t length) const {
  if (!inside(offset, length)) return -EINVAL;
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t first = (offset + page - 1) / page * page;
  const uint64_t end = (offset + length) / page * page;
  // Not on device-dax, whose pages are larger. It is only about memory.
  if (first < end) madvise(base_ + first, end - first, MADV_DONTNEED);
  return 0;
}

int Mapping::gather(uint64_t offset, uint64_t length, std::vector<uint8_t> &gathered) const {
  if (!info_.inMemory) return -EOPNOTSUPP;
  if (offset % kHugePageBytes != 0 || length % kHugePageBytes != 0) return -EINVAL;
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  std::vector<uint8_t> there(kHugePageBytes / page);
  gathered.assign(length / kHugePageBytes, 0);
  for (size_t first = 0; first < gathered.size();) {
    // Several at a time: before each call's work the kernel has every CPU put its pages away, which takes longer.
    size_t past = first;
    for (; past < gathered.size(); past++) {
      if (mincore(base_ + offset + past * kHugePageBytes, kHugePageBytes, there.data()) != 0) return -errno;
      if (!std::all_of(there.begin(), there.end(), [](uint8_t one) { return (one & 1) != 0; })) break;
    }
    if (past > first) {
      uint8_t *const at = base_ + offset + first * kHugePageBytes;
      const size_t bytes = (past - first) * kHugePageBytes;
      const bool done = madvise(at, bytes, MADV_COLLAPSE) == 0;
      if (!done && errno == EINVAL) return -EOPNOTSUPP; // an older kernel, or one without huge pages
      // The call has mapped them as well. What is not used need not count as ours.
      if (done) madvise(at, bytes, MADV_DONTNEED);
      std::fill(gathered.begin() + static_cast<ptrdiff_t>(first),
                gathered.begin() + static_cast<ptrdiff_t>(past), done ? 1 : 2);
    }
    first = past + 1;
  }
  return 0;
}

void Mapping::drain() const {
  if (cacheline_) drainStores();
}

int Mapping::sync(uint64_t bytes) const {
  if (readOnly_) return 0;
  if (cacheline_) {
    drainStores();
    return 0;
  }
  if (info_.kind == RegionKind::devdax)
    return -EINVAL; // the kernel has no msync for it; granularity is cacheline
  return msync(base_, bytes, MS_SYNC) != 0 ? -errno : 0;
}

} // namespace mapdirect
