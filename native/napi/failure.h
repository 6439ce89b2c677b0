// Where a negative errno becomes a JavaScript Error, and JavaScript values become C++ ones.
//
// Invariants:
// - every Error thrown here has `code` (the errno's name) and `errno` (its positive number);
// - an argument of the wrong type or out of range is EINVAL with its name, never a crash.
#pragma once

#include <cstddef>
#include <cstdint>
#include <napi.h>
#include <string>

namespace mapdirect {

Napi::Error makeFailure(Napi::Env env, int negativeErrno, const std::string &what);

// Throw it. Returns an empty value, so that callers can `return fail(…)`.
Napi::Value fail(Napi::Env env, int negativeErrno, const std::string &what);

struct Bytes {
  uint8_t *data = nullptr;
  size_t length = 0;
};

// Each returns false with an exception pending.
bool getBytes(Napi::Env env, napi_value value, const char *name, Bytes &bytes);
// A Uint8Array's [start, start + length).
bool getSlice(Napi::Env env, napi_value array, napi_value start, napi_value length, Bytes &bytes);
// A whole number from 0 to 2^53 - 1.
bool getCount(Napi::Env env, napi_value value, const char *name, uint64_t &count);
bool getInt(Napi::Env env, napi_value value, const char *name, int &number);
bool getUnique(Napi::Env env, napi_value value, uint64_t &unique);

} // namespace mapdirect
