#include "napi/channel_object.h"

#include "napi/descriptor_object.h"
#include "napi/failure.h"
#include "napi/region_object.h"
#include "napi/state.h"

#include <cerrno>
#include <linux/fuse.h>
#include <vector>

namespace mapdirect {
namespace {

constexpr uint32_t kBatchMax = 1024;
constexpr uint64_t kQueuesMax = 8192;
constexpr uint64_t kDepthMax = 64;
constexpr uint64_t kPayloadMax = 1 << 30;

Napi::Value errnoResult(Napi::Env env, int negativeErrno) {
  return Napi::Number::New(env, -negativeErrno);
}

} // namespace

void ChannelObject::define(Napi::Env env) {
  AddonState::of(env).channelClass =
      Napi::Persistent(DefineClass(env, "Channel",
                                   {
                                       InstanceMethod<&ChannelObject::reply>("reply"),
                                       InstanceMethod<&ChannelObject::replyRegion>("replyRegion"),
                                       InstanceMethod<&ChannelObject::notify>("notify"),
                                       InstanceMethod<&ChannelObject::useRing>("useRing"),
                                       InstanceMethod<&ChannelObject::entry>("entry"),
                                       InstanceMethod<&ChannelObject::close>("close"),
                                       InstanceAccessor<&ChannelObject::counters>("counters"),
                                   }));
}

Napi::Value ChannelObject::open(const Napi::CallbackInfo &info) {
  const std::vector<napi_value> arguments{info[0], info[1], info[2], info[3], info[4]};
  return AddonState::of(info.Env()).channelClass.New(arguments);
}

ChannelObject::ChannelObject(const Napi::CallbackInfo &info) : Napi::ObjectWrap<ChannelObject>(info) {
  const Napi::Env env = info.Env();
  int descriptor = -1;
  Bytes buffer;
  DescriptorObject *const owner = DescriptorObject::of(env, info[0]);
  if (owner != nullptr)
    descriptor = owner->number();
  else if (!getInt(env, info[0], "descriptor", descriptor))
    return;
  if (!getBytes(env, info[1], "buffer", buffer)) return;
  if (!info[2].IsObject() || !info[3].IsFunction() || !info[4].IsFunction()) {
    fail(env, -EINVAL, "openChannel(descriptor, buffer, options, onRequest, onEnd)");
    return;
  }
  const Napi::Object options = info[2].As<Napi::Object>();
  uint64_t busyPollMicros = 0;
  uint64_t batch = 0;
  if (!getCount(env, options.Get("busyPollMicros"), "busyPollMicros", busyPollMicros) ||
      !getCount(env, options.Get("batch"), "batch", batch))
    return;
  if (batch == 0 || batch > kBatchMax || busyPollMicros > 1000000) {
    fail(env, -EINVAL, "openChannel: batch is 1 to 1024, busyPollMicros at most a second");
    return;
  }
  uv_loop_t *loop = nullptr;
  if (napi_get_uv_event_loop(env, &loop) != napi_ok) {
    fail(env, -EIO, "openChannel: no event loop");
    return;
  }
  const ChannelOptions wanted{busyPollMicros * 1000, static_cast<uint32_t>(batch)};
  if (const int failure = Channel::open(loop, descriptor, buffer.data, buffer.length, wanted, this, channel_);
      failure != 0) {
    fail(env, failure, "watch descriptor " + std::to_string(descriptor));
    return;
  }
  if (owner != nullptr) owner->release();
  context_ = std::make_unique<Napi::AsyncContext>(env, "mapdirect.channel");
  notifier_ = std::make_unique<Notifier>(
      loop,
      [](void *self, uint64_t ticket, int error) {
        static_cast<ChannelObject *>(self)->settle(ticket, error);
      },
      this);
  buffer_ = Napi::Persistent(info[1].As<Napi::Uint8Array>());
  onRequest_ = Napi::Persistent(info[3].As<Napi::Function>());
  onEnd_ = Napi::Persistent(info[4].As<Napi::Function>());
  napi_add_async_cleanup_hook(env, onEnvironmentEnd, this, &hook_);
  Ref();
}

ChannelObject::~ChannelObject() {
  shut();
}

// The environment goes away with the channel open: libuv's handle must be closed before its loop is.
void ChannelObject::onEnvironmentEnd(napi_async_cleanup_hook_handle hook, void *argument) {
  ChannelObject *self = static_cast<ChannelObject *>(argument);
  self->hook_ = nullptr;
  if (self->notifier_ != nullptr) self->notifier_->close();
  const std::shared_ptr<Channel> channel = self->channel_;
  if (channel == nullptr || channel->closed()) {
    napi_remove_async_cleanup_hook(hook);
    return;
  }
  channel->close(
      [](void *handle) {
        napi_remove_async_cleanup_hook(static_cast<napi_async_cleanup_hook_handle>(handle));
      },
      hook);
}

void ChannelObject::shut() {
  if (channel_ == nullptr || channel_->closed()) return;
  channel_->close();
  if (hook_ != nullptr) {
    napi_remove_async_cleanup_hook(hook_);
    hook_ = nullptr;
  }
  notifier_->close();
}

void ChannelObject::close(const Napi::CallbackInfo &info) {
  if (channel_ == nullptr || channel_->closed()) return;
  shut();
  std::map<uint64_t, Napi::Promise::Deferred> pending;
  pending.swap(notifications_);
  for (const auto &[ticket, deferred] : pending)
    deferred.Resolve(Napi::Number::New(info.Env(), ENODEV));
  // Not the callbacks' references: one of them may be what is running now.
  buffer_.Reset();
  Unref();
}

bool ChannelObject::canServe() {
  const Napi::Env env = Env();
  const Napi::HandleScope scope(env);
  napi_value value = nullptr;
  bool isPending = false;
  // The cheapest call for which JavaScript must be able to run.
  return napi_get_boolean(env, true, &value) != napi_ok ||
         napi_coerce_to_bool(env, value, &value) == napi_ok ||
         napi_is_exception_pending(env, &isPending) != napi_ok || isPending;
}

// One scope for the whole burst: its end runs the tick queue and promise jobs, which costs more than a
// request.
void ChannelObject::onBurstBegin() {
  handles_.emplace(Env());
  burst_.emplace(Env(), *context_);
}

void ChannelObject::onBurstEnd() {
  burst_.reset();
  handles_.reset();
}

bool ChannelObject::onRequest(size_t length, int entry) {
  return call(onRequest_, static_cast<double>(length), entry);
}

void ChannelObject::onEnd(int error) {
  call(onEnd_, error);
}

// Whether the callback returned true.
bool ChannelObject::call(const Napi::FunctionReference &callback, double argument, int second) {
  const Napi::Env env = Env();
  const Napi::HandleScope scope(env);
  napi_value receiver = Value();
  napi_value function = callback.Value();
  napi_value arguments[2] = {};
  napi_create_double(env, argument, &arguments[0]);
  if (second != kNoEntry) napi_create_int32(env, second, &arguments[1]);
  napi_value result = nullptr;
  const size_t count = second == kNoEntry ? 1 : 2;
  const napi_status status = napi_call_function(env, receiver, function, count, arguments, &result);
  bool isTrue = false;
  if (status == napi_ok) return napi_get_value_bool(env, result, &isTrue) == napi_ok && isTrue;
  if (status != napi_pending_exception) return false;
  napi_value exception = nullptr;
  if (napi_get_and_clear_last_exception(env, &exception) == napi_ok) napi_fatal_exception(env, exception);
  return false;
}

Napi::Value ChannelObject::reply(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  uint64_t unique = 0;
  int error = 0;
  Bytes payload;
  if (!getUnique(env, info[0], unique) || !getInt(env, info[1], "error", error) ||
      !getSlice(env, info[2], info[3], info[4], payload))
    return Napi::Value();
  if (channel_ == nullptr || channel_->closed()) return errnoResult(env, -ENODEV);
  return errnoResult(env, channel_->reply(unique, error, payload.data, payload.length));
}

Napi::Value ChannelObject::replyRegion(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  uint64_t unique = 0;
  uint64_t count = 0;
  if (!getUnique(env, info[0], unique) || !getCount(env, info[3], "count", count)) return Napi::Value();
  const Mapping *region = RegionObject::mappingOf(env, info[1]);
  if (region == nullptr) return fail(env, -EBADF, "replyRegion: not an open region");
  napi_typedarray_type type;
  size_t length = 0;
  void *data = nullptr;
  if (napi_get_typedarray_info(env, info[2], &type, &length, &data, nullptr, nullptr) != napi_ok ||
      type != napi_float64_array || count > length / 2)
    return fail(env, -EINVAL, "replyRegion: pieces is a Float64Array of `count` pairs");
  if (channel_ == nullptr || channel_->closed()) return errnoResult(env, -ENODEV);

  // Reused, so that a reply allocates nothing; one thread, and no call below comes back here.
  static thread_local std::vector<Piece> pieces;
  pieces.clear();
  const double *pairs = static_cast<const double *>(data);
  for (size_t i = 0; i < count; i++) {
    const double offset = pairs[2 * i];
    const double bytes = pairs[2 * i + 1];
    const bool zeros = offset == -1;
    if (!(offset >= 0 || zeros) || !(bytes >= 0) || offset > 9007199254740991.0 || bytes > 4294967295.0)
      return fail(env, -EINVAL, "replyRegion: piece " + std::to_string(i));
    pieces.push_back({zeros, zeros ? 0 : static_cast<uint64_t>(offset), static_cast<uint64_t>(bytes)});
  }
  const int failure = channel_->replyFromRegion(unique, *region, pieces.data(), pieces.size());
  if (failure == -EINVAL)
    return fail(env, failure, "replyRegion: a piece outside the region, or a reply too long");
  return errnoResult(env, failure);
}

Napi::Value ChannelObject::openRing(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsObject()) return fail(env, -EINVAL, "openRing({ queues, depth, payloadBytes })");
  const Napi::Object options = info[0].As<Napi::Object>();
  uint64_t queues = 0;
  uint64_t depth = 0;
  uint64_t payloadBytes = 0;
  if (!getCount(env, options.Get("queues"), "queues", queues) ||
      !getCount(env, options.Get("depth"), "depth", depth) ||
      !getCount(env, options.Get("payloadBytes"), "payloadBytes", payloadBytes))
    return Napi::Value();
  if (queues == 0 || queues > kQueuesMax || depth == 0 || depth > kDepthMax || payloadBytes > kPayloadMax)
    return fail(env, -EINVAL, "openRing: queues is 1 to 8192, depth 1 to 64, payloadBytes at most 2^30");
  const RingOptions wanted{static_cast<uint32_t>(queues), static_cast<uint32_t>(depth),
                           static_cast<uint32_t>(payloadBytes)};
  std::unique_ptr<Ring> ring;
  const char *step = "";
  if (const int failure = Ring::open(wanted, ring, step); failure != 0) return fail(env, failure, step);
  return Napi::External<std::shared_ptr<Ring>>::New(
      env, new std::shared_ptr<Ring>(std::move(ring)),
      [](Napi::Env, std::shared_ptr<Ring> *held) { delete held; });
}

