// Channel of src/region/addon.ts: serves one /dev/fuse descriptor from the event loop.
//
// Invariants:
// - while open it holds itself, the buffer and the callbacks; after close() or the end of the file system,
// nothing;
// - after each wake-up, of at most `batch` requests, process.nextTick and promise jobs have run;
// - what a callback throws becomes an uncaught exception of the process, as from any event handler;
// - closing settles every notification still under way with ENODEV.
#pragma once

#include "fuse/channel.h"
#include "fuse/notifier.h"

#include <map>
#include <memory>
#include <napi.h>
#include <optional>

namespace mapdirect {

class ChannelObject : public Napi::ObjectWrap<ChannelObject>, private ChannelListener {
public:
  static void define(Napi::Env env);
  // openChannel(descriptor, buffer, { busyPollMicros, batch }, onRequest, onEnd)
  static Napi::Value open(const Napi::CallbackInfo &info);
  // openRing({ queues, depth, payloadBytes })
  static Napi::Value openRing(const Napi::CallbackInfo &info);

  explicit ChannelObject(const Napi::CallbackInfo &info);
  ~ChannelObject() override;

private:
  Napi::Value reply(const Napi::CallbackInfo &info);
  Napi::Value replyRegion(const Napi::CallbackInfo &info);
  Napi::Value notify(const Napi::CallbackInfo &info);
  Napi::Value useRing(const Napi::CallbackInfo &info);
  Napi::Value entry(const Napi::CallbackInfo &info);
  void close(const Napi::CallbackInfo &info);
  Napi::Value counters(const Napi::CallbackInfo &info);

  bool canServe() override;
  void onBurstBegin() override;
  void onBurstEnd() override;
  bool onRequest(size_t length, int entry) override;
  void onEnd(int error) override;
  bool call(const Napi::FunctionReference &callback, double argument, int second = kNoEntry);
  void settle(uint64_t ticket, int error);
  void shut();

  static void onEnvironmentEnd(napi_async_cleanup_hook_handle hook, void *argument);

  std::shared_ptr<Channel> channel_;
  std::unique_ptr<Notifier> notifier_;
  std::unique_ptr<Napi::AsyncContext> context_;
  Napi::Reference<Napi::Uint8Array> buffer_;
  Napi::FunctionReference onRequest_;
  Napi::FunctionReference onEnd_;
  // Of the wake-up being served, the outer one first.
  std::optional<Napi::HandleScope> handles_;
  std::optional<Napi::CallbackScope> burst_;
  std::map<uint64_t, Napi::Promise::Deferred> notifications_;
  uint64_t nextTicket_ = 1;
  napi_async_cleanup_hook_handle hook_ = nullptr;
};

} // namespace mapdirect
