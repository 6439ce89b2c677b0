#include "fuse/channel.h"

#include <cerrno>
#include <fcntl.h>
#include <sched.h>

namespace mapdirect {
namespace {

// Answers that one system call gives.
constexpr uint32_t kAnswersTogether = 4;

struct Closing {
  void (*afterClose)(void *);
  void *argument;
};

bool haveSeveralCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) != 0 || CPU_COUNT(&set) > 1;
}

} // namespace

int Channel::open(uv_loop_t *loop, int descriptor, void *buffer, size_t capacity,
                  const ChannelOptions &options, ChannelListener *listener,
                  std::shared_ptr<Channel> &channel) {
  const int flags = fcntl(descriptor, F_GETFL);
  if (flags < 0 || fcntl(descriptor, F_SETFL, flags | O_NONBLOCK) != 0) return -errno;
  if (fcntl(descriptor, F_SETFD, FD_CLOEXEC) != 0) return -errno;

  std::shared_ptr<Channel> opened(new Channel(options, haveSeveralCpus()));
  int failure = 0;
  opened->poll_ = watch(loop, descriptor, onReadable, opened.get(), failure);
  if (opened->poll_ == nullptr) return failure;
  opened->turn_ = new uv_prepare_t;
  uv_prepare_init(loop, opened->turn_);
  opened->turn_->data = opened.get();
  uv_prepare_start(opened->turn_, onTurn);
  uv_unref(reinterpret_cast<uv_handle_t *>(opened->turn_));
  opened->listener_ = listener;
  opened->buffer_ = buffer;
  opened->capacity_ = capacity;
  opened->descriptor_ = std::make_shared<Descriptor>(descriptor);
  opened->watching_ = true;
  channel = std::move(opened);
  return 0;
}

uv_poll_t *Channel::watch(uv_loop_t *loop, int descriptor, uv_poll_cb callback, void *self, int &failure) {
  uv_poll_t *poll = new uv_poll_t;
  failure = uv_poll_init(loop, poll, descriptor);
  if (failure != 0) {
    delete poll;
    return nullptr;
  }
  poll->data = self;
  uv_poll_start(poll, UV_READABLE, callback);
  return poll;
}

Channel::~Channel() {
  close();
}

void Channel::close(void (*afterClose)(void *), void *argument) {
  if (poll_ == nullptr) return;
  watching_ = false;
  if (ringPoll_ != nullptr) {
    uv_close(reinterpret_cast<uv_handle_t *>(ringPoll_),
             [](uv_handle_t *handle) { delete reinterpret_cast<uv_poll_t *>(handle); });
    ringPoll_ = nullptr;
  }
  uv_close(reinterpret_cast<uv_handle_t *>(turn_),
           [](uv_handle_t *handle) { delete reinterpret_cast<uv_prepare_t *>(handle); });
  turn_ = nullptr;
  uv_poll_t *poll = poll_;
  poll_ = nullptr;
  poll->data = new Closing{afterClose, argument};
  uv_close(reinterpret_cast<uv_handle_t *>(poll), [](uv_handle_t *handle) {
    const Closing *closing = static_cast<Closing *>(handle->data);
    if (closing->afterClose != nullptr) closing->afterClose(closing->argument);
    delete closing;
    delete reinterpret_cast<uv_poll_t *>(handle);
  });
  // uv_close has taken the descriptor out of epoll, so its number may go now; a notification that is being
  // written keeps it until the write returns.
  descriptor_.reset();
  if (ring_ != nullptr) ring_->close();
  ring_.reset();
}

void Channel::end(int error) {
  if (!watching_) return;
  watching_ = false;
  uv_poll_stop(poll_);
  if (ringPoll_ != nullptr) uv_poll_stop(ringPoll_);
  listener_->onEnd(error);
}

void Channel::onReadable(uv_poll_t *poll, int, int) {
  // The status is not looked at: libuv turns EPOLLERR into EBADF, and the read tells what it really was.
  const std::shared_ptr<Channel> self = static_cast<Channel *>(poll->data)->shared_from_this();
  self->serve();
}

void Channel::onRingReadable(uv_poll_t *poll, int, int) {
  const std::shared_ptr<Channel> self = static_cast<Channel *>(poll->data)->shared_from_this();
  self->serveRing();
}

void Channel::onTurn(uv_prepare_t *turn) {
  const std::shared_ptr<Channel> self = static_cast<Channel *>(turn->data)->shared_from_this();
  if (!self->listener_->canServe()) self->close();
}

void Channel::begin() {
  serving_ = true;
  counters_.wakeups++;
  listener_->onBurstBegin();
  if (idleSinceNanos_ != 0) busyPoll_.wokenAfter(uv_hrtime() - idleSinceNanos_);
  idleSinceNanos_ = 0;
}

