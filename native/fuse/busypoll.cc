#include "fuse/busypoll.h"

#include <algorithm>

namespace mapdirect {

void BusyPoll::widen(uint64_t gapNanos) {
  // Twice the gap leaves room for jitter without spending the maximum on a caller that is always quick.
  window_ = std::min(maximum_, std::max(window_, 2 * gapNanos));
}

void BusyPoll::wokenAfter(uint64_t gapNanos) {
  if (gapNanos >= maximum_) {
    seen_ = 0;
    return;
  }
  if (++seen_ < penalty_) return;
  seen_ = 0;
  widen(gapNanos);
}

void BusyPoll::hit(uint64_t gapNanos) {
  penalty_ = std::max(penalty_ / 2, 1U);
  widen(gapNanos);
}

void BusyPoll::missed() {
  // One miss ends every burst of a caller that was busy for a while; halve first, give up when it happens
  // again and again (hits in between have lowered the penalty).
  penalty_ = std::min(penalty_ * 2, kPenaltyMax);
  window_ = penalty_ > 4 ? 0 : window_ / 2;
  if (window_ < 2000) window_ = 0;
}

} // namespace mapdirect
