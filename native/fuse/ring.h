// FUSE over io_uring (Linux 6.14, fs/fuse/dev_uring.c): requests come into buffers that the kernel was told of, and are
// answered from there. One system call answers a request and makes room for the next.
//
// Invariants:
// - everything here runs on the thread that opened the ring (IORING_SETUP_SINGLE_ISSUER);
// - an entry is with the kernel, or holds one request that has not been answered; its answer gives it back;
// - a queue (one for each possible CPU) whose entries all hold requests is given another one by `grow`, and those that found
//   none are fetched: requests that wait hold up nobody else. The kernel takes no entry back, so they stay;
// - what the kernel has written is checked before it is used as a length;
// - an answer is kept until the kernel has taken it: what it refuses for the moment is submitted again.
#pragma once

#include "fuse/device.h"

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

struct io_uring_cqe;
struct io_uring_sqe;

namespace mapdirect {

class Mapping;

struct RingOptions {
  uint32_t queues;       // possible CPUs
  uint32_t depth;        // entries of each queue to begin with
  uint32_t payloadBytes; // largest READ or WRITE
};

class Ring {
public:
  // Returns 0 or a negative errno; `step` then names what failed.
  static int open(const RingOptions &options, std::unique_ptr<Ring> &ring, const char *&step);
  ~Ring();
  Ring(const Ring &) = delete;
  Ring &operator=(const Ring &) = delete;

  // The kernel writes nothing more into the entries, whose memory stays until the ring is destroyed.
  void close();

  // Tell the kernel of all entries, once, after INIT was answered with FUSE_OVER_IO_URING. A negative errno: requests go
  // on coming through the descriptor.
  int start(int device);

  // Readable when there is something to do and the ring is asleep.
  int eventDescriptor() const { return event_; }
  void awake();
  void asleep();

  struct Arrival {
    uint32_t entry;
    size_t length;
  };
  // The next request, which lies in `message(entry)` as read(2) would have brought it.
  bool next(Arrival &arrival);
  // Looks at memory alone.
  bool hasCompletion() const;

  // Whether an entry holds such a request. It has to be answered then, by one of the next two.
  bool claim(uint64_t unique, uint32_t &entry);
  // Answers are on their way after `submit`. Both return 0, or a negative errno: the answer is EIO then.
  int answer(uint32_t entry, uint64_t unique, int error, const void *payload, size_t length);
  int answerFromRegion(uint32_t entry, uint64_t unique, const Mapping &region, const Piece *pieces,
                       size_t count);
  uint32_t queued() const { return queued_ + static_cast<uint32_t>(backlog_.size()); }
  void submit();
  void grow();

  uint8_t *message(uint32_t entry) const;
  size_t messageBytes() const;
  uint32_t entryCount() const { return static_cast<uint32_t>(entries_.size()); }

private:
  struct Entry {
    uint8_t *block;
    uint16_t queue;
    uint64_t inode;    // that its request is about; 0: none is held
    uint64_t answered; // the request whose answer the kernel was given last; 0: none
    uint32_t refusals; // of the same command, one after the other
  };
  struct Submission {
    uint32_t operation;
    uint32_t entry;
    uint64_t commitId;
  };

  explicit Ring(const RingOptions &options)
      : options_(options), inUse_(options.queues), all_(options.queues) {}
  int map(const char *&step);
  size_t blockBytes() const;
  int addEntry(uint16_t queue);
  void command(const Submission &wanted);
  void put(const Submission &wanted);
  int enter(uint32_t count);
  void knock(uint16_t queue);
  void wake();
  // The kernel wants something to be run by this thread, or has completions that found no place.
  bool wantsEntering() const;
  io_uring_cqe nextCompletion();
  bool take(const io_uring_cqe &completion, Arrival &arrival);
  void refused(uint32_t index, int failure);
  void commit(uint32_t entry, uint64_t unique, int error, size_t length);

  const RingOptions options_;
  std::vector<Entry> entries_;
  std::vector<uint32_t> inUse_; // of each queue: entries that hold a request
  std::vector<uint32_t> all_;
  std::unordered_map<uint64_t, uint32_t> held_; // by the id of the request
  int ring_ = -1;
  int event_ = -1;
  int device_ = -1;
  int failure_ = 0;                // why the kernel refused an entry
  uint32_t queued_ = 0;            // in the submission queue
  std::deque<Submission> backlog_; // found no room there
  uint64_t knocks_ = 0;
  uint8_t *rings_ = nullptr;
  size_t ringsBytes_ = 0;
  uint8_t *submissions_ = nullptr;
  size_t submissionsBytes_ = 0;
  // In the mapped rings.
  uint32_t *submissionTail_ = nullptr;
  uint32_t *submissionFlags_ = nullptr;
  uint32_t *submissionArray_ = nullptr;
  uint32_t submissionMask_ = 0;
  uint32_t *completionHead_ = nullptr;
  uint32_t *completionTail_ = nullptr;
  uint32_t *completionFlags_ = nullptr;
  uint32_t completionMask_ = 0;
  io_uring_cqe *completions_ = nullptr;
};

} // namespace mapdirect
