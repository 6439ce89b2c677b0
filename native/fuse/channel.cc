#include "fuse/channel.h"

#include <cerrno>
#include <fcntl.h>
#include <sched.h>

namespace mapdirect {
namespace {

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

  uv_poll_t *poll = new uv_poll_t;
  if (const int failure = uv_poll_init(loop, poll, descriptor); failure != 0) {
    delete poll;
    return failure;
  }
  std::shared_ptr<Channel> opened(new Channel(options, haveSeveralCpus()));
  poll->data = opened.get();
  opened->poll_ = poll;
  opened->listener_ = listener;
  opened->buffer_ = buffer;
  opened->capacity_ = capacity;
  opened->descriptor_ = std::make_shared<Descriptor>(descriptor);
  uv_poll_start(poll, UV_READABLE, onReadable);
  opened->watching_ = true;
  channel = std::move(opened);
  return 0;
}

Channel::~Channel() {
  close();
}

void Channel::close(void (*afterClose)(void *), void *argument) {
  if (poll_ == nullptr) return;
  watching_ = false;
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
}

void Channel::end(int error) {
  if (!watching_) return;
  watching_ = false;
  uv_poll_stop(poll_);
  listener_->onEnd(error);
}

void Channel::onReadable(uv_poll_t *poll, int, int) {
  // The status is not looked at: libuv turns EPOLLERR into EBADF, and the read tells what it really was.
  const std::shared_ptr<Channel> self = static_cast<Channel *>(poll->data)->shared_from_this();
  self->serve();
}

void Channel::serve() {
  // A nested turn of the loop (a synchronous wait inside a handler) must not overwrite the request being
  // served.
  if (serving_) return;
  serving_ = true;
  counters_.wakeups++;
  listener_->onBurstBegin();
  if (idleSinceNanos_ != 0) busyPoll_.wokenAfter(uv_hrtime() - idleSinceNanos_);
  idleSinceNanos_ = 0;

  bool owing = false;
  for (uint32_t served = 0; served < options_.batch && watching_; served++) {
    ssize_t length = readRequest(descriptor_->number(), buffer_, capacity_);
    if (length == -EAGAIN) {
      const uint64_t since = uv_hrtime();
      if (owing) {
        // Promises run at the end of a burst: who waits for one of them shall not wait for the window as well.
        owing = false;
        listener_->onBurstEnd();
        listener_->onBurstBegin();
        if (!watching_) break;
      }
      if (served > 0 && busyPoll_.windowNanos() > 0) length = pollOn(since);
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
    if (listener_->onRequest(static_cast<size_t>(length))) owing = true;
  }
  serving_ = false;
  listener_->onBurstEnd();
}

ssize_t Channel::pollOn(uint64_t sinceNanos) {
  const uint64_t window = busyPoll_.windowNanos();
  for (;;) {
    const ssize_t length = readRequest(descriptor_->number(), buffer_, capacity_);
    const uint64_t passed = uv_hrtime() - sinceNanos;
    if (length != -EAGAIN) {
      busyPoll_.hit(passed);
      counters_.pollHits++;
      return length;
    }
    if (passed >= window) {
      busyPoll_.missed();
      return -EAGAIN;
    }
  }
}

} // namespace mapdirect
