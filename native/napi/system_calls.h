// System calls that Node has no function for.
#pragma once

#include <napi.h>

namespace mapdirect {

void defineSystemCalls(Napi::Env env, Napi::Object exports);

} // namespace mapdirect
