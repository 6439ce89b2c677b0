#include "region/guard.h"

#include <csignal>
#include <mutex>

namespace mapdirect {

constinit thread_local Guard *activeGuard __attribute__((tls_model("initial-exec"))) = nullptr;

namespace {

struct sigaction previous;

void onBusError(int signal, siginfo_t *info, void *context) {
  Guard *guard = activeGuard;
  const uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
  // si_code > 0: raised by the kernel for this very access, not sent by kill(2).
  if (guard != nullptr && info->si_code > 0 && address >= guard->begin && address < guard->end)
    siglongjmp(guard->jump, 1);

  if ((previous.sa_flags & SA_SIGINFO) != 0 && previous.sa_sigaction != nullptr) {
    previous.sa_sigaction(signal, info, context);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(signal);
  } else if (previous.sa_handler == SIG_IGN && info->si_code <= 0) {
    return;
  } else {
    // Returning to the faulting instruction under the default action ends the process with the right core
    // dump; a signal that was sent has no such instruction and is raised again.
    struct sigaction standard {};
    standard.sa_handler = SIG_DFL;
    sigaction(SIGBUS, &standard, nullptr);
    if (info->si_code <= 0) raise(SIGBUS);
  }
}

} // namespace

int installGuard() {
  static std::mutex mutex;
  static bool installed = false;
  const std::lock_guard<std::mutex> lock(mutex);
  if (installed) return 0;
  struct sigaction action {};
  action.sa_sigaction = onBusError;
  action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  // Read the old action before ours can run with `previous` still empty.
  if (sigaction(SIGBUS, nullptr, &previous) != 0) return -errno;
  if (sigaction(SIGBUS, &action, nullptr) != 0) return -errno;
  installed = true;
  return 0;
}

} // namespace mapdirect
