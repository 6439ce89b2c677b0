// The client library for JavaScript: `ClientAddon` of src/api/native.ts.
//
// Invariants:
// - JavaScript never touches an address that is not mapped, or that raises SIGBUS because a lease was broken: the
//   library takes memory away only when the handler of a break returns, and ours returns when JavaScript has let go of
//   the memory (its ArrayBuffer is detached, and only then the lease ends). If that takes longer than the break time, the
//   daemon's quarantine stands in;
// - nothing that may wait for the daemon runs on the JavaScript thread, but the end of a mapping that was collected as
//   garbage;
// - a mapping ends once: by release(), when its ArrayBuffer is collected, or with its environment;
// - the addresses of a mapping that has ended are inert pages, until no buffer can lead to them any more: the
//   kernel or a thread of libuv may be at work there (fs.read() into the buffer), and a detach is not told to it.
#include "client/mapdirect.h"
#include "napi/failure.h"

#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <napi.h>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>
#include <utility>

#ifndef MAP_SHARED_VALIDATE
#define MAP_SHARED_VALIDATE 0x03
#endif
#ifndef MAP_SYNC
#define MAP_SYNC 0x80000
#endif

// native/client/change.c: mmap(MAP_FIXED) over direct mappings, whose leases end by it.
extern "C" int core_map_over(void *addr, size_t length, int prot, int flags, int fd, off_t offset,
                             void **result);

namespace mapdirect {
namespace {

// What inert pages weigh for the garbage collector, which alone gives them back: it shall run every thousand
// releases.
constexpr int64_t kInertWeightBytes = 65536;

struct Held {
  uintptr_t address = 0;
  size_t length = 0;
  mapdirect_lease_info lease{};
  Napi::ThreadSafeFunction tell;
  // Guarded by the registry's lock.
  unsigned users = 0; // persist() under way on another thread
  bool ending = false;
  bool released = false;
  bool inert = false;
  unsigned finalizers = 0; // of the ArrayBuffer, and of its memory, which transfer() moves to another one
  bool weighs = false;     // the JavaScript thread's
};

using HeldPointer = std::shared_ptr<Held>;

// Never destroyed: the library's thread may wait here while the process ends.
struct Registry {
  std::mutex lock;
  std::condition_variable changed;
  std::map<uintptr_t, HeldPointer> byAddress;
  unsigned beingMade = 0; // mapped perhaps, and not in byAddress yet
  std::deque<std::pair<HeldPointer, mapdirect_break>> breaks;
  bool relaying = false;

