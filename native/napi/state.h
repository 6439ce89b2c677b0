// What one JavaScript environment (main thread or worker) keeps of this addon.
#pragma once

#include <memory>
#include <napi.h>
#include <vector>

namespace mapdirect {

class RegionObject;

struct AddonState {
  Napi::FunctionReference regionClass;
  Napi::FunctionReference channelClass;
  Napi::FunctionReference descriptorClass;
  // Open regions, so that an object handed in can be told from a stranger by comparing pointers.
  // Shared with each of them: when the environment ends, its objects and this state go in no promised order.
  std::shared_ptr<std::vector<RegionObject *>> regions = std::make_shared<std::vector<RegionObject *>>();

  static AddonState &of(Napi::Env env) { return *env.GetInstanceData<AddonState>(); }
};

} // namespace mapdirect
