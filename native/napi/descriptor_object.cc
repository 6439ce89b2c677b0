#include "napi/descriptor_object.h"

#include "napi/failure.h"
#include "napi/state.h"

#include <cerrno>
#include <unistd.h>
#include <utility>

namespace mapdirect {

void DescriptorObject::define(Napi::Env env) {
  AddonState::of(env).descriptorClass =
      Napi::Persistent(DefineClass(env, "OwnedDescriptor",
                                   {
                                       InstanceAccessor<&DescriptorObject::numberOf>("number"),
                                       InstanceMethod<&DescriptorObject::take>("take"),
                                       InstanceMethod<&DescriptorObject::close>("close"),
                                   }));
}

DescriptorObject *DescriptorObject::make(Napi::Env env) {
  const Napi::Object object = AddonState::of(env).descriptorClass.New({});
  return object.IsEmpty() ? nullptr : Unwrap(object);
}

DescriptorObject *DescriptorObject::of(Napi::Env env, napi_value value) {
  bool isOne = false;
  if (napi_instanceof(env, value, AddonState::of(env).descriptorClass.Value(), &isOne) != napi_ok || !isOne)
    return nullptr;
  void *object = nullptr;
  return napi_unwrap(env, value, &object) == napi_ok ? static_cast<DescriptorObject *>(object) : nullptr;
}

bool DescriptorObject::get(Napi::Env env, napi_value value, const char *name, DescriptorObject *&object) {
  object = of(env, value);
  if (object != nullptr && object->number_ >= 0) return true;
  fail(env, object == nullptr ? -EINVAL : -EBADF, std::string(name) + ": expected an owned descriptor");
  return false;
}

void DescriptorObject::hold(int number) {
  closeNow();
  number_ = number;
}

int DescriptorObject::release() {
  return std::exchange(number_, -1);
}

void DescriptorObject::closeNow() {
  if (number_ >= 0) ::close(release());
}

Napi::Value DescriptorObject::numberOf(const Napi::CallbackInfo &info) {
  return Napi::Number::New(info.Env(), number_);
}

Napi::Value DescriptorObject::take(const Napi::CallbackInfo &info) {
  if (number_ < 0) return fail(info.Env(), -EBADF, "the descriptor was taken or closed");
  return Napi::Number::New(info.Env(), release());
}

void DescriptorObject::close(const Napi::CallbackInfo &) {
  closeNow();
}

} // namespace mapdirect
