#include "region/mapping.h"

#include "persist/copy.h"
#include "persist/flush.h"
#include "region/devdax.h"
#include "region/guard.h"

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
  char path[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor_);
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
    return 0;
  }
  info_.device = status.st_rdev;
  info_.inode = 0;
  if (S_ISBLK(status.st_mode)) {
    step = "ioctl BLKGETSIZE64";
    info_.kind = RegionKind::block;
    return ioctl(descriptor_, BLKGETSIZE64, &info_.sizeBytes) != 0 ? -errno : 0;
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

int Mapping::map(const RegionOptions &options, const char *&step) {
  step = "mmap";
  if (info_.sizeBytes == 0) return -EINVAL;
  const int protection = options.readOnly ? PROT_READ : PROT_READ | PROT_WRITE;
  void *base = MAP_FAILED;
  if (options.mapSync) {
    base = mmap(nullptr, info_.sizeBytes, protection, MAP_SHARED_VALIDATE | MAP_SYNC, descriptor_, 0);
    if (base != MAP_FAILED)
      info_.mapSync = true;
    else
      info_.mapSyncRefusal = whyNoMapSync(info_.kind, info_.dax, errno);
  } else {
    info_.mapSyncRefusal = "not asked for";
  }
  if (base == MAP_FAILED) base = mmap(nullptr, info_.sizeBytes, protection, MAP_SHARED, descriptor_, 0);
  if (base == MAP_FAILED) return -errno;
  base_ = static_cast<uint8_t *>(base);
  return 0;
}

Mapping::~Mapping() {
  if (base_ != nullptr) munmap(base_, info_.sizeBytes);
  if (descriptor_ >= 0) close(descriptor_);
}

int Mapping::read(uint64_t offset, void *target, size_t length) const {
  if (!inside(offset, length)) return -EINVAL;
  const uint8_t *from = base_ + offset;
  return guarded(base_, info_.sizeBytes, [=] { memcpy(target, from, length); });
}

int Mapping::write(uint64_t offset, const void *source, size_t length) {
  if (readOnly_) return -EROFS;
  if (!inside(offset, length)) return -EINVAL;
  uint8_t *to = base_ + offset;
  if (cacheline_) return guarded(base_, info_.sizeBytes, [=] { persistCopy(to, source, length); });
  return guarded(base_, info_.sizeBytes, [=] { memcpy(to, source, length); });
}

int Mapping::zero(uint64_t offset, size_t length) {
  if (readOnly_) return -EROFS;
  if (!inside(offset, length)) return -EINVAL;
  uint8_t *to = base_ + offset;
  if (cacheline_) return guarded(base_, info_.sizeBytes, [=] { persistZero(to, length); });
  return guarded(base_, info_.sizeBytes, [=] { memset(to, 0, length); });
}

int Mapping::copy(uint64_t source, uint64_t target, size_t length) {
  if (readOnly_) return -EROFS;
  if (!inside(source, length) || !inside(target, length)) return -EINVAL;
  if (length > 0 && source < target + length && target < source + length) return -EINVAL;
  const uint8_t *from = base_ + source;
  uint8_t *to = base_ + target;
  if (cacheline_) return guarded(base_, info_.sizeBytes, [=] { persistCopy(to, from, length); });
  return guarded(base_, info_.sizeBytes, [=] { memcpy(to, from, length); });
}

int Mapping::flush(uint64_t offset, size_t length) const {
  if (!inside(offset, length)) return -EINVAL;
  if (!cacheline_) return 0;
  const uint8_t *from = base_ + offset;
  return guarded(base_, info_.sizeBytes, [=] { flushRange(from, length); });
}

void Mapping::drain() const {
  if (cacheline_) drainStores();
}

int Mapping::sync() const {
  if (readOnly_) return 0;
  if (cacheline_) {
    drainStores();
    return 0;
  }
  if (info_.kind == RegionKind::devdax)
    return -EINVAL; // the kernel has no msync for it; granularity is cacheline
  return msync(base_, info_.sizeBytes, MS_SYNC) != 0 ? -errno : 0;
}

} // namespace mapdirect
