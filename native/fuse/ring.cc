#include "fuse/ring.h"

#include <atomic>
#include <cerrno>
#include <cstring>
#include <linux/fuse.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace mapdirect {
namespace {

// As linux/fuse.h has them since 7.42; older headers do not.
constexpr uint32_t kRegister = 1;       // FUSE_IO_URING_CMD_REGISTER
constexpr uint32_t kCommitAndFetch = 2; // FUSE_IO_URING_CMD_COMMIT_AND_FETCH

struct EntryInOut { // fuse_uring_ent_in_out
  uint64_t flags;
  uint64_t commitId;
  uint32_t payloadBytes;
  uint32_t padding;
  uint64_t reserved;
};

constexpr size_t kHeaderBytes = 128;    // FUSE_URING_IN_OUT_HEADER_SZ
constexpr size_t kOperationBytes = 128; // FUSE_URING_OP_IN_OUT_SZ

struct EntryHeaders { // fuse_uring_req_header
  uint8_t inOut[kHeaderBytes];
  uint8_t operation[kOperationBytes];
  EntryInOut entry;
};
static_assert(sizeof(EntryHeaders) == 288);

struct Command { // fuse_uring_cmd_req
  uint64_t flags;
  uint64_t commitId;
  uint16_t queue;
  uint8_t padding[6];
};
static_assert(sizeof(Command) == 24);

constexpr size_t kSubmissionBytes = 128; // IORING_SETUP_SQE128
constexpr size_t kCommandAt = 48;        // io_uring_sqe.cmd

// An entry: the headers on a page of their own, the payload on whole pages behind it. The request is put together so
// that the data of a WRITE stays where the kernel has put it.
constexpr size_t kPage = 4096;
constexpr size_t kFixedBytes = sizeof(fuse_in_header) + sizeof(fuse_write_in);
constexpr size_t kPartsAt = 512;
static_assert(sizeof(EntryHeaders) <= kPartsAt && kPartsAt + 2 * sizeof(iovec) <= kPage - kFixedBytes);

constexpr uint32_t kSubmissions = 64;
constexpr uint32_t kCompletions = 4096;
constexpr uint32_t kEntriesMax = 65536;
constexpr uint32_t kRefusalsMax = 1000;
constexpr size_t kCpusMax = 8192;              // CONFIG_NR_CPUS
constexpr uint64_t kKnock = uint64_t{1} << 63; // more than the kernel ever counts requests

int setup(uint32_t entries, io_uring_params *parameters) {
  return static_cast<int>(syscall(__NR_io_uring_setup, entries, parameters));
}

uint32_t loadAcquire(const uint32_t *at) {
  return std::atomic_ref<uint32_t>(*const_cast<uint32_t *>(at)).load(std::memory_order_acquire);
}

size_t roundUp(size_t bytes) {
  return (bytes + kPage - 1) / kPage * kPage;
}

} // namespace

int Ring::open(const RingOptions &options, std::unique_ptr<Ring> &ring, const char *&step) {
  std::unique_ptr<Ring> opened(new Ring(options));
  if (const int failure = opened->map(step); failure != 0) return failure;
  step = "mmap";
  for (uint32_t queue = 0; queue < options.queues; queue++) {
    for (uint32_t count = 0; count < options.depth; count++) {
      if (const int failure = opened->addEntry(static_cast<uint16_t>(queue)); failure != 0) return failure;
    }
  }
  ring = std::move(opened);
  return 0;
}

