// How long to keep asking /dev/fuse after a burst, instead of going to sleep in epoll.
//
// A caller in a loop sends its next request a few microseconds after our reply; sleeping and waking costs
// more than waiting for it. But a window that passes without a request is wasted CPU time, on one CPU even
// the caller's own.
//
// Invariants:
// - the window never exceeds its maximum, and is 0 on a machine with one CPU;
// - a window is opened only when the last gap between burst and wake-up would have been caught by it;
// - after each window in vain, the number of such gaps that must be seen before the next try doubles, up to a
// bound.
#pragma once

#include <cstdint>

namespace mapdirect {

class BusyPoll {
public:
  BusyPoll(uint64_t maximumNanos, bool severalCpus) : maximum_(severalCpus ? maximumNanos : 0) {}

  uint64_t windowNanos() const { return window_; }
  // The event loop woke us `gap` after the last burst ended without a window, or with one that was too short.
  void wokenAfter(uint64_t gapNanos);
  // A window caught a request, `gap` after it was opened.
  void hit(uint64_t gapNanos);
  void missed();

private:
  static constexpr uint32_t kPenaltyMax = 256;
  void widen(uint64_t gapNanos);

  const uint64_t maximum_;
  uint64_t window_ = 0;
  uint32_t penalty_ = 1; // gaps to see before the next try
  uint32_t seen_ = 0;
};

} // namespace mapdirect
