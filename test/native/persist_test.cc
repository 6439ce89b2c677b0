// Tests of native/persist, native/region/guard and native/fuse/busypoll that need no Node; built with
// sanitizers by persist.test.ts. Each case is one command-line argument; it prints what failed and exits
// with 1.
#include "fuse/busypoll.h"
#include "persist/copy.h"
#include "persist/crc32c.h"
#include "persist/flush.h"
#include "region/guard.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

using namespace mapdirect;

#define REQUIRE(condition)                                                                                   \
  do {                                                                                                       \
    if (!(condition)) {                                                                                      \
      fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                                                \
      exit(1);                                                                                               \
    }                                                                                                        \
  } while (0)

namespace {

uint32_t randomState = 12345;
uint8_t randomByte() {
  randomState = randomState * 1664525 + 1013904223;
  return static_cast<uint8_t>(randomState >> 24);
}

std::vector<uint8_t> randomBytes(size_t length) {
  std::vector<uint8_t> bytes(length);
  for (uint8_t &byte : bytes)
    byte = randomByte();
  return bytes;
}

void goldenVectors() {
  uint8_t bytes[32];
  const auto both = [&](const void *data, size_t length, uint32_t expected) {
    REQUIRE(crc32c(0, data, length) == expected);
    REQUIRE(crc32cTable(0, data, length) == expected);
  };
  // RFC 3720, B.4
  memset(bytes, 0, sizeof bytes);
  both(bytes, 32, 0x8a9136aa);
  memset(bytes, 0xff, sizeof bytes);
  both(bytes, 32, 0x62a8ab43);
  for (size_t i = 0; i < 32; i++)
    bytes[i] = static_cast<uint8_t>(i);
  both(bytes, 32, 0x46dd794e);
  for (size_t i = 0; i < 32; i++)
    bytes[i] = static_cast<uint8_t>(31 - i);
  both(bytes, 32, 0x113fdb5c);
  both("123456789", 9, 0xe3069283);
  both("", 0, 0);
}

void hardwareAgrees() {
  const std::vector<uint8_t> bytes = randomBytes(8192);
  for (size_t start = 0; start < 16; start++)
    for (size_t length = 0; length < 2500; length += length < 40 ? 1 : 37)
      REQUIRE(crc32c(7, bytes.data() + start, length) == crc32cTable(7, bytes.data() + start, length));
  for (size_t cut = 0; cut <= 8192; cut += 97)
    REQUIRE(crc32c(crc32c(0, bytes.data(), cut), bytes.data() + cut, 8192 - cut) ==
            crc32cTable(0, bytes.data(), 8192));
}

void copies() {
  constexpr size_t kRoom = 8192;
  constexpr size_t kMargin = 128;
  const std::vector<uint8_t> source = randomBytes(kRoom + 64);
  const std::vector<uint8_t> before = randomBytes(kRoom + 2 * kMargin);
  auto *target = static_cast<uint8_t *>(aligned_alloc(64, before.size()));
  std::vector<uint8_t> expected(before.size());
  std::vector<size_t> lengths = {0, 1, 2, 3, 7, 8, 15, 16, 17, 1000, 4095, 4096, 4097, 8000};
  for (size_t length = 30; length < 450; length += 11)
    lengths.push_back(length);
  for (const size_t edge : {size_t{64}, size_t{128}, size_t{256}, size_t{320}, size_t{512}})
    for (size_t length = edge - 2; length <= edge + 2; length++)
      lengths.push_back(length);
  for (size_t alignment = 0; alignment < 64; alignment++) {
    for (const size_t length : lengths) {
      const size_t from = (alignment * 7 + length) % 64;
      memcpy(target, before.data(), before.size());
      expected = before;
      memcpy(expected.data() + kMargin + alignment, source.data() + from, length);
      persistCopy(target + kMargin + alignment, source.data() + from, length);
      drainStores();
      REQUIRE(memcmp(target, expected.data(), before.size()) == 0);

      memset(expected.data() + kMargin + alignment, 0, length);
      persistZero(target + kMargin + alignment, length);
      drainStores();
      REQUIRE(memcmp(target, expected.data(), before.size()) == 0);
    }
  }
  free(target);
}

void flushes() {
  const std::vector<uint8_t> before = randomBytes(4096);
  std::vector<uint8_t> bytes = before;
  for (size_t start = 0; start < 130; start++)
    for (const size_t length : {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{65}, size_t{1000}})
      flushRange(bytes.data() + start, length);
  drainStores();
  REQUIRE(bytes == before);
  REQUIRE(strlen(flushMethod()) > 0);
}

// A mapping of two pages over a file of one: the second page raises SIGBUS.
uint8_t *shortMapping() {
  FILE *file = tmpfile();
  REQUIRE(file != nullptr);
  REQUIRE(ftruncate(fileno(file), 4096) == 0);
  void *base = mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
  REQUIRE(base != MAP_FAILED);
  fclose(file);
  return static_cast<uint8_t *>(base);
}

void guardCatches() {
  REQUIRE(installGuard() == 0);
  uint8_t *base = shortMapping();
  for (int round = 0; round < 1000; round++) {
    uint8_t byte = 1;
    REQUIRE(guarded(base, 8192, [&] { memcpy(base + 100, &byte, 1); }) == 0);
    REQUIRE(guarded(base, 8192, [&] { memcpy(&byte, base + 5000, 1); }) == -EIO);
    REQUIRE(guarded(base, 8192, [&] { persistCopy(base + 4000, base, 2000); }) == -EIO);
    REQUIRE(activeGuard == nullptr);
  }
  // SIGBUS is not left blocked: the next fault would otherwise kill.
  sigset_t mask;
  sigprocmask(SIG_SETMASK, nullptr, &mask);
  REQUIRE(sigismember(&mask, SIGBUS) == 0);
}

int dieIn(void (*body)()) {
  const pid_t child = fork();
  if (child == 0) {
    body();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

void onPrevious(int) {
  _exit(42);
}

void guardChains() {
  // Under the default action a foreign fault still kills with SIGBUS.
  int status = dieIn([] {
    signal(SIGBUS, SIG_DFL);
    installGuard();
    *const_cast<volatile uint8_t *>(shortMapping() + 5000) = 1;
  });
  REQUIRE(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
  // One that was sent, too.
  status = dieIn([] {
    signal(SIGBUS, SIG_DFL);
    installGuard();
    kill(getpid(), SIGBUS);
    usleep(1000);
  });
  REQUIRE(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
  // A handler that was there before gets it; inside `guarded` as well, when the address is not the guarded
  // one.
  status = dieIn([] {
    signal(SIGBUS, onPrevious);
    installGuard();
    uint8_t *guardedBase = shortMapping();
    uint8_t *foreign = shortMapping();
    guarded(guardedBase, 8192, [&] { *const_cast<volatile uint8_t *>(foreign + 5000) = 1; });
  });
  REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 42);
}

void busyPollPays() {
  BusyPoll poll(50'000, true);
  REQUIRE(poll.windowNanos() == 0);
  poll.wokenAfter(10'000);
  REQUIRE(poll.windowNanos() >= 20'000);
  for (int i = 0; i < 100; i++)
    poll.hit(40'000);
  REQUIRE(poll.windowNanos() == 50'000);
  // Requests that come too late: the window closes, and stays closed.
  int opened = 0;
  for (int i = 0; i < 1000; i++) {
    if (poll.windowNanos() > 0) {
      opened++;
      poll.missed();
    }
    poll.wokenAfter(1'000'000);
  }
  REQUIRE(poll.windowNanos() == 0 && opened <= 5);
  // Gaps that look short but windows that never catch anything (one CPU): tried ever more rarely.
  opened = 0;
  for (int i = 0; i < 2000; i++) {
    if (poll.windowNanos() > 0) {
      opened++;
      poll.missed();
    }
    poll.wokenAfter(10'000);
  }
  REQUIRE(opened < 40);
  BusyPoll alone(50'000, false);
  alone.wokenAfter(100);
  REQUIRE(alone.windowNanos() == 0);
}

struct Case {
  const char *name;
  void (*run)();
};

const Case kCases[] = {
    {"golden-vectors", goldenVectors},
    {"hardware-agrees", hardwareAgrees},
    {"copies", copies},
    {"flushes", flushes},
    {"guard-catches", guardCatches},
    {"guard-chains", guardChains},
    {"busy-poll", busyPollPays},
};

} // namespace

int main(int count, char **arguments) {
  for (const Case &candidate : kCases) {
    if (count == 2 && strcmp(arguments[1], candidate.name) == 0) {
      candidate.run();
      return 0;
    }
  }
  fprintf(stderr, "no such case\n");
  return 2;
}