// Promises run at the end of a burst: who waits for one of them shall not wait for the window as well.
void Channel::runPromises(bool &owing) {
  if (!owing) return;
  owing = false;
  listener_->onBurstEnd();
  listener_->onBurstBegin();
}

void Channel::serve() {
  // A nested turn of the loop (a synchronous wait inside a handler) must not overwrite the request being
  // served.
  if (serving_) return;
  begin();
  bool owing = false;
  for (uint32_t served = 0; served < options_.batch && watching_; served++) {
    ssize_t length = readRequest(descriptor_->number(), buffer_, capacity_);
    if (length == -EAGAIN) {
      const uint64_t since = uv_hrtime();
      runPromises(owing);
      if (!watching_) break;
      // With a ring only what nobody waits for comes this way.
      if (served > 0 && ring_ == nullptr) {
        pollOn(since, [this, &length] {
          length = readRequest(descriptor_->number(), buffer_, capacity_);
          return length != -EAGAIN;
        });
      }
      if (length == -EAGAIN) {
        idleSinceNanos_ = since;
        break;
      }
    }
    if (length <= 0) {
      // ENODEV: unmounted. A socket in its place says so by its end.
      end(length == 0 || length == -ENODEV ? 0 : static_cast<int>(-length));
      break;
    }
    counters_.requests++;
    if (listener_->onRequest(static_cast<size_t>(length), ChannelListener::kNoEntry)) owing = true;
  }
  serving_ = false;
  listener_->onBurstEnd();
}

void Channel::serveRing() {
  if (serving_) return;
  const std::shared_ptr<Ring> ring = ring_;
  ring->awake();
  begin();
  bool owing = false;
  Ring::Arrival arrival;
  const auto take = [&ring, &arrival] {
    if (ring->next(arrival)) return true;
    ring->submit();
    return ring->next(arrival);
  };
  for (uint32_t served = 0; served < options_.batch && watching_; served++) {
    if (!take()) {
      const uint64_t since = uv_hrtime();
      runPromises(owing);
      if (!watching_) break;
      if (!(served > 0 && pollOn(since, take))) {
        idleSinceNanos_ = since;
        break;
      }
    }
    counters_.requests++;
    collecting_ = true;
    if (listener_->onRequest(arrival.length, static_cast<int>(arrival.entry))) owing = true;
    collecting_ = false;
    // One call for several answers, if there are several to give; the first shall not wait for long.
    if (!ring->hasCompletion() || ring->queued() >= kAnswersTogether) ring->submit();
  }
  ring->submit();
  if (watching_) ring->grow();
  serving_ = false;
  listener_->onBurstEnd();
  if (ring_ != nullptr) ring->asleep();
}

template <typename Attempt> bool Channel::pollOn(uint64_t sinceNanos, Attempt attempt) {
  const uint64_t window = busyPoll_.windowNanos();
  if (window == 0) return false;
  for (;;) {
    const bool done = attempt();
    const uint64_t passed = uv_hrtime() - sinceNanos;
    if (done) {
      busyPoll_.hit(passed);
      counters_.pollHits++;
      return true;
    }
    if (passed >= window) {
      busyPoll_.missed();
      return false;
    }
    // Who asks next may be waiting for this very processor.
    sched_yield();
  }
}

int Channel::useRing(std::shared_ptr<Ring> ring) {
  int failure = 0;
  uv_poll_t *poll = watch(poll_->loop, ring->eventDescriptor(), onRingReadable, this, failure);
  if (poll == nullptr) return failure;
  ringPoll_ = poll;
  ring_ = std::move(ring);
  failure = ring_->start(descriptor_->number());
  // What the kernel has accepted goes on being served.
  ring_->asleep();
  return failure;
}

int Channel::reply(uint64_t unique, int error, const void *payload, size_t length) {
  uint32_t entry = 0;
  if (ring_ == nullptr || !ring_->claim(unique, entry))
    return writeReply(descriptor_->number(), unique, error, payload, length);
  const int result = ring_->answer(entry, unique, error, payload, length);
  if (!collecting_) ring_->submit();
  return result;
}

int Channel::replyFromRegion(uint64_t unique, const Mapping &region, const Piece *pieces, size_t count) {
  uint32_t entry = 0;
  if (ring_ == nullptr || !ring_->claim(unique, entry))
    return writeRegionReply(descriptor_->number(), unique, region, pieces, count);
  const int result = ring_->answerFromRegion(entry, unique, region, pieces, count);
  if (!collecting_) ring_->submit();
  return result;
}

} // namespace mapdirect