int Ring::map(const char *&step) {
  io_uring_params parameters{};
  parameters.flags = IORING_SETUP_SQE128 | IORING_SETUP_CQSIZE | IORING_SETUP_TASKRUN_FLAG |
                     IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
  parameters.cq_entries = kCompletions;
  step = "io_uring_setup";
  ring_ = setup(kSubmissions, &parameters);
  if (ring_ < 0) return -errno;
  if ((parameters.features & IORING_FEAT_SINGLE_MMAP) == 0) return -ENOSYS;

  step = "mmap of the ring";
  const size_t submissionEnd = parameters.sq_off.array + parameters.sq_entries * sizeof(uint32_t);
  const size_t completionEnd = parameters.cq_off.cqes + parameters.cq_entries * sizeof(io_uring_cqe);
  ringsBytes_ = submissionEnd > completionEnd ? submissionEnd : completionEnd;
  void *rings = mmap(nullptr, ringsBytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring_,
                     IORING_OFF_SQ_RING);
  if (rings == MAP_FAILED) return -errno;
  rings_ = static_cast<uint8_t *>(rings);
  submissionsBytes_ = parameters.sq_entries * kSubmissionBytes;
  void *submissions = mmap(nullptr, submissionsBytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                           ring_, IORING_OFF_SQES);
  if (submissions == MAP_FAILED) return -errno;
  submissions_ = static_cast<uint8_t *>(submissions);

  const auto word = [this](uint32_t offset) { return reinterpret_cast<uint32_t *>(rings_ + offset); };
  submissionTail_ = word(parameters.sq_off.tail);
  submissionFlags_ = word(parameters.sq_off.flags);
  submissionArray_ = word(parameters.sq_off.array);
  submissionMask_ = *word(parameters.sq_off.ring_mask);
  completionHead_ = word(parameters.cq_off.head);
  completionTail_ = word(parameters.cq_off.tail);
  completionFlags_ = word(parameters.cq_off.flags);
  completionMask_ = *word(parameters.cq_off.ring_mask);
  completions_ = reinterpret_cast<io_uring_cqe *>(rings_ + parameters.cq_off.cqes);

  step = "eventfd";
  event_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (event_ < 0) return -errno;
  step = "io_uring_register";
  if (syscall(__NR_io_uring_register, ring_, IORING_REGISTER_EVENTFD, &event_, 1) != 0) return -errno;
  return 0;
}

void Ring::close() {
  if (ring_ >= 0) ::close(ring_);
  if (event_ >= 0) ::close(event_);
  ring_ = event_ = -1;
}

Ring::~Ring() {
  close();
  if (rings_ != nullptr) munmap(rings_, ringsBytes_);
  if (submissions_ != nullptr) munmap(submissions_, submissionsBytes_);
  for (const Entry &entry : entries_)
    munmap(entry.block, blockBytes());
}

size_t Ring::blockBytes() const {
  return kPage + roundUp(options_.payloadBytes) + kPage;
}

