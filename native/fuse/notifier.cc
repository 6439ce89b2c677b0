#include "fuse/notifier.h"

#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <mutex>
#include <pthread.h>

namespace mapdirect {
namespace {

struct Job {
  std::shared_ptr<Descriptor> descriptor;
  uint64_t ticket;
  int code;
  std::vector<uint8_t> payload;
};

struct Result {
  uint64_t ticket;
  int error; // positive errno or 0
};

} // namespace

// Everything in it is guarded by `mutex`.
struct Notifier::Shared {
  std::mutex mutex;
  std::condition_variable work;
  std::deque<Job> jobs;
  std::vector<Result> results;
  uv_async_t *wake = nullptr; // null once closed
};

int Notifier::start() {
  uv_async_t *wake = new uv_async_t;
  if (const int failure = uv_async_init(loop_, wake, onWake); failure != 0) {
    delete wake;
    return failure;
  }
  wake->data = this;
  uv_unref(reinterpret_cast<uv_handle_t *>(wake)); // the channel's watcher decides how long the process lives
  wake_ = wake;
  shared_ = std::make_shared<Shared>();
  shared_->wake = wake;

  // The thread inherits the mask: signals belong to the event loop's thread.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, 256 << 10);
  auto *argument = new std::shared_ptr<Shared>(shared_);
  pthread_t thread;
  const int failure = pthread_create(&thread, &attributes, run, argument);
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (failure != 0) {
    delete argument;
    close();
    return -failure;
  }
  return 0;
}

int Notifier::post(const std::shared_ptr<Descriptor> &descriptor, uint64_t ticket, int code,
                   std::vector<uint8_t> payload) {
  if (shared_ == nullptr)
    if (const int failure = start(); failure != 0) return failure;
  const std::lock_guard<std::mutex> lock(shared_->mutex);
  shared_->jobs.push_back({descriptor, ticket, code, std::move(payload)});
  shared_->work.notify_one();
  return 0;
}

void Notifier::close() {
  if (shared_ == nullptr) return;
  std::deque<Job> dropped; // destroyed after the lock: a last reference closes the descriptor
  {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    shared_->wake = nullptr;
    dropped.swap(shared_->jobs);
    shared_->work.notify_one();
  }
  shared_.reset();
  uv_close(reinterpret_cast<uv_handle_t *>(wake_),
           [](uv_handle_t *handle) { delete reinterpret_cast<uv_async_t *>(handle); });
  wake_ = nullptr;
}

void *Notifier::run(void *argument) {
  auto *handed = static_cast<std::shared_ptr<Shared> *>(argument);
  const std::shared_ptr<Shared> shared = std::move(*handed);
  delete handed;
  pthread_setname_np(pthread_self(), "mapdirect-notify");

  std::unique_lock<std::mutex> lock(shared->mutex);
  while (shared->wake != nullptr) {
    if (shared->jobs.empty()) {
      shared->work.wait(lock);
      continue;
    }
    Job job = std::move(shared->jobs.front());
    shared->jobs.pop_front();
    lock.unlock();
    const int failure =
        writeNotification(job.descriptor->number(), job.code, job.payload.data(), job.payload.size());
    job.descriptor.reset();
    lock.lock();
    if (shared->wake == nullptr) break;
    shared->results.push_back({job.ticket, -failure});
    uv_async_send(shared->wake);
  }
  return nullptr;
}

void Notifier::onWake(uv_async_t *wake) {
  Notifier *self = static_cast<Notifier *>(wake->data);
  const std::shared_ptr<Shared> shared = self->shared_;
  if (shared == nullptr) return;
  std::vector<Result> results;
  {
    const std::lock_guard<std::mutex> lock(shared->mutex);
    results.swap(shared->results);
  }
  for (const Result &result : results) {
    if (self->shared_ != shared) return; // closed by a callback
    self->done_(self->context_, result.ticket, result.error);
  }
}

} // namespace mapdirect
