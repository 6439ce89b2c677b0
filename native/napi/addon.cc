// What the addon exports: `Addon` of src/region/addon.ts.
#include "napi/channel_object.h"
#include "napi/descriptor_object.h"
#include "napi/failure.h"
#include "napi/region_object.h"
#include "napi/state.h"
#include "napi/system_calls.h"
#include "persist/crc32c.h"
#include "persist/flush.h"

#include <napi.h>

namespace mapdirect {
namespace {

Napi::Value checksum(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  Bytes data;
  uint64_t seed = 0;
  if (!getSlice(env, info[0], info[1], info[2], data) || !getCount(env, info[3], "seed", seed))
    return Napi::Value();
  return Napi::Number::New(env, crc32c(static_cast<uint32_t>(seed), data.data, data.length));
}

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new AddonState);
  RegionObject::define(env);
  ChannelObject::define(env);
  DescriptorObject::define(env);
  exports.Set("flushMethod", flushMethod());
  exports.Set("checksumMethod", crc32cMethod());
  exports.Set("crc32c", Napi::Function::New<checksum>(env, "crc32c"));
  exports.Set("openRegion", Napi::Function::New<RegionObject::open>(env, "openRegion"));
  exports.Set("openChannel", Napi::Function::New<ChannelObject::open>(env, "openChannel"));
  exports.Set("openRing", Napi::Function::New<ChannelObject::openRing>(env, "openRing"));
  defineSystemCalls(env, exports);
  return exports;
}

NODE_API_MODULE(mapdirect, initialize)

} // namespace
} // namespace mapdirect
