// Writes notifications to /dev/fuse from a thread of its own.
//
// Why not the event loop: the kernel may take a lock for a notification that is held by a caller who waits
// for our reply (an entry invalidation waits for the directory's lock). Why not libuv's thread pool: its four
// threads could all be waiting so, while the reply they wait for needs the pool (the fdatasync of an FSYNC):
// a deadlock.
//
// Invariants:
// - notifications are written in the order they were queued;
// - `done` is called on the loop's thread, once for each, in that order; after `close` for none;
// - the thread is started by the first notification and never joined: it may be inside a write that ends only
// when the
//   connection does. It owns what it needs.
#pragma once

#include "fuse/device.h"

#include <memory>
#include <uv.h>
#include <vector>

namespace mapdirect {

class Notifier {
public:
  using Done = void (*)(void *context, uint64_t ticket, int error);

  Notifier(uv_loop_t *loop, Done done, void *context) : loop_(loop), done_(done), context_(context) {}
  ~Notifier() { close(); }
  Notifier(const Notifier &) = delete;
  Notifier &operator=(const Notifier &) = delete;

  // Returns 0 or a negative errno; `done` follows only after 0.
  int post(const std::shared_ptr<Descriptor> &descriptor, uint64_t ticket, int code,
           std::vector<uint8_t> payload);
  void close();

private:
  struct Shared;
  int start();
  static void *run(void *argument);
  static void onWake(uv_async_t *wake);

  uv_loop_t *loop_;
  Done done_;
  void *context_;
  uv_async_t *wake_ = nullptr;
  std::shared_ptr<Shared> shared_;
};

} // namespace mapdirect