// Address space: pages are there once a request has needed them.
int Ring::addEntry(uint16_t queue) {
  if (entries_.size() >= kEntriesMax) return -ENOSPC;
  void *block =
      mmap(nullptr, blockBytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (block == MAP_FAILED) return -errno;
  entries_.push_back({static_cast<uint8_t *>(block), queue, 0, 0, 0});
  all_[queue]++;
  return 0;
}

uint8_t *Ring::message(uint32_t entry) const {
  return entries_[entry].block + kPage - kFixedBytes;
}

size_t Ring::messageBytes() const {
  return blockBytes() - (kPage - kFixedBytes);
}

void Ring::command(const Submission &wanted) {
  if (queued_ == kSubmissions) submit();
  if (queued_ == kSubmissions || !backlog_.empty())
    backlog_.push_back(wanted);
  else
    put(wanted);
}

// There is room.
void Ring::put(const Submission &wanted) {
  const uint32_t index = *submissionTail_ & submissionMask_; // ours alone
  uint8_t *at = submissions_ + index * kSubmissionBytes;
  memset(at, 0, kSubmissionBytes);
  submissionArray_[index] = index;
  io_uring_sqe *submission = reinterpret_cast<io_uring_sqe *>(at);
  submission->opcode = IORING_OP_URING_CMD;
  submission->fd = device_;
  submission->cmd_op = wanted.operation;
  submission->user_data = wanted.entry;
  const Entry &entry = entries_[wanted.entry];
  if (wanted.operation == kRegister) {
    uint8_t *block = entry.block;
    iovec *parts = reinterpret_cast<iovec *>(block + kPartsAt);
    parts[0] = {block, sizeof(EntryHeaders)};
    parts[1] = {block + kPage, options_.payloadBytes};
    submission->addr = reinterpret_cast<uint64_t>(parts);
    submission->len = 2;
  }
  Command command{};
  command.commitId = wanted.commitId;
  command.queue = entry.queue;
  memcpy(reinterpret_cast<uint8_t *>(submission) + kCommandAt, &command, sizeof command);
  std::atomic_ref<uint32_t>(*submissionTail_).store(*submissionTail_ + 1, std::memory_order_release);
  queued_++;
}

int Ring::enter(uint32_t count) {
  return static_cast<int>(
      syscall(__NR_io_uring_enter, ring_, count, 0, IORING_ENTER_GETEVENTS, nullptr, size_t{0}));
}

bool Ring::wantsEntering() const {
  return (loadAcquire(submissionFlags_) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

// Also runs what the kernel wants to have run by this thread: it copies requests that have come into their entries.
void Ring::submit() {
  for (;;) {
    for (; queued_ < kSubmissions && !backlog_.empty(); backlog_.pop_front())
      put(backlog_.front());
    if (queued_ == 0 && !wantsEntering()) return;
    const int done = enter(queued_);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) break;
    queued_ -= static_cast<uint32_t>(done) < queued_ ? static_cast<uint32_t>(done) : queued_;
  }
  // No memory (EAGAIN), or completions are in the way, and are taken next (EBADR, EBUSY). What is left is tried again in the next
  // turn of the loop: its callers wait, and nothing else may ever happen.
  if (queued_ > 0) wake();
}

int Ring::start(int device) {
  device_ = device;
  for (uint32_t entry = 0; entry < entries_.size(); entry++)
    command({kRegister, entry, 0});
  submit();
  // A refusal comes at once. A request that is there already is served like any other.
  Arrival none;
  while (hasCompletion() && completions_[*completionHead_ & completionMask_].res < 0)
    take(nextCompletion(), none);
  return failure_;
}

void Ring::grow() {
  for (uint16_t queue = 0; queue < options_.queues; queue++) {
    if (inUse_[queue] < all_[queue] || addEntry(queue) != 0) continue;
    command({kRegister, entryCount() - 1, 0});
    submit();
    knock(queue);
  }
}

// A request that found no entry waits in the queue until one is given back: the kernel does not offer it to one that is new
// (fs/fuse/dev_uring.c, fuse_uring_do_register), and those that are held may be so for long. So a request of our own goes
// through the new one, and takes the next along when it is answered. It is what FUSE_NOTIFY_RETRIEVE of no bytes causes, and
// comes to the queue of the CPU that asks for it. The kernel wants a regular file; one that a caller waits for is there.
// A CPU that we may not use is left alone.
void Ring::knock(uint16_t queue) {
  unsigned long before[kCpusMax / (8 * sizeof(unsigned long))];
  unsigned long there[kCpusMax / (8 * sizeof(unsigned long))] = {};
  const auto set = [](unsigned long *cpus) { return reinterpret_cast<cpu_set_t *>(cpus); };
  if (queue >= kCpusMax || sched_getaffinity(0, sizeof before, set(before)) != 0) return;
  CPU_SET_S(queue, sizeof there, set(there));
  if (sched_setaffinity(0, sizeof there, set(there)) != 0) return;
  fuse_notify_retrieve_out wish{};
  wish.notify_unique = kKnock + knocks_++;
  for (const Entry &entry : entries_) {
    wish.nodeid = entry.inode;
    if (entry.queue == queue && entry.inode != 0 &&
        writeNotification(device_, FUSE_NOTIFY_RETRIEVE, &wish, sizeof wish) == 0)
      break;
  }
  sched_setaffinity(0, sizeof before, set(before));
}

void Ring::awake() {
  uint64_t count;
  std::atomic_ref<uint32_t>(*completionFlags_).fetch_or(IORING_CQ_EVENTFD_DISABLED);
  while (read(event_, &count, sizeof count) < 0 && errno == EINTR) {
  }
}

void Ring::asleep() {
  std::atomic_ref<uint32_t>(*completionFlags_).fetch_and(~uint32_t{IORING_CQ_EVENTFD_DISABLED});
  // Of what has come meanwhile the kernel tells nobody.
  if (hasCompletion() || wantsEntering()) wake();
}

void Ring::wake() {
  const uint64_t one = 1;
  while (write(event_, &one, sizeof one) < 0 && errno == EINTR) {
  }
}

bool Ring::hasCompletion() const {
  return *completionHead_ != loadAcquire(completionTail_);
}

// There is one.
io_uring_cqe Ring::nextCompletion() {
  const uint32_t head = *completionHead_;
  const io_uring_cqe completion = completions_[head & completionMask_];
  std::atomic_ref<uint32_t>(*completionHead_).store(head + 1, std::memory_order_release);
  return completion;
}

bool Ring::next(Arrival &arrival) {
  while (hasCompletion())
    if (take(nextCompletion(), arrival)) return true;
  return false;
}

// The kernel has not done what an entry was to be used for.
void Ring::refused(uint32_t index, int failure) {
  Entry &entry = entries_[index];
  failure_ = failure;
  // The mount has ended, or the ring.
  if (failure == -ENOTCONN || failure == -ECONNABORTED || failure == -ECANCELED) return;
  // It waits for nobody: `grow` makes up for it.
  const bool isNew = entry.answered == 0;
  // The request has ended without us, and the kernel has forgotten the entry. Its memory will do for a new one.
  const bool isLost = failure == -ENOENT || failure == -EIO;
  if (isNew || ++entry.refusals > kRefusalsMax) {
    all_[entry.queue]--;
    return;
  }
  if (isLost) entry.answered = 0;
  command({isLost ? kRegister : kCommitAndFetch, index, entry.answered});
}

bool Ring::take(const io_uring_cqe &completion, Arrival &arrival) {
  const uint32_t index = static_cast<uint32_t>(completion.user_data);
  if (index >= entries_.size()) return false;
  Entry &entry = entries_[index];
  if (completion.res < 0) {
    refused(index, completion.res);
    return false;
  }
  entry.refusals = 0;
  EntryHeaders headers;
  memcpy(&headers, entry.block, sizeof headers);
  fuse_in_header request;
  memcpy(&request, headers.inOut, sizeof request);
  const size_t payload = headers.entry.payloadBytes;
  const size_t operation = request.len - sizeof request - payload;
  inUse_[entry.queue]++;
  entry.inode = request.nodeid;
  if (request.unique >= kKnock) {
    commit(index, request.unique, 0, 0);
    return false;
  }
  if (payload > options_.payloadBytes || request.len < sizeof request + payload ||
      operation > kOperationBytes) {
    commit(index, headers.entry.commitId, EIO, 0);
    return false;
  }

  uint8_t *to = message(index);
  memcpy(to, &request, sizeof request);
  if (payload > 0 && operation != sizeof(fuse_write_in))
    memmove(to + sizeof request + operation, entry.block + kPage, payload);
  memcpy(to + sizeof request, headers.operation, operation);
  held_.emplace(request.unique, index);
  arrival = {index, request.len};
  return true;
}

void Ring::commit(uint32_t index, uint64_t unique, int error, size_t length) {
  Entry &entry = entries_[index];
  fuse_out_header header{};
  header.len = static_cast<uint32_t>(sizeof header + length);
  header.error = -error;
  header.unique = unique;
  memcpy(entry.block, &header, sizeof header);
  EntryInOut about{};
  about.commitId = unique;
  about.payloadBytes = static_cast<uint32_t>(length);
  memcpy(entry.block + offsetof(EntryHeaders, entry), &about, sizeof about);
  inUse_[entry.queue]--;
  entry.inode = 0;
  entry.answered = unique;
  command({kCommitAndFetch, index, unique});
}

bool Ring::claim(uint64_t unique, uint32_t &entry) {
  const auto found = held_.find(unique);
  if (found == held_.end()) return false;
  entry = found->second;
  held_.erase(found);
  return true;
}

int Ring::answer(uint32_t entry, uint64_t unique, int error, const void *payload, size_t length) {
  if (length > options_.payloadBytes) {
    commit(entry, unique, EIO, 0);
    return -EINVAL;
  }
  if (length > 0) memcpy(entries_[entry].block + kPage, payload, length);
  commit(entry, unique, error, length);
  return 0;
}

int Ring::answerFromRegion(uint32_t entry, uint64_t unique, const Mapping &region, const Piece *pieces,
                           size_t count) {
  uint8_t *payload = entries_[entry].block + kPage;
  const ssize_t length = copyPieces(region, pieces, count, payload, options_.payloadBytes);
  if (length < 0) {
    commit(entry, unique, EIO, 0);
    return static_cast<int>(length);
  }
  commit(entry, unique, 0, static_cast<size_t>(length));
  return 0;
}

} // namespace mapdirect
