// Surviving SIGBUS in our own mapping: the region file was truncated beneath us, the disk or the memory
// reports an error, or a sparse file could not get a block. The copy stops and the caller gets -EIO.
//
// Invariants:
// - `activeGuard` is non-null only while this thread runs the body of `guarded`;
// - only a fault inside the guarded range is caught; every other SIGBUS goes where it went before we came;
// - the body owns nothing that needs a destructor and takes no lock: it may be abandoned between any two
// instructions.
#pragma once

#include <cerrno>
#include <csetjmp>
#include <cstddef>
#include <cstdint>

namespace mapdirect {

struct Guard {
  sigjmp_buf jump;
  uintptr_t begin;
  uintptr_t end;
};

// initial-exec: the handler may run on a thread that never touched this variable, and the general model would
// then allocate inside a signal handler.
extern constinit thread_local Guard *activeGuard __attribute__((tls_model("initial-exec")));

// Install the handler, once per process. Returns 0 or a negative errno.
int installGuard();

// Run `body`, which touches [begin, begin + length) of a mapping. Returns 0, or -EIO if that raised SIGBUS.
// Costs a few nanoseconds: the signal mask is not saved, because the handler is installed with SA_NODEFER and
// an empty mask and thus leaves nothing to restore.
template <typename Body>
__attribute__((noinline)) int guarded(const void *begin, size_t length, const Body &body) {
  Guard guard;
  guard.begin = reinterpret_cast<uintptr_t>(begin);
  guard.end = guard.begin + length;
  if (sigsetjmp(guard.jump, 0) != 0) {
    activeGuard = nullptr;
    return -EIO;
  }
  activeGuard = &guard;
  asm volatile("" : : : "memory"); // the stores of the body stay between the two assignments
  body();
  asm volatile("" : : : "memory");
  activeGuard = nullptr;
  return 0;
}

} // namespace mapdirect