  HeldPointer find(uintptr_t address) {
    auto next = byAddress.upper_bound(address);
    if (next == byAddress.begin()) return nullptr;
    const HeldPointer &held = std::prev(next)->second;
    return address < held->address + held->length ? held : nullptr;
  }
};

Registry &registry() {
  static Registry *const only = new Registry;
  return *only;
}

void callListener(Napi::Env env, Napi::Function listener, mapdirect_break *what) {
  if (static_cast<napi_env>(env) != nullptr && !listener.IsEmpty()) {
    const Napi::HandleScope scope(env);
    Napi::Object notice = Napi::Object::New(env);
    notice.Set("leaseId", Napi::BigInt::New(env, what->lease_id));
    notice.Set("offset", Napi::BigInt::New(env, what->offset));
    notice.Set("length", Napi::BigInt::New(env, what->conflict_length));
    notice.Set("remainingMs", Napi::Number::New(env, static_cast<double>(what->remaining_ms)));
    notice.Set("reason", Napi::Number::New(env, what->reason));
    listener.Call({notice});
  }
  delete what;
}

// Wakes up the event loop by one of the program's descriptors, which the library's thread does not have.
void relay() {
  Registry &all = registry();
  std::unique_lock<std::mutex> guard(all.lock);
  for (;;) {
    all.changed.wait(guard, [&] { return !all.breaks.empty(); });
    const auto [held, what] = all.breaks.front();
    all.breaks.pop_front();
    if (held->ending) continue;
    auto *copy = new mapdirect_break(what);
    if (held->tell.NonBlockingCall(copy, callListener) != napi_ok) delete copy;
  }
}

// On a thread of the program: the new one shares its descriptors.
void startRelay() {
  Registry &all = registry();
  {
    const std::lock_guard<std::mutex> guard(all.lock);
    if (all.relaying) return;
    all.relaying = true;
  }
  sigset_t every;
  sigset_t before;
  sigfillset(&every);
  pthread_sigmask(SIG_SETMASK, &every, &before);
  std::thread(relay).detach();
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// On the library's own thread.
void onBreak(const mapdirect_break *what, void *) {
  Registry &all = registry();
  std::unique_lock<std::mutex> guard(all.lock);
  HeldPointer held;
  all.changed.wait(guard, [&] {
    held = all.find(reinterpret_cast<uintptr_t>(what->address));
    return held != nullptr || all.beingMade == 0;
  });
  if (held == nullptr || held->released) return;
  all.breaks.emplace_back(held, *what);
  all.changed.notify_all();
  all.changed.wait(guard, [&] { return held->released; });
}

size_t wholePages(size_t length) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return (length + page - 1) / page * page;
}

// In one step, so that the addresses are never anybody else's.
int replaceByInertPages(const Held &held) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  void *const at = reinterpret_cast<void *>(held.address);
  const size_t length = wholePages(held.length);
  void *result = nullptr;
  const int failure = core_map_over(at, length, PROT_READ | PROT_WRITE, kFlags, -1, 0, &result);
  if (failure != -ENOMEM) return failure;
  // A system that promises no more memory than it has: pages that cannot be touched are not counted.
  return core_map_over(at, length, PROT_NONE, kFlags, -1, 0, &result);
}

// With the registry's lock held.
void giveAddressesBack(Held &held) {
  if (!held.inert || held.finalizers > 0) return;
  held.inert = false;
  munmap(reinterpret_cast<void *>(held.address), wholePages(held.length));
}

// May wait for the daemon.
int endMapping(const HeldPointer &held) {
  Registry &all = registry();
  {
    std::unique_lock<std::mutex> guard(all.lock);
    if (held->ending) return 0;
    held->ending = true;
    all.changed.wait(guard, [&] { return held->users == 0; });
    all.byAddress.erase(held->address);
  }
  const int result = replaceByInertPages(*held);
  const std::lock_guard<std::mutex> guard(all.lock);
  held->tell.Release(); // the relay looks at `ending` first, with the lock held
  held->released = true;
  held->inert = result == 0;
  giveAddressesBack(*held);
  all.changed.notify_all();
  return result;
}

// A promise that a function on the thread pool fulfils: `run` returns 0 or a negative errno.
class Worker : public Napi::AsyncWorker {
public:
  Worker(Napi::Env env, std::string what)
      : Napi::AsyncWorker(env), deferred_(Napi::Promise::Deferred::New(env)), what_(std::move(what)) {}
  Napi::Promise promise() const { return deferred_.Promise(); }

protected:
  virtual int run() = 0;
  virtual Napi::Value result() { return Env().Undefined(); }

