#include "region/mappers.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <mutex>
#include <pthread.h>
#include <set>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

namespace mapdirect {
namespace {

using Clock = std::chrono::steady_clock;

// Processes go on beginning others: then the pass is not settled.
constexpr int kRoundsMax = 32;
// Threads that wait for a process, all scans together.
constexpr size_t kStuckMax = 16;

struct Line {
  uint64_t start, end, inode;
  bool shared;
  std::string device;
};

// start-end perms offset device inode path (proc_pid_maps(5))
bool parse(const char *text, Line &line) {
  char permissions[8] = "", device[32] = "";
  unsigned long long start, end, offset, inode;
  if (sscanf(text, "%llx-%llx %7s %llx %31s %llu", &start, &end, permissions, &offset, device, &inode) != 6)
    return false;
  line = {start, end, inode, permissions[3] == 's', device};
  return true;
}

// Calls `take` with each line. Returns the bytes read or a negative errno.
template <typename Take> ssize_t readLines(const std::string &path, Take take) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return -errno;
  std::string text;
  char buffer[16384];
  ssize_t total = 0;
  for (;;) {
    const ssize_t count = read(descriptor, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) total = -errno;
    if (count <= 0) break;
    total += count;
    text.append(buffer, static_cast<size_t>(count));
    size_t begin = 0;
    for (size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
      text[end] = '\0';
      take(text.c_str() + begin);
    }
    text.erase(0, begin);
  }
  close(descriptor);
  return total;
}

std::vector<int> numbersIn(const std::string &path, int &failure) {
  std::vector<int> numbers;
  DIR *directory = opendir(path.c_str());
  if (directory == nullptr) {
    failure = -errno;
    return numbers;
  }
  errno = 0;
  while (const dirent *entry = readdir(directory)) {
    char *end = nullptr;
    const long number = strtol(entry->d_name, &end, 10);
    if (end != entry->d_name && *end == '\0' && number > 0) numbers.push_back(static_cast<int>(number));
    errno = 0;
  }
  failure = -errno;
  closedir(directory);
  return numbers;
}

// Another node of the same device, in a container say, has another inode.
bool isDevice(const std::string &process, const Line &line, dev_t number) {
  char path[64];
  snprintf(path, sizeof path, "/map_files/%llx-%llx", static_cast<unsigned long long>(line.start),
           static_cast<unsigned long long>(line.end));
  struct statx status;
  // Asking nobody: the file may be one of a file system whose server waits for us.
  if (statx(AT_FDCWD, (process + path).c_str(), AT_STATX_DONT_SYNC, STATX_TYPE, &status) != 0) return false;
  if (!S_ISBLK(status.stx_mode) && !S_ISCHR(status.stx_mode)) return false;
  return makedev(status.stx_rdev_major, status.stx_rdev_minor) == number;
}

MapperEntry look(const std::string &proc, const MapsIdentity &identity, int pid) {
  MapperEntry entry{pid, 0, {}};
  const std::string process = proc + "/" + std::to_string(pid);
  const auto take = [&](const char *text) {
    Line line;
    if (!parse(text, line) || !line.shared) return;
    const bool same = line.device == identity.device && line.inode == identity.inode;
    if (!same && (identity.number == 0 || line.inode == 0 || !isDevice(process, line, identity.number)))
      return;
    entry.lines += text;
    entry.lines += '\n';
  };
  ssize_t count = readLines(process + "/maps", take);
  if (count == 0) {
    // A leader that has ended before its threads shows nothing, and they have it all.
    int failure = 0;
    for (const int thread : numbersIn(process + "/task", failure)) {
      if (thread == pid) continue;
      count = readLines(process + "/task/" + std::to_string(thread) + "/maps", take);
      if (count > 0) break;
    }
  }
  // Gone means that it maps nothing any more.
  if (count < 0 && count != -ENOENT && count != -ESRCH) entry.failure = static_cast<int>(count);
  return entry;
}

// Processes that a thread of an earlier scan still waits for. Never destroyed: such a thread may outlive everything.
struct Stuck {
  std::mutex mutex;
  std::set<int> pids;
};

Stuck &stuck() {
  static Stuck *const kept = new Stuck;
  return *kept;
}

// What a reading thread and who waits for it share; whoever is last frees it.
struct Scan {
  std::mutex mutex;
  std::condition_variable changed;
  std::string proc;
  MapsIdentity identity;
  std::vector<int> pids;
  size_t next = 0;
  // The thread of this number reads pids[next] since then; one of another number was given up.
  unsigned thread = 0;
  Clock::time_point since;
  std::vector<MapperEntry> found;
};

struct Reader {
  std::shared_ptr<Scan> scan;
  unsigned number;
};

void *readAll(void *argument) {
  const std::unique_ptr<Reader> reader(static_cast<Reader *>(argument));
  Scan &scan = *reader->scan;
  std::unique_lock lock(scan.mutex);
  while (scan.thread == reader->number && scan.next < scan.pids.size()) {
    const int pid = scan.pids[scan.next];
    scan.since = Clock::now();
    lock.unlock();
    MapperEntry entry = look(scan.proc, scan.identity, pid);
    lock.lock();
    if (scan.thread != reader->number) {
      const std::lock_guard guard(stuck().mutex);
      stuck().pids.erase(pid);
      return nullptr;
    }
    if (entry.failure != 0 || !entry.lines.empty()) scan.found.push_back(std::move(entry));
    scan.next++;
  }
  scan.changed.notify_all();
  return nullptr;
}

bool startReader(const std::shared_ptr<Scan> &scan) {
  {
    const std::lock_guard guard(stuck().mutex);
    if (stuck().pids.size() >= kStuckMax) return false;
  }
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return false;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  Reader *const reader = new Reader{scan, scan->thread};
  pthread_t thread;
  const bool started = pthread_create(&thread, &attributes, readAll, reader) == 0;
  if (!started) delete reader;
  pthread_attr_destroy(&attributes);
  return started;
}

// Looks at these, and gives up the thread that waits for one of them longer than `patience`.
std::vector<MapperEntry> lookAt(const std::string &proc, const MapsIdentity &identity,
                                const std::vector<int> &pids, std::chrono::milliseconds patience) {
  const auto scan = std::make_shared<Scan>();
  scan->proc = proc;
  scan->identity = identity;
  for (const int pid : pids) {
    const std::lock_guard guard(stuck().mutex);
    if (stuck().pids.count(pid) != 0)
      scan->found.push_back({pid, -ETIMEDOUT, {}});
    else
      scan->pids.push_back(pid);
  }
  std::unique_lock lock(scan->mutex);
  bool running = false;
  while (scan->next < scan->pids.size()) {
    if (!running) {
      scan->since = Clock::now();
      if (!startReader(scan)) {
        for (; scan->next < scan->pids.size(); scan->next++)
          scan->found.push_back({scan->pids[scan->next], -EAGAIN, {}});
        break;
      }
      running = true;
    }
    scan->changed.wait_until(lock, scan->since + patience);
    if (scan->next == scan->pids.size() || Clock::now() < scan->since + patience) continue;
    const int pid = scan->pids[scan->next++];
    scan->found.push_back({pid, -ETIMEDOUT, {}});
    scan->thread++;
    running = false;
    const std::lock_guard guard(stuck().mutex);
    stuck().pids.insert(pid);
  }
  return std::move(scan->found);
}

} // namespace

