// Serves a /dev/fuse descriptor on a libuv event loop.
//
// Invariants:
// - everything here runs on the loop's thread;
// - after `close` or after `onEnd` the listener is never called again, even when `close` came from inside a
// call;
// - one wake-up serves at most `batch` requests, so that timers and other descriptors get their turn;
// - the loop is kept alive while the channel is watched, and not a moment longer;
// - with a ring, requests come through either, and each is answered the way it came;
// - it closes itself when the listener cannot serve any more. The environment of a worker thread that is terminated waits
// for what its thread pool has under way, and that may be a call that waits for an answer from here.
#pragma once

#include "fuse/busypoll.h"
#include "fuse/device.h"
#include "fuse/ring.h"

#include <memory>
#include <uv.h>

namespace mapdirect {

class ChannelListener {
public:
  static constexpr int kNoEntry = -1;

  // Asked in each turn of the loop. False: nobody can answer requests any more.
  virtual bool canServe() = 0;
  // Around the requests of one wake-up.
  virtual void onBurstBegin() = 0;
  virtual void onBurstEnd() = 0;
  // It lies in the channel's buffer, or in the entry of the ring. True: somebody waits for what the end of the burst
  // will bring.
  virtual bool onRequest(size_t length, int entry) = 0;
  // 0: the file system was unmounted. Otherwise a positive errno.
  virtual void onEnd(int error) = 0;

protected:
  ~ChannelListener() = default;
};

struct ChannelOptions {
  uint64_t busyPollNanos;
  uint32_t batch;
};

struct ChannelCounters {
  uint64_t requests;
  uint64_t wakeups;
  uint64_t pollHits;
};

class Channel : public std::enable_shared_from_this<Channel> {
public:
  // The channel owns the descriptor from success on. `buffer` must outlive the watching.
  static int open(uv_loop_t *loop, int descriptor, void *buffer, size_t capacity,
                  const ChannelOptions &options, ChannelListener *listener,
                  std::shared_ptr<Channel> &channel);
  ~Channel();

  // `afterClose` runs on a later turn of the loop, when libuv has let go.
  void close(void (*afterClose)(void *) = nullptr, void *argument = nullptr);
  bool closed() const { return poll_ == nullptr; }

  // Null once closed.
  const std::shared_ptr<Descriptor> &descriptor() const { return descriptor_; }

  // From now on requests come through the ring. A negative errno: they go on coming through the descriptor.
  int useRing(std::shared_ptr<Ring> ring);
  // Null without one, and once closed.
  const std::shared_ptr<Ring> &ring() const { return ring_; }
  // Each answers one request. Return 0 or a negative errno.
  int reply(uint64_t unique, int error, const void *payload, size_t length);
  int replyFromRegion(uint64_t unique, const Mapping &region, const Piece *pieces, size_t count);
  const ChannelCounters &counters() const { return counters_; }

private:
  Channel(const ChannelOptions &options, bool severalCpus)
      : options_(options), busyPoll_(options.busyPollNanos, severalCpus) {}
  static void onReadable(uv_poll_t *poll, int status, int events);
  static void onRingReadable(uv_poll_t *poll, int status, int events);
  static void onTurn(uv_prepare_t *turn);
  static uv_poll_t *watch(uv_loop_t *loop, int descriptor, uv_poll_cb callback, void *self, int &failure);
  void serve();
  void serveRing();
  void begin();
  void runPromises(bool &owing);
  // Ask `attempt` again and again until it succeeds or the window has passed.
  template <typename Attempt> bool pollOn(uint64_t sinceNanos, Attempt attempt);
  void end(int error);

  const ChannelOptions options_;
  BusyPoll busyPoll_;
  uv_poll_t *poll_ = nullptr;
  uv_poll_t *ringPoll_ = nullptr;
  uv_prepare_t *turn_ = nullptr;
  std::shared_ptr<Ring> ring_;
  bool collecting_ = false; // answers of a request that is being served wait for the end of it
  ChannelListener *listener_ = nullptr;
  std::shared_ptr<Descriptor> descriptor_;
  void *buffer_ = nullptr;
  size_t capacity_ = 0;
  bool watching_ = false;
  bool serving_ = false;
  uint64_t idleSinceNanos_ = 0; // 0 when the last wake-up ended with requests left
  ChannelCounters counters_{};
};

} // namespace mapdirect
