#include "fuse/device.h"

#include "region/mapping.h"

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <linux/fuse.h>
#include <sys/mman.h>
#include <unistd.h>

namespace mapdirect {
namespace {

constexpr size_t kIovMax = 1024; // UIO_MAXIOV
constexpr uint64_t kZeroBytes = 2 << 20;

static_assert(sizeof(fuse_out_header) == 16 && offsetof(fuse_out_header, unique) == 8);

int writeAll(int descriptor, const iovec *parts, size_t count) {
  for (;;) {
    if (writev(descriptor, parts, static_cast<int>(count)) >= 0) return 0;
    if (errno != EINTR) return -errno;
  }
}

int writeFrame(int descriptor, uint64_t unique, int code, const void *payload, size_t length) {
  if (length > UINT32_MAX - sizeof(fuse_out_header)) return -EINVAL;
  fuse_out_header header{};
  header.len = static_cast<uint32_t>(sizeof header + length);
  header.error = code;
  header.unique = unique;
  const iovec parts[2] = {{&header, sizeof header}, {const_cast<void *>(payload), length}};
  return writeAll(descriptor, parts, length == 0 ? 1 : 2);
}

// Pages of zeros to send holes from. Never written, so the kernel backs all of it with its one zero page.
const uint8_t *zeroPages() {
  static const uint8_t *const pages = [] {
    void *base = mmap(nullptr, kZeroBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return base == MAP_FAILED ? nullptr : static_cast<const uint8_t *>(base);
  }();
  return pages;
}

// More fragments than one writev takes: gather them first. Rare enough that the allocation does not matter.
int writeGathered(int descriptor, uint64_t unique, const Mapping &region, const Piece *pieces, size_t count,
                  uint64_t total) {
  const std::unique_ptr<uint8_t, decltype(&free)> gathered(static_cast<uint8_t *>(malloc(total)), free);
  if (gathered == nullptr) return writeReply(descriptor, unique, ENOMEM, nullptr, 0);
  if (copyPieces(region, pieces, count, gathered.get(), total) < 0) {
    writeReply(descriptor, unique, EIO, nullptr, 0);
    return -EIO;
  }
  return writeReply(descriptor, unique, 0, gathered.get(), total);
}

} // namespace

Descriptor::~Descriptor() {
  close(number_);
}

ssize_t readRequest(int descriptor, void *buffer, size_t capacity) {
  for (;;) {
    const ssize_t length = read(descriptor, buffer, capacity);
    if (length >= 0) return length;
    if (errno != EINTR && errno != ENOENT) return -errno;
  }
}

ssize_t copyPieces(const Mapping &region, const Piece *pieces, size_t count, uint8_t *target, uint64_t room) {
  uint64_t total = 0;
  for (size_t i = 0; i < count; i++) {
    const Piece &piece = pieces[i];
    if (piece.length > room - total) return -EINVAL;
    if (piece.zeros)
      memset(target + total, 0, piece.length);
    else if (const int failure = region.read(piece.offset, target + total, piece.length); failure != 0)
      return failure;
    total += piece.length;
  }
  return static_cast<ssize_t>(total);
}

int writeReply(int descriptor, uint64_t unique, int error, const void *payload, size_t length) {
  return writeFrame(descriptor, unique, -error, payload, length);
}

int writeNotification(int descriptor, int code, const void *payload, size_t length) {
  return writeFrame(descriptor, 0, code, payload, length);
}

int writeRegionReply(int descriptor, uint64_t unique, const Mapping &region, const Piece *pieces,
                     size_t count) {
  const uint8_t *zeros = zeroPages();
  if (zeros == nullptr) return writeReply(descriptor, unique, ENOMEM, nullptr, 0);

  fuse_out_header header{};
  iovec parts[kIovMax];
  parts[0] = {&header, sizeof header};
  size_t used = 1;
  uint64_t total = 0;
  bool fits = true;
  for (size_t i = 0; i < count; i++) {
    const Piece &piece = pieces[i];
    if (piece.length > UINT32_MAX - sizeof header - total) return -EINVAL;
    total += piece.length;
    if (piece.length == 0 || !fits) continue;
    if (piece.zeros) {
      for (uint64_t left = piece.length; left > 0 && fits;) {
        const uint64_t step = left < kZeroBytes ? left : kZeroBytes;
        if (used == kIovMax)
          fits = false;
        else
          parts[used++] = {const_cast<uint8_t *>(zeros), step};
        left -= step;
      }
      continue;
    }
    const void *from = region.addressOf(piece.offset, piece.length);
    if (from == nullptr) return -EINVAL;
    iovec &last = parts[used - 1];
    if (used > 1 && static_cast<uint8_t *>(last.iov_base) + last.iov_len == from)
      last.iov_len += piece.length;
    else if (used == kIovMax)
      fits = false;
    else
      parts[used++] = {const_cast<void *>(from), piece.length};
  }
  if (!fits) return writeGathered(descriptor, unique, region, pieces, count, total);

  header.len = static_cast<uint32_t>(sizeof header + total);
  header.unique = unique;
  const int failure = writeAll(descriptor, parts, used);
  if (failure != -EFAULT) return failure;
  // Where a load would raise SIGBUS the kernel answers EFAULT. It has then ended the request with EIO by
  // itself, if it got as far as finding it; if not, this does, and otherwise fails with ENOENT, which is
  // fine.
  writeReply(descriptor, unique, EIO, nullptr, 0);
  return -EIO;
}

} // namespace mapdirect
