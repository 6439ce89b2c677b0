// OwnedDescriptor of src/region/addon.ts: a descriptor that nobody has taken over yet.
//
// Invariants:
// - it is closed by close(), when the object is collected, or with the environment. So a worker thread loses none, at
//   whatever moment it is terminated: a number in a JavaScript variable would be forgotten;
// - take() hands it to the caller; a channel takes it over by itself, in one step.
#pragma once

#include <napi.h>

namespace mapdirect {

class DescriptorObject : public Napi::ObjectWrap<DescriptorObject> {
public:
  static void define(Napi::Env env);
  // An object that holds nothing yet. Null with an exception pending.
  static DescriptorObject *make(Napi::Env env);
  // The one behind a JavaScript object, or null when it is none.
  static DescriptorObject *of(Napi::Env env, napi_value value);
  // The same, holding a descriptor. False with an exception pending.
  static bool get(Napi::Env env, napi_value value, const char *name, DescriptorObject *&object);

  explicit DescriptorObject(const Napi::CallbackInfo &info) : Napi::ObjectWrap<DescriptorObject>(info) {}
  ~DescriptorObject() override { closeNow(); }

  int number() const { return number_; }
  void hold(int number);
  // -1 if it holds none.
  int release();
  void closeNow();

private:
  Napi::Value take(const Napi::CallbackInfo &info);
  void close(const Napi::CallbackInfo &info);
  Napi::Value numberOf(const Napi::CallbackInfo &info);

  int number_ = -1;
};

} // namespace mapdirect
