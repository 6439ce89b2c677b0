// NativeRegion of src/region/addon.ts: one mapped region.
//
// Invariants:
// - after close() every method throws EBADF; a sync under way keeps the mapping until it is done;
// - TypeScript checks ranges first and explains them; what comes out of bounds here is answered with EINVAL.
#pragma once

#include "napi/state.h"
#include "region/mapping.h"

#include <memory>
#include <napi.h>

namespace mapdirect {

class RegionObject : public Napi::ObjectWrap<RegionObject> {
public:
  static void define(Napi::Env env);
  // openRegion(path, { readOnly, lock, mapSync })
  static Napi::Value open(const Napi::CallbackInfo &info);
  // The mapping behind a JavaScript object, or null when it is not an open region.
  static Mapping *mappingOf(Napi::Env env, napi_value value);

  explicit RegionObject(const Napi::CallbackInfo &info);
  ~RegionObject() override;

private:
  void setCacheline(const Napi::CallbackInfo &info);
  void handOut(const Napi::CallbackInfo &info);
  void read(const Napi::CallbackInfo &info);
  void write(const Napi::CallbackInfo &info);
  void zero(const Napi::CallbackInfo &info);
  void copy(const Napi::CallbackInfo &info);
  void flush(const Napi::CallbackInfo &info);
  void unload(const Napi::CallbackInfo &info);
  Napi::Value gather(const Napi::CallbackInfo &info);
  Napi::Value findMappings(const Napi::CallbackInfo &info);
  void drain(const Napi::CallbackInfo &info);
  Napi::Value sync(const Napi::CallbackInfo &info);
  Napi::Value measure(const Napi::CallbackInfo &info);
  void allocate(const Napi::CallbackInfo &info);
  Napi::Value discard(const Napi::CallbackInfo &info);
  Napi::Value below(const Napi::CallbackInfo &info);
  Napi::Value grow(const Napi::CallbackInfo &info);
  void close(const Napi::CallbackInfo &info);

  bool checkOpen(Napi::Env env, const char *operation);
  void forget();

  const std::shared_ptr<std::vector<RegionObject *>> open_;
  std::shared_ptr<Mapping> mapping_;
  bool cacheline_ = false;
};

} // namespace mapdirect