Napi::Value ChannelObject::useRing(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  if (channel_ == nullptr || channel_->closed()) return errnoResult(env, -ENODEV);
  if (!info[0].IsExternal() || channel_->ring() != nullptr)
    return fail(env, -EINVAL, "useRing: takes the result of openRing(), once");
  return errnoResult(env, channel_->useRing(*info[0].As<Napi::External<std::shared_ptr<Ring>>>().Data()));
}

// The memory of an entry, which lives as long as anybody can see it.
Napi::Value ChannelObject::entry(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  uint64_t index = 0;
  if (!getCount(env, info[0], "entry", index)) return Napi::Value();
  const std::shared_ptr<Ring> ring = channel_ == nullptr ? nullptr : channel_->ring();
  if (ring == nullptr || index >= ring->entryCount())
    return fail(env, -EINVAL, "entry: there is no such one");
  return Napi::Buffer<uint8_t>::New(
      env, ring->message(static_cast<uint32_t>(index)), ring->messageBytes(),
      [](Napi::Env, uint8_t *, std::shared_ptr<Ring> *held) { delete held; },
      new std::shared_ptr<Ring>(ring));
}

Napi::Value ChannelObject::notify(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  int code = 0;
  Bytes payload;
  if (!getInt(env, info[0], "code", code) || !getBytes(env, info[1], "payload", payload))
    return Napi::Value();
  const bool atOnce = info[2].IsBoolean() && info[2].As<Napi::Boolean>().Value();
  const Napi::Promise::Deferred deferred = Napi::Promise::Deferred::New(env);
  if (channel_ == nullptr || channel_->closed()) {
    deferred.Resolve(Napi::Number::New(env, ENODEV));
    return deferred.Promise();
  }
  if (atOnce) {
    const int failure =
        writeNotification(channel_->descriptor()->number(), code, payload.data, payload.length);
    deferred.Resolve(Napi::Number::New(env, -failure));
    return deferred.Promise();
  }
  const uint64_t ticket = nextTicket_++;
  const int failure = notifier_->post(channel_->descriptor(), ticket, code,
                                      std::vector<uint8_t>(payload.data, payload.data + payload.length));
  if (failure != 0)
    deferred.Resolve(Napi::Number::New(env, -failure));
  else
    notifications_.emplace(ticket, deferred);
  return deferred.Promise();
}

void ChannelObject::settle(uint64_t ticket, int error) {
  const Napi::Env env = Env();
  const Napi::HandleScope scope(env);
  // The scope's end runs the promise jobs that resolving makes.
  const Napi::CallbackScope callbacks(env, *context_);
  const auto found = notifications_.find(ticket);
  if (found == notifications_.end()) return;
  const Napi::Promise::Deferred deferred = found->second;
  notifications_.erase(found);
  deferred.Resolve(Napi::Number::New(env, error));
}

Napi::Value ChannelObject::counters(const Napi::CallbackInfo &info) {
  const ChannelCounters values = channel_ == nullptr ? ChannelCounters{} : channel_->counters();
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("requests", static_cast<double>(values.requests));
  result.Set("wakeups", static_cast<double>(values.wakeups));
  result.Set("pollHits", static_cast<double>(values.pollHits));
  return result;
}

} // namespace mapdirect
