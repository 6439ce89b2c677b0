#include "napi/system_calls.h"

#include "fuse/mount.h"
#include "napi/descriptor_object.h"
#include "napi/failure.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <vector>

namespace mapdirect {
namespace {

constexpr size_t kAttributeBytesMax = 65536; // XATTR_SIZE_MAX and XATTR_LIST_MAX of the kernel

bool getText(const Napi::CallbackInfo &info, size_t index, const char *name, std::string &text) {
  if (!info[index].IsString()) {
    fail(info.Env(), -EINVAL, std::string(name) + ": expected a string");
    return false;
  }
  text = info[index].As<Napi::String>();
  if (text.find('\0') == std::string::npos) return true;
  fail(info.Env(), -EINVAL, std::string(name) + ": contains a NUL character");
  return false;
}

bool getBig(const Napi::CallbackInfo &info, size_t index, const char *name, int64_t &number) {
  bool lossless = false;
  if (napi_get_value_bigint_int64(info.Env(), info[index], &number, &lossless) == napi_ok && lossless)
    return true;
  fail(info.Env(), -EINVAL, std::string(name) + ": expected a bigint of 64 bits");
  return false;
}

// The kernel looks the mount point up, which may need this thread: it may lie on a mount that is served here.
class MountWorker : public Napi::AsyncWorker {
public:
  MountWorker(Napi::Env env, std::string source, std::string mountpoint, std::string type,
              std::string options, uint64_t flags, DescriptorObject *device)
      : Napi::AsyncWorker(env, "mapdirect.mount"), source_(std::move(source)),
        mountpoint_(std::move(mountpoint)), type_(std::move(type)), options_(std::move(options)),
        flags_(flags), device_(device), deviceObject_(Napi::Persistent(device->Value())) {
    napi_create_promise(env, &deferred_, &promise_);
  }
  Napi::Promise promise() const { return Napi::Promise(Env(), promise_); }
  void Execute() override {
    result_ = mountFuse(source_.c_str(), mountpoint_.c_str(), type_.c_str(), options_.c_str(), flags_, step_);
  }
  void OnOK() override {
    const Napi::Env env = Env();
    if (result_ < 0) {
      const std::string what = std::string(step_) + " (" + mountpoint_ + ")";
      napi_reject_deferred(env, deferred_, makeFailure(env, result_, what).Value());
      return;
    }
    device_->hold(result_);
    if (napi_resolve_deferred(env, deferred_, deviceObject_.Value()) == napi_ok) return;
    // A worker thread that is being terminated. Nobody will serve the mount: who uses it would wait for ever.
    device_->closeNow();
    unmountFuse(mountpoint_.c_str(), true);
  }

private:
  napi_deferred deferred_ = nullptr;
  napi_value promise_ = nullptr; // valid until the call that made it returns
  const std::string source_, mountpoint_, type_, options_;
  const uint64_t flags_;
  DescriptorObject *const device_;
  const Napi::ObjectReference deviceObject_;
  const char *step_ = "";
  int result_ = 0;
};

Napi::Value mountRoot(const Napi::CallbackInfo &info) {
  std::string source, mountpoint, type, options;
  uint64_t flags = 0;
  if (!getText(info, 0, "source", source) || !getText(info, 1, "mountpoint", mountpoint) ||
      !getText(info, 2, "fsType", type) || !getText(info, 3, "options", options) ||
      !getCount(info.Env(), info[4], "flags", flags))
    return Napi::Value();
  DescriptorObject *const device = DescriptorObject::make(info.Env());
  if (device == nullptr) return Napi::Value();
  MountWorker *worker = new MountWorker(info.Env(), std::move(source), std::move(mountpoint), std::move(type),
                                        std::move(options), flags, device);
  const Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

Napi::Value unmount(const Napi::CallbackInfo &info) {
  std::string mountpoint;
  if (!getText(info, 0, "mountpoint", mountpoint)) return Napi::Value();
  if (const int failure = unmountFuse(mountpoint.c_str(), info[1].ToBoolean().Value()); failure != 0)
    return fail(info.Env(), failure, "unmount " + mountpoint);
  return info.Env().Undefined();
}

// For a daemon that unmounts itself: the kernel may write back dirty pages first, which needs the event loop.
class UnmountWorker : public Napi::AsyncWorker {
public:
  UnmountWorker(Napi::Env env, std::string mountpoint, bool lazy)
      : Napi::AsyncWorker(env, "mapdirect.unmount"), deferred_(Napi::Promise::Deferred::New(env)),
        mountpoint_(std::move(mountpoint)), lazy_(lazy) {}
  Napi::Promise promise() const { return deferred_.Promise(); }
  void Execute() override { result_ = unmountFuse(mountpoint_.c_str(), lazy_); }
  void OnOK() override {
    if (result_ == 0)
      deferred_.Resolve(Env().Undefined());
    else
      deferred_.Reject(makeFailure(Env(), result_, "unmount " + mountpoint_).Value());
  }

private:
  Napi::Promise::Deferred deferred_;
  const std::string mountpoint_;
  const bool lazy_;
  int result_ = 0;
};

Napi::Value unmountAsync(const Napi::CallbackInfo &info) {
  std::string mountpoint;
  if (!getText(info, 0, "mountpoint", mountpoint)) return Napi::Value();
  UnmountWorker *worker = new UnmountWorker(info.Env(), std::move(mountpoint), info[1].ToBoolean().Value());
  const Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

Napi::Value socketPair(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  DescriptorObject *const ours = DescriptorObject::make(env);
  DescriptorObject *const theirs = ours == nullptr ? nullptr : DescriptorObject::make(env);
  if (theirs == nullptr) return Napi::Value();
  int sockets[2];
  if (const int failure = makeSocketPair(sockets); failure != 0) return fail(env, failure, "socketpair");
  ours->hold(sockets[0]);
  theirs->hold(sockets[1]);
  Napi::Array pair = Napi::Array::New(env, 2);
  pair.Set(0U, ours->Value());
  pair.Set(1U, theirs->Value());
  return pair;
}

Napi::Value receive(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  DescriptorObject *socket = nullptr;
  if (!DescriptorObject::get(env, info[0], "socket", socket)) return Napi::Value();
  DescriptorObject *const received = DescriptorObject::make(env);
  if (received == nullptr) return Napi::Value();
  const int result = receiveDescriptor(socket->number());
  if (result < 0)
    return fail(env, result, "receive a descriptor from socket " + std::to_string(socket->number()));
  received->hold(result);
  return received->Value();
}

// Without waiting, and with a socket of its own each time: whoever reads the log may be started anew in between.
Napi::Value sendDatagram(const Napi::CallbackInfo &info) {
  std::string path;
  Bytes data;
  if (!getText(info, 0, "path", path) || !getBytes(info.Env(), info[1], "data", data)) return Napi::Value();
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return fail(info.Env(), -ENAMETOOLONG, path);
  memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const int descriptor = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  int failure = descriptor < 0 ? errno : 0;
  if (failure == 0 && sendto(descriptor, data.data, data.length, MSG_NOSIGNAL,
                             reinterpret_cast<const sockaddr *>(&address), sizeof address) < 0)
    failure = errno;
  if (descriptor >= 0) close(descriptor);
  return Napi::Number::New(info.Env(), failure);
}

Napi::Value replaceDescriptor(const Napi::CallbackInfo &info) {
  int source = -1, target = -1;
  if (!getInt(info.Env(), info[0], "source", source) || !getInt(info.Env(), info[1], "target", target))
    return Napi::Value();
  if (dup2(source, target) < 0) return fail(info.Env(), -errno, "dup2 " + std::to_string(source));
  return info.Env().Undefined();
}

Napi::Value lockDescriptor(const Napi::CallbackInfo &info) {
  int descriptor = -1;
  if (!getInt(info.Env(), info[0], "descriptor", descriptor)) return Napi::Value();
  if (flock(descriptor, LOCK_EX | LOCK_NB) != 0)
    return fail(info.Env(), errno == EWOULDBLOCK ? -EBUSY : -errno, "flock " + std::to_string(descriptor));
  return info.Env().Undefined();
}

Napi::Value ioControl(const Napi::CallbackInfo &info) {
  int descriptor = -1;
  uint64_t request = 0;
  Bytes argument;
  if (!getInt(info.Env(), info[0], "descriptor", descriptor) ||
      !getCount(info.Env(), info[1], "request", request) ||
      !getBytes(info.Env(), info[2], "argument", argument))
    return Napi::Value();
  // The number says how many bytes the kernel moves: refuse to let it run over the end of the array.
  if (_IOC_DIR(request) != _IOC_NONE && _IOC_SIZE(request) > argument.length)
    return fail(info.Env(), -EINVAL, "ioctl: the argument is shorter than the request's size");
  const int result = ioctl(descriptor, static_cast<unsigned long>(request), argument.data);
  if (result < 0) return fail(info.Env(), -errno, "ioctl");
  return Napi::Number::New(info.Env(), result);
}

Napi::Value fileAllocate(const Napi::CallbackInfo &info) {
  int descriptor = -1;
  int mode = 0;
  int64_t offset = 0;
  int64_t length = 0;
  if (!getInt(info.Env(), info[0], "descriptor", descriptor) || !getInt(info.Env(), info[1], "mode", mode) ||
      !getBig(info, 2, "offset", offset) || !getBig(info, 3, "length", length))
    return Napi::Value();
  if (fallocate(descriptor, mode, offset, length) != 0) return fail(info.Env(), -errno, "fallocate");
  return info.Env().Undefined();
}

Napi::Value seek(const Napi::CallbackInfo &info) {
  int descriptor = -1;
  int64_t offset = 0;
  int whence = 0;
  if (!getInt(info.Env(), info[0], "descriptor", descriptor) || !getBig(info, 1, "offset", offset) ||
      !getInt(info.Env(), info[2], "whence", whence))
    return Napi::Value();
  const off_t result = lseek(descriptor, offset, whence);
  if (result < 0) return fail(info.Env(), -errno, "lseek");
  return Napi::BigInt::New(info.Env(), static_cast<int64_t>(result));
}

Napi::Value renameAt2(const Napi::CallbackInfo &info) {
  std::string source, target;
  uint64_t flags = 0;
  if (!getText(info, 0, "source", source) || !getText(info, 1, "target", target) ||
      !getCount(info.Env(), info[2], "flags", flags))
    return Napi::Value();
  if (renameat2(AT_FDCWD, source.c_str(), AT_FDCWD, target.c_str(), static_cast<unsigned>(flags)) != 0)
    return fail(info.Env(), -errno, "rename " + source + " to " + target);
  return info.Env().Undefined();
}

Napi::Value setAttribute(const Napi::CallbackInfo &info) {
  std::string path, name;
  Bytes value;
  int flags = 0;
  if (!getText(info, 0, "path", path) || !getText(info, 1, "name", name) ||
      !getBytes(info.Env(), info[2], "value", value) || !getInt(info.Env(), info[3], "flags", flags))
    return Napi::Value();
  if (setxattr(path.c_str(), name.c_str(), value.data, value.length, flags) != 0)
    return fail(info.Env(), -errno, "setxattr " + name + " of " + path);
  return info.Env().Undefined();
}

Napi::Value getAttribute(const Napi::CallbackInfo &info) {
  std::string path, name;
  if (!getText(info, 0, "path", path) || !getText(info, 1, "name", name)) return Napi::Value();
  std::vector<uint8_t> value(kAttributeBytesMax);
  const ssize_t length = getxattr(path.c_str(), name.c_str(), value.data(), value.size());
  if (length < 0) return fail(info.Env(), -errno, "getxattr " + name + " of " + path);
  return Napi::Buffer<uint8_t>::Copy(info.Env(), value.data(), static_cast<size_t>(length));
}

Napi::Value listAttributes(const Napi::CallbackInfo &info) {
  std::string path;
  if (!getText(info, 0, "path", path)) return Napi::Value();
  std::vector<char> names(kAttributeBytesMax);
  const ssize_t length = listxattr(path.c_str(), names.data(), names.size());
  if (length < 0) return fail(info.Env(), -errno, "listxattr " + path);
  Napi::Array result = Napi::Array::New(info.Env());
  const char *end = names.data() + length;
  for (const char *name = names.data(); name < end;) {
    const std::string text(name);
    result.Set(result.Length(), text);
    name += text.size() + 1;
  }
  return result;
}

Napi::Value removeAttribute(const Napi::CallbackInfo &info) {
  std::string path, name;
  if (!getText(info, 0, "path", path) || !getText(info, 1, "name", name)) return Napi::Value();
  if (removexattr(path.c_str(), name.c_str()) != 0)
    return fail(info.Env(), -errno, "removexattr " + name + " of " + path);
  return info.Env().Undefined();
}

} // namespace

void defineSystemCalls(Napi::Env env, Napi::Object exports) {
  exports.Set("mountRoot", Napi::Function::New<mountRoot>(env, "mountRoot"));
  exports.Set("unmount", Napi::Function::New<unmount>(env, "unmount"));
  exports.Set("unmountAsync", Napi::Function::New<unmountAsync>(env, "unmountAsync"));
  exports.Set("socketpair", Napi::Function::New<socketPair>(env, "socketpair"));
  exports.Set("receiveDescriptor", Napi::Function::New<receive>(env, "receiveDescriptor"));
  exports.Set("sendDatagram", Napi::Function::New<sendDatagram>(env, "sendDatagram"));
  exports.Set("replaceDescriptor", Napi::Function::New<replaceDescriptor>(env, "replaceDescriptor"));
  exports.Set("lockDescriptor", Napi::Function::New<lockDescriptor>(env, "lockDescriptor"));
  exports.Set("ioctl", Napi::Function::New<ioControl>(env, "ioctl"));
  exports.Set("fallocate", Napi::Function::New<fileAllocate>(env, "fallocate"));
  exports.Set("lseek", Napi::Function::New<seek>(env, "lseek"));
  exports.Set("renameat2", Napi::Function::New<renameAt2>(env, "renameat2"));
  exports.Set("setxattr", Napi::Function::New<setAttribute>(env, "setxattr"));
  exports.Set("getxattr", Napi::Function::New<getAttribute>(env, "getxattr"));
  exports.Set("listxattr", Napi::Function::New<listAttributes>(env, "listxattr"));
  exports.Set("removexattr", Napi::Function::New<removeAttribute>(env, "removexattr"));
}

} // namespace mapdirect
