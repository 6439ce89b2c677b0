#include "napi/failure.h"

#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <uv.h>

namespace mapdirect {
namespace {

std::string nameOf(int error) {
#if defined(__GLIBC__)
  // Not uv_err_name: it calls EOPNOTSUPP ENOTSUP, and does not know every errno.
  if (const char *name = strerrorname_np(error); name != nullptr) return name;
#endif
  return uv_err_name(-error);
}

bool failArgument(Napi::Env env, const char *name, const char *expected) {
  fail(env, -EINVAL, std::string(name) + ": expected " + expected);
  return false;
}

} // namespace

Napi::Error makeFailure(Napi::Env env, int negativeErrno, const std::string &what) {
  const int error = -negativeErrno;
  const std::string code = nameOf(error);
  Napi::Error failure = Napi::Error::New(env, code + ": " + what + ": " + strerror(error));
  failure.Value().Set("code", code);
  failure.Value().Set("errno", error);
  return failure;
}

Napi::Value fail(Napi::Env env, int negativeErrno, const std::string &what) {
  // What a getter of an argument has thrown stays what is thrown: two at a time would end the process.
  if (env.IsExceptionPending()) return Napi::Value();
  makeFailure(env, negativeErrno, what).ThrowAsJavaScriptException();
  return Napi::Value();
}

bool getBytes(Napi::Env env, napi_value value, const char *name, Bytes &bytes) {
  napi_typedarray_type type;
  size_t length = 0;
  void *data = nullptr;
  if (napi_get_typedarray_info(env, value, &type, &length, &data, nullptr, nullptr) != napi_ok ||
      type != napi_uint8_array)
    return failArgument(env, name, "a Uint8Array");
  bytes = {static_cast<uint8_t *>(data), length};
  return true;
}

bool getSlice(Napi::Env env, napi_value array, napi_value start, napi_value length, Bytes &bytes) {
  Bytes whole;
  uint64_t from = 0;
  uint64_t count = 0;
  if (!getBytes(env, array, "bytes", whole) || !getCount(env, start, "start", from) ||
      !getCount(env, length, "length", count))
    return false;
  if (from > whole.length || count > whole.length - from)
    return failArgument(env, "length", "a slice of the array");
  bytes = {whole.data + from, count};
  return true;
}

bool getCount(Napi::Env env, napi_value value, const char *name, uint64_t &count) {
  double number = -1;
  if (napi_get_value_double(env, value, &number) != napi_ok ||
      !(number >= 0 && number <= 9007199254740991.0) || number != std::floor(number))
    return failArgument(env, name, "a whole number from 0 to 2^53 - 1");
  count = static_cast<uint64_t>(number);
  return true;
}

bool getInt(Napi::Env env, napi_value value, const char *name, int &number) {
  // Not napi_get_value_int32: it makes 0 of NaN, and wraps.
  double result = 0;
  if (napi_get_value_double(env, value, &result) != napi_ok ||
      !(result >= INT32_MIN && result <= INT32_MAX) || result != std::floor(result))
    return failArgument(env, name, "a whole number of 32 bits");
  number = static_cast<int>(result);
  return true;
}

bool getUnique(Napi::Env env, napi_value value, uint64_t &unique) {
  bool lossless = false;
  if (napi_get_value_bigint_uint64(env, value, &unique, &lossless) != napi_ok)
    return failArgument(env, "unique", "a bigint");
  return true;
}

} // namespace mapdirect
