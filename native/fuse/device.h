// Reading from and writing to a /dev/fuse descriptor: the framing, nothing of the protocol's meaning.
//
// Invariants:
// - one read is one whole request, one write is one whole reply or notification;
// - the descriptor is closed only when nobody can be inside a system call on it (a closed number may be
// reused by the
//   process at once, and a late write would go to a stranger).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <sys/types.h>
#include <sys/uio.h>

namespace mapdirect {

class Mapping;

class Descriptor {
public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor();
  Descriptor(const Descriptor &) = delete;
  Descriptor &operator=(const Descriptor &) = delete;
  int number() const { return number_; }

private:
  const int number_;
};

// The next request's length, 0 at the end of a socket, or a negative errno. Interrupted reads (EINTR) and
// requests that were taken back before we got them (ENOENT) are passed over.
ssize_t readRequest(int descriptor, void *buffer, size_t capacity);

// Both return 0 or a negative errno. `error` is a positive errno or 0.
int writeReply(int descriptor, uint64_t unique, int error, const void *payload, size_t length);
int writeNotification(int descriptor, int code, const void *payload, size_t length);

struct Piece {
  bool zeros;
  uint64_t offset; // in the region; meaningless for zeros
  uint64_t length;
};

// Copy the pieces to `target`, one behind the other. Returns the bytes; -EINVAL when they are more than `room`; -EIO when the
// region cannot deliver them.
ssize_t copyPieces(const Mapping &region, const Piece *pieces, size_t count, uint8_t *target, uint64_t room);

// Answer with bytes of the region, sent by the kernel straight from the mapping. When the region cannot
// deliver them the request is answered with EIO, and -EIO returned.
int writeRegionReply(int descriptor, uint64_t unique, const Mapping &region, const Piece *pieces,
                     size_t count);

} // namespace mapdirect