int identifyMapping(const void *address, MapsIdentity &identity) {
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  bool seen = false;
  const ssize_t count = readLines("/proc/thread-self/maps", [&](const char *text) {
    Line line;
    if (seen || !parse(text, line) || wanted < line.start || wanted >= line.end) return;
    identity.device = line.device;
    identity.inode = line.inode;
    seen = true;
  });
  if (count < 0) return static_cast<int>(count);
  return seen ? 0 : -ENOENT;
}

int findMappings(const std::string &proc, const MapsIdentity &identity, uint64_t patienceMs,
                 std::vector<MapperEntry> &found, bool &settled) {
  std::set<int> seen{static_cast<int>(getpid())};
  settled = false;
  // A child that is forked meanwhile is in the next list, also when its parent ended before it was looked at.
  for (int round = 0; round < kRoundsMax && !settled; round++) {
    int failure = 0;
    std::vector<int> pids = numbersIn(proc, failure);
    if (failure != 0) return failure;
    std::erase_if(pids, [&](int pid) { return !seen.insert(pid).second; });
    settled = pids.empty();
    for (MapperEntry &entry : lookAt(proc, identity, pids, std::chrono::milliseconds(patienceMs)))
      found.push_back(std::move(entry));
  }
  return 0;
}

} // namespace mapdirect