  void Execute() override { result_ = run(); }
  void OnOK() override {
    const Napi::HandleScope scope(Env());
    if (result_ != 0)
      deferred_.Reject(makeFailure(Env(), result_, what_).Value());
    else
      deferred_.Resolve(result());
  }

private:
  Napi::Promise::Deferred deferred_;
  std::string what_;
  int result_ = 0;
};

Napi::Value start(Worker *worker) {
  const Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

class PrepareWorker final : public Worker {
public:
  PrepareWorker(Napi::Env env, int descriptor, uint64_t offset, uint64_t length)
      : Worker(env, "prepare"), descriptor_(descriptor), offset_(offset), length_(length) {}

private:
  int run() override {
    return mapdirect_prepare(descriptor_, static_cast<off_t>(offset_), static_cast<off_t>(length_)) == 0
               ? 0
               : -errno;
  }
  int descriptor_;
  uint64_t offset_;
  uint64_t length_;
};

class ReleaseWorker final : public Worker {
public:
  ReleaseWorker(Napi::Env env, HeldPointer held) : Worker(env, "release"), held_(std::move(held)) {}

private:
  int run() override { return endMapping(held_); }
  HeldPointer held_;
};

class PersistWorker final : public Worker {
public:
  PersistWorker(Napi::Env env, HeldPointer held, uint64_t offset, uint64_t length)
      : Worker(env, "persist"), held_(std::move(held)), offset_(offset), length_(length) {
    const std::lock_guard<std::mutex> guard(registry().lock);
    held_->users += 1;
  }

  // What never ran must not be waited for.
  ~PersistWorker() override { leave(); }

private:
  int run() override {
    const int result =
        mapdirect_persist(reinterpret_cast<const char *>(held_->address + offset_), length_) == 0 ? 0
                                                                                                  : -errno;
    leave();
    return result;
  }
  void leave() {
    const std::lock_guard<std::mutex> guard(registry().lock);
    if (!uses_) return;
    uses_ = false;
    held_->users -= 1;
    registry().changed.notify_all();
  }
  bool uses_ = true;
  HeldPointer held_;
  uint64_t offset_;
  uint64_t length_;
};

void endWithEnvironment(void *pointer) {
  endMapping(*static_cast<HeldPointer *>(pointer));
}

// When the ArrayBuffer is collected, and when its memory is freed: at a detach, unless transfer() has moved it.
// Only after both can nobody reach the addresses.
void finalize(napi_env env, void *, void *pointer) {
  auto *held = static_cast<HeldPointer *>(pointer);
  {
    const std::lock_guard<std::mutex> guard(registry().lock);
    (*held)->finalizers -= 1;
    if ((*held)->finalizers > 0) return;
    giveAddressesBack(**held);
  }
  napi_remove_env_cleanup_hook(env, endWithEnvironment, held);
  if ((*held)->weighs) {
    int64_t weight = 0;
    napi_adjust_external_memory(env, -kInertWeightBytes, &weight);
  }
  endMapping(*held);
  delete held;
}

class MapWorker final : public Worker {
public:
  MapWorker(Napi::Env env, int descriptor, uint64_t offset, uint64_t length, unsigned lease, bool sync,
            Napi::Function listener)
      : Worker(env, "mapDirect"), descriptor_(descriptor), offset_(offset), lease_(lease), sync_(sync),
        held_(std::make_shared<Held>()) {
    held_->length = length;
    held_->tell = Napi::ThreadSafeFunction::New(env, listener, "mapdirect break", 0, 1);
    held_->tell.Unref(env); // nobody waits for a break
  }

private:
  int run() override {
    Registry &all = registry();
    startRelay();
    {
      const std::lock_guard<std::mutex> guard(all.lock);
      all.beingMade += 1;
    }
    void *address = mapdirect_map(nullptr, held_->length, PROT_READ | PROT_WRITE,
                                  MAP_SHARED_VALIDATE | (sync_ ? MAP_SYNC : 0), descriptor_,
                                  static_cast<off_t>(offset_), lease_);
    int result = address == MAP_FAILED ? -errno : 0;
    // The last byte: somebody may have cut the file since its size was looked at, and such pages raise SIGBUS. From here on
    // nobody can.
    if (result == 0) mapdirect_query(static_cast<char *>(address) + held_->length - 1, &held_->lease);
    if (result == 0 && held_->lease.state == MAPDIRECT_BEYOND) {
      mapdirect_unmap(address, held_->length);
      result = -ERANGE;
    }
    const std::lock_guard<std::mutex> guard(all.lock);
    all.beingMade -= 1;
    if (result == 0) {
      held_->address = reinterpret_cast<uintptr_t>(address);
      all.byAddress[held_->address] = held_;
    }
    all.changed.notify_all();
    if (result != 0) held_->tell.Release();
    return result;
  }

  Napi::Value result() override {
    const Napi::Env env = Env();
    auto *pointer = new HeldPointer(held_);
    napi_value memory = nullptr;
    held_->finalizers = 2;
    if (napi_create_external_arraybuffer(env, reinterpret_cast<void *>(held_->address), held_->length,
                                         finalize, pointer, &memory) != napi_ok ||
        napi_add_finalizer(env, memory, nullptr, finalize, pointer, nullptr) != napi_ok) {
      // A worker thread that is being terminated: nobody will ever have the mapping. What there is of the
      // buffer may still be finalized, so `pointer` stays.
      endMapping(held_);
      return env.Undefined();
    }
    napi_add_env_cleanup_hook(env, endWithEnvironment, pointer);
    Napi::Object made = Napi::Object::New(env);
    made.Set("memory", Napi::Value(env, memory));
    made.Set("handle", Napi::External<HeldPointer>::New(env, new HeldPointer(held_),
                                                        [](Napi::Env, HeldPointer *held) { delete held; }));
    made.Set("leaseId", Napi::BigInt::New(env, held_->lease.lease_id));
    made.Set("generation", Napi::BigInt::New(env, held_->lease.generation));
    made.Set("kind", Napi::Number::New(env, held_->lease.kind));
    made.Set("cacheline", Napi::Boolean::New(env, held_->lease.cacheline != 0));
    return made;
  }

  int descriptor_;
  uint64_t offset_;
  unsigned lease_;
  bool sync_;
  HeldPointer held_;
};

bool getHeld(const Napi::CallbackInfo &info, HeldPointer &held) {
  if (info[0].IsExternal()) {
    held = *info[0].As<Napi::External<HeldPointer>>().Data();
    const std::lock_guard<std::mutex> guard(registry().lock);
    if (!held->ending) return true;
    fail(info.Env(), -EBADF, "the mapping is released");
    return false;
  }
  fail(info.Env(), -EINVAL, "handle: expected a mapping");
  return false;
}

bool getPart(const Napi::CallbackInfo &info, HeldPointer &held, uint64_t &offset, uint64_t &length) {
  const Napi::Env env = info.Env();
  if (!getHeld(info, held) || !getCount(env, info[1], "offset", offset) ||
      !getCount(env, info[2], "length", length))
    return false;
  if (offset <= held->length && length <= held->length - offset) return true;
  fail(env, -EINVAL, "offset and length: expected a part of the mapping");
  return false;
}

Napi::Value map(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  int descriptor = -1;
  uint64_t offset = 0;
  uint64_t length = 0;
  uint64_t lease = 0;
  if (!getInt(env, info[0], "descriptor", descriptor) || !getCount(env, info[1], "offset", offset) ||
      !getCount(env, info[2], "length", length) || !getCount(env, info[3], "lease", lease))
    return Napi::Value();
  if (!info[5].IsFunction()) return fail(env, -EINVAL, "listener: expected a function");
  return start(new MapWorker(env, descriptor, offset, length, static_cast<unsigned>(lease),
                             info[4].ToBoolean(), info[5].As<Napi::Function>()));
}

Napi::Value prepare(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  int descriptor = -1;
  uint64_t offset = 0;
  uint64_t length = 0;
  if (!getInt(env, info[0], "descriptor", descriptor) || !getCount(env, info[1], "offset", offset) ||
      !getCount(env, info[2], "length", length))
    return Napi::Value();
  return start(new PrepareWorker(env, descriptor, offset, length));
}

// release(handle, memory): the memory is gone for JavaScript at once.
Napi::Value release(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  HeldPointer held;
  if (!getHeld(info, held)) return Napi::Value();
  if (!info[1].IsArrayBuffer() || napi_detach_arraybuffer(env, info[1]) != napi_ok)
    return fail(env, -EINVAL, "memory: expected the mapping's");
  int64_t weight = 0;
  if (!held->weighs && napi_adjust_external_memory(env, kInertWeightBytes, &weight) == napi_ok)
    held->weighs = true;
  return start(new ReleaseWorker(env, held));
}

Napi::Value persist(const Napi::CallbackInfo &info) {
  HeldPointer held;
  uint64_t offset = 0;
  uint64_t length = 0;
  if (!getPart(info, held, offset, length)) return Napi::Value();
  return start(new PersistWorker(info.Env(), held, offset, length));
}

Napi::Value persistSync(const Napi::CallbackInfo &info) {
  HeldPointer held;
  uint64_t offset = 0;
  uint64_t length = 0;
  if (!getPart(info, held, offset, length)) return Napi::Value();
  if (mapdirect_persist(reinterpret_cast<const char *>(held->address + offset), length) != 0)
    return fail(info.Env(), -errno, "persist");
  return Napi::Value();
}

Napi::Value locate(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  HeldPointer held;
  uint64_t offset = 0;
  uint64_t length = 0;
  if (!getPart(info, held, offset, length)) return Napi::Value();
  mapdirect_lease_info part;
  if (mapdirect_query(reinterpret_cast<const char *>(held->address + offset), &part) != 0)
    return fail(env, -errno, "locate");
  Napi::Object found = Napi::Object::New(env);
  found.Set("state", Napi::Number::New(env, part.state));
  found.Set("physical", Napi::BigInt::New(env, part.physical));
  found.Set("length", Napi::Number::New(env, static_cast<double>(part.length)));
  return found;
}

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  // One handler for the process, whichever environment comes first.
  mapdirect_on_break(onBreak, nullptr, 0);
  exports.Set("version", mapdirect_version());
  exports.Set("map", Napi::Function::New<map>(env, "map"));
  exports.Set("prepare", Napi::Function::New<prepare>(env, "prepare"));
  exports.Set("release", Napi::Function::New<release>(env, "release"));
  exports.Set("persist", Napi::Function::New<persist>(env, "persist"));
  exports.Set("persistSync", Napi::Function::New<persistSync>(env, "persistSync"));
  exports.Set("locate", Napi::Function::New<locate>(env, "locate"));
  return exports;
}

NODE_API_MODULE(mapdirect_client, initialize)

} // namespace
} // namespace mapdirect
