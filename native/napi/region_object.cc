#include "napi/region_object.h"

#include "napi/failure.h"
#include "region/mappers.h"

#include <algorithm>
#include <cerrno>

namespace mapdirect {
namespace {

const char *kindName(RegionKind kind) {
  switch (kind) {
  case RegionKind::file:
    return "file";
  case RegionKind::block:
    return "block";
  case RegionKind::devdax:
    return "devdax";
  }
  return "";
}

std::string rangeText(const char *operation, uint64_t offset, uint64_t length) {
  return std::string(operation) + " " + std::to_string(length) + " bytes at " + std::to_string(offset) +
         " of the region";
}

bool getFlag(Napi::Object options, const char *name) {
  return options.Get(name).ToBoolean().Value();
}

// msync on the thread pool.
class SyncWorker : public Napi::AsyncWorker {
public:
  SyncWorker(Napi::Env env, std::shared_ptr<Mapping> mapping)
      : Napi::AsyncWorker(env, "mapdirect.sync"), deferred_(Napi::Promise::Deferred::New(env)),
        mapping_(std::move(mapping)), bytes_(mapping_->info().sizeBytes) {}
  Napi::Promise promise() const { return deferred_.Promise(); }

  void Execute() override { result_ = mapping_->sync(bytes_); }
  void OnOK() override {
    if (result_ == 0)
      deferred_.Resolve(Env().Undefined());
    else
      deferred_.Reject(makeFailure(Env(), result_, "sync the region").Value());
  }

private:
  Napi::Promise::Deferred deferred_;
  std::shared_ptr<Mapping> mapping_;
  // Looked at here: the region may grow meanwhile.
  const uint64_t bytes_;
  int result_ = 0;
};

// madvise on the thread pool.
class GatherWorker : public Napi::AsyncWorker {
public:
  GatherWorker(Napi::Env env, std::shared_ptr<Mapping> mapping, uint64_t offset, uint64_t length)
      : Napi::AsyncWorker(env, "mapdirect.gather"), deferred_(Napi::Promise::Deferred::New(env)),
        mapping_(std::move(mapping)), offset_(offset), length_(length) {}
  Napi::Promise promise() const { return deferred_.Promise(); }

  void Execute() override { result_ = mapping_->gather(offset_, length_, gathered_); }
  void OnOK() override {
    if (result_ != 0) {
      deferred_.Reject(makeFailure(Env(), result_, rangeText("gather", length_, offset_)).Value());
      return;
    }
    deferred_.Resolve(Napi::Buffer<uint8_t>::Copy(Env(), gathered_.data(), gathered_.size()));
  }

private:
  Napi::Promise::Deferred deferred_;
  std::shared_ptr<Mapping> mapping_;
  const uint64_t offset_;
  const uint64_t length_;
  std::vector<uint8_t> gathered_;
  int result_ = 0;
};

// fallocate or BLKDISCARD on the thread pool.
class DiscardWorker : public Napi::AsyncWorker {
public:
  DiscardWorker(Napi::Env env, std::shared_ptr<Mapping> mapping, uint64_t offset, uint64_t length)
      : Napi::AsyncWorker(env, "mapdirect.discard"), deferred_(Napi::Promise::Deferred::New(env)),
        mapping_(std::move(mapping)), offset_(offset), length_(length) {}
  Napi::Promise promise() const { return deferred_.Promise(); }

  void Execute() override { result_ = mapping_->discard(offset_, length_); }
  void OnOK() override {
    if (result_ == 0)
      deferred_.Resolve(Env().Undefined());
    else
      deferred_.Reject(makeFailure(Env(), result_, rangeText("discard", offset_, length_)).Value());
  }

private:
  Napi::Promise::Deferred deferred_;
  std::shared_ptr<Mapping> mapping_;
  const uint64_t offset_;
  const uint64_t length_;
  int result_ = 0;
};

// /proc on the thread pool.
class MappersWorker : public Napi::AsyncWorker {
public:
  MappersWorker(Napi::Env env, std::shared_ptr<Mapping> mapping, std::string proc, uint64_t patienceMs)
      : Napi::AsyncWorker(env, "mapdirect.mappers"), deferred_(Napi::Promise::Deferred::New(env)),
        mapping_(std::move(mapping)), proc_(std::move(proc)), patienceMs_(patienceMs) {}
  Napi::Promise promise() const { return deferred_.Promise(); }

  void Execute() override {
    MapsIdentity identity;
    result_ = identifyMapping(mapping_->addressOf(0, 1), identity);
    if (mapping_->info().kind != RegionKind::file) identity.number = mapping_->info().device;
    if (result_ == 0) result_ = findMappings(proc_, identity, patienceMs_, found_, settled_);
  }
  void OnOK() override {
    if (result_ != 0) {
      deferred_.Reject(makeFailure(Env(), result_, "look for who maps the region in " + proc_).Value());
      return;
    }
    Napi::Array processes = Napi::Array::New(Env(), found_.size());
    for (uint32_t index = 0; index < found_.size(); index++) {
      const MapperEntry &entry = found_[index];
      Napi::Object process = Napi::Object::New(Env());
      process.Set("pid", entry.pid);
      process.Set("failure", -entry.failure);
      process.Set("lines", entry.lines);
      processes.Set(index, process);
    }
    Napi::Object answer = Napi::Object::New(Env());
    answer.Set("processes", processes);
    answer.Set("settled", settled_);
    deferred_.Resolve(answer);
  }

private:
  Napi::Promise::Deferred deferred_;
  std::shared_ptr<Mapping> mapping_;
  const std::string proc_;
  const uint64_t patienceMs_;
  std::vector<MapperEntry> found_;
  bool settled_ = false;
  int result_ = 0;
};

// ftruncate and fsync on the thread pool; then the new part is mapped on the thread that uses the mapping.
class GrowWorker : public Napi::AsyncWorker {
public:
  GrowWorker(Napi::Env env, std::shared_ptr<Mapping> mapping, uint64_t bytes)
      : Napi::AsyncWorker(env, "mapdirect.grow"), deferred_(Napi::Promise::Deferred::New(env)),
        mapping_(std::move(mapping)), bytes_(bytes) {}
  Napi::Promise promise() const { return deferred_.Promise(); }

  void Execute() override {
    result_ = mapping_->measure(before_);
    if (result_ == 0) result_ = mapping_->provide(bytes_, step_);
  }
  void OnOK() override {
    if (result_ == 0) {
      step_ = "mmap";
      result_ = mapping_->extend(bytes_);
      if (result_ != 0 && before_ < bytes_) mapping_->takeBack(before_);
    }
    if (result_ == 0) {
      deferred_.Resolve(Env().Undefined());
      return;
    }
    const Napi::Error failure = makeFailure(
        Env(), result_, std::string(step_) + " the region of " + std::to_string(bytes_) + " bytes");
    failure.Value().Set("step", step_);
    deferred_.Reject(failure.Value());
  }

private:
  Napi::Promise::Deferred deferred_;
  std::shared_ptr<Mapping> mapping_;
  const uint64_t bytes_;
  uint64_t before_ = 0;
  const char *step_ = "measure";
  int result_ = 0;
};

} // namespace

void RegionObject::define(Napi::Env env) {
  AddonState::of(env).regionClass =
      Napi::Persistent(DefineClass(env, "NativeRegion",
                                   {
                                       InstanceMethod<&RegionObject::setCacheline>("setCacheline"),
                                       InstanceMethod<&RegionObject::handOut>("handOut"),
                                       InstanceMethod<&RegionObject::read>("read"),
                                       InstanceMethod<&RegionObject::write>("write"),
                                       InstanceMethod<&RegionObject::zero>("zero"),
                                       InstanceMethod<&RegionObject::copy>("copy"),
                                       InstanceMethod<&RegionObject::flush>("flush"),
                                       InstanceMethod<&RegionObject::unload>("unload"),
                                       InstanceMethod<&RegionObject::gather>("gather"),
                                       InstanceMethod<&RegionObject::findMappings>("findMappings"),
                                       InstanceMethod<&RegionObject::drain>("drain"),
                                       InstanceMethod<&RegionObject::sync>("sync"),
                                       InstanceMethod<&RegionObject::measure>("measure"),
                                       InstanceMethod<&RegionObject::allocate>("allocate"),
                                       InstanceMethod<&RegionObject::discard>("discard"),
                                       InstanceMethod<&RegionObject::below>("below"),
                                       InstanceMethod<&RegionObject::grow>("grow"),
                                       InstanceMethod<&RegionObject::close>("close"),
                                   }));
}

Napi::Value RegionObject::open(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsString() || !info[1].IsObject()) return fail(env, -EINVAL, "openRegion(path, options)");
  const std::string path = info[0].As<Napi::String>();
  const Napi::Object options = info[1].As<Napi::Object>();
  const RegionOptions wanted{getFlag(options, "readOnly"), getFlag(options, "lock"),
                             getFlag(options, "mapSync")};
  std::shared_ptr<Mapping> mapping;
  const char *step = "";
  if (const int failure = Mapping::open(path.c_str(), wanted, mapping, step); failure != 0)
    return fail(env, failure, std::string(step) + " " + path);
  return AddonState::of(env).regionClass.New({Napi::External<std::shared_ptr<Mapping>>::New(env, &mapping)});
}

RegionObject::RegionObject(const Napi::CallbackInfo &info)
    : Napi::ObjectWrap<RegionObject>(info), open_(AddonState::of(info.Env()).regions) {
  const Napi::Env env = info.Env();
  if (!info[0].IsExternal()) {
    fail(env, -EINVAL, "a NativeRegion comes from openRegion");
    return;
  }
  mapping_ = *info[0].As<Napi::External<std::shared_ptr<Mapping>>>().Data();
  open_->push_back(this);

  const RegionInfo &facts = mapping_->info();
  Napi::Object description = Napi::Object::New(env);
  description.Set("kind", kindName(facts.kind));
  description.Set("sizeBytes", static_cast<double>(facts.sizeBytes));
  description.Set("mapSync", facts.mapSync);
  description.Set("dax", facts.dax);
  description.Set("mapAlignmentBytes", static_cast<double>(facts.mapAlignmentBytes));
  description.Set("discards", facts.discards);
  description.Set("mapSyncRefusal", facts.mapSyncRefusal);
  description.Set("device", Napi::BigInt::New(env, facts.device));
  description.Set("inode", Napi::BigInt::New(env, facts.inode));
  description.Set("uid", facts.uid);
  description.Set("gid", facts.gid);
  description.Set("mode", facts.mode);
  description.Freeze();
  info.This().As<Napi::Object>().DefineProperty(
      Napi::PropertyDescriptor::Value("info", description, napi_enumerable));
}

RegionObject::~RegionObject() {
  forget();
}

void RegionObject::forget() {
  std::erase(*open_, this);
}

Mapping *RegionObject::mappingOf(Napi::Env env, napi_value value) {
  void *wrapped = nullptr;
  if (napi_unwrap(env, value, &wrapped) != napi_ok) return nullptr;
  const std::vector<RegionObject *> &open = *AddonState::of(env).regions;
  const auto found = std::find(open.begin(), open.end(), static_cast<RegionObject *>(wrapped));
  return found == open.end() ? nullptr : (*found)->mapping_.get();
}

bool RegionObject::checkOpen(Napi::Env env, const char *operation) {
  if (mapping_ != nullptr) return true;
  fail(env, -EBADF, std::string(operation) + ": the region is closed");
  return false;
}

void RegionObject::setCacheline(const Napi::CallbackInfo &info) {
  if (!checkOpen(info.Env(), "setCacheline")) return;
  cacheline_ = info[0].ToBoolean().Value();
  mapping_->setCacheline(cacheline_);
}

void RegionObject::handOut(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  int socket = -1;
  if (!checkOpen(env, "handOut") || !getInt(env, info[0], "socket", socket)) return;
  if (const int failure = mapping_->handOut(socket); failure != 0)
    fail(env, failure, "send a descriptor of the region");
}

void RegionObject::read(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  uint64_t offset = 0;
  Bytes target;
  if (!checkOpen(env, "read") || !getCount(env, info[0], "offset", offset) ||
      !getSlice(env, info[1], info[2], info[3], target))
    return;
  if (const int failure = mapping_->read(offset, target.data, target.length); failure != 0)
    fail(env, failure, rangeText("read", offset, target.length));
}

void RegionObject::write(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  uint64_t offset = 0;
  Bytes source;
  if (!checkOpen(env, "write") || !getCount(env, info[0], "offset", offset) ||
      !getSlice(env, info[1], info[2], info[3], source))
    return;
  if (const int failure = mapping_->write(offset, source.data, source.length); failure != 0)
    fail(env, failure, rangeText("write", offset, source.length));
}

void RegionObject::zero(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  uint64_t offset = 0;
  uint64_t length = 0;
  if (!checkOpen(env, "zero") || !getCount(env, info[0], "offset", offset) ||
      !getCount(env, info[1], "length", length))
    return;
  if (const int failure = mapping_->zero(offset, length); failure != 0)
    fail(env, failure, rangeText("zero", offset, length));
}

void RegionObject::copy(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  uint64_t source = 0;
  uint64_t target = 0;
  uint64_t length = 0;
  if (!checkOpen(env, "copy") || !getCount(env, info[0], "sourceOffset", source) ||
      !getCount(env, info[1], "targetOffset", target) || !getCount(env, info[2], "length", length))
    return;
  if (const int failure = mapping_->copy(source, target, length); failure != 0)
    fail(env, failure, rangeText("copy", source, length) + " to " + std::to_string(target));
}

void RegionObject::flush(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  uint64_t offset = 0;
  uint64_t length = 0;
  if (!checkOpen(env, "flush") || !getCount(env, info[0], "offset", offset) ||
      !getCount(env, info[1], "length", length))
    return;
  if (const int failure = mapping_->flush(offset, length); failure != 0)
    fail(env, failure, rangeText("flush", offset, length));
}

void RegionObject::unload(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  uint64_t offset = 0;
  uint64_t length = 0;
  if (!checkOpen(env, "unload") || !getCount(env, info[0], "offset", offset) ||
      !getCount(env, info[1], "length", length))
    return;
  if (const int failure = mapping_->unload(offset, length); failure != 0)
    fail(env, failure, rangeText("unload", offset, length));
}

Napi::Value RegionObject::gather(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  uint64_t offset = 0;
  uint64_t length = 0;
  if (!checkOpen(env, "gather") || !getCount(env, info[0], "offset", offset) ||
      !getCount(env, info[1], "length", length))
    return Napi::Value();
  // Looked at here: the region may grow meanwhile.
  if (mapping_->addressOf(offset, length) == nullptr)
    return fail(env, -EINVAL, rangeText("gather", length, offset));
  GatherWorker *worker = new GatherWorker(env, mapping_, offset, length);
  const Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

Napi::Value RegionObject::findMappings(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  uint64_t patienceMs = 0;
  if (!checkOpen(env, "findMappings") || !getCount(env, info[1], "patienceMs", patienceMs))
    return Napi::Value();
  if (!info[0].IsString()) return fail(env, -EINVAL, "findMappings(proc, patienceMs)");
  MappersWorker *worker = new MappersWorker(env, mapping_, info[0].As<Napi::String>(), patienceMs);
  const Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

void RegionObject::drain(const Napi::CallbackInfo &info) {
  if (checkOpen(info.Env(), "drain")) mapping_->drain();
}

Napi::Value RegionObject::sync(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  if (!checkOpen(env, "sync")) return Napi::Value();
  // A store fence orders the stores of the thread that runs it: never send it to another one. And on tmpfs another thread
  // takes longer to wake up than the call takes.
  if (cacheline_ || mapping_->info().inMemory) {
    const Napi::Promise::Deferred deferred = Napi::Promise::Deferred::New(env);
    if (const int failure = mapping_->sync(mapping_->info().sizeBytes); failure == 0)
      deferred.Resolve(env.Undefined());
    else
      deferred.Reject(makeFailure(env, failure, "sync the region").Value());
    return deferred.Promise();
  }
  SyncWorker *worker = new SyncWorker(env, mapping_);
  const Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

Napi::Value RegionObject::measure(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  if (!checkOpen(env, "measure")) return Napi::Value();
  uint64_t bytes = 0;
  if (const int failure = mapping_->measure(bytes); failure != 0)
    return fail(env, failure, "measure the region");
  return Napi::Number::New(env, static_cast<double>(bytes));
}

void RegionObject::allocate(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  uint64_t offset = 0;
  uint64_t length = 0;
  if (!checkOpen(env, "allocate") || !getCount(env, info[0], "offset", offset) ||
      !getCount(env, info[1], "length", length))
    return;
  if (const int failure = mapping_->allocate(offset, length); failure != 0)
    fail(env, failure, rangeText("allocate", offset, length));
}

Napi::Value RegionObject::discard(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  uint64_t offset = 0;
  uint64_t length = 0;
  if (!checkOpen(env, "discard") || !getCount(env, info[0], "offset", offset) ||
      !getCount(env, info[1], "length", length))
    return Napi::Value();
  // Looked at here: the region may grow meanwhile.
  if (mapping_->addressOf(offset, length) == nullptr)
    return fail(env, -EINVAL, rangeText("discard", offset, length));
  DiscardWorker *worker = new DiscardWorker(env, mapping_, offset, length);
  const Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

Napi::Value RegionObject::below(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  if (!checkOpen(env, "below")) return Napi::Value();
  uint64_t freeBytes = 0;
  uint64_t allocatedBytes = 0;
  // What cannot be found out has no bound.
  if (mapping_->below(freeBytes, allocatedBytes) != 0) return env.Null();
  Napi::Object answer = Napi::Object::New(env);
  answer.Set("freeBytes", static_cast<double>(freeBytes));
  answer.Set("allocatedBytes", static_cast<double>(allocatedBytes));
  return answer;
}

Napi::Value RegionObject::grow(const Napi::CallbackInfo &info) {
  const Napi::Env env = info.Env();
  uint64_t bytes = 0;
  if (!checkOpen(env, "grow") || !getCount(env, info[0], "sizeBytes", bytes)) return Napi::Value();
  // Before anything is tried: the file is not to be touched for nothing.
  if (bytes > mapping_->roomBytes())
    return fail(env, -ENOMEM, "address space for " + std::to_string(bytes) + " bytes of the region");
  GrowWorker *worker = new GrowWorker(env, mapping_, bytes);
  const Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

void RegionObject::close(const Napi::CallbackInfo &) {
  forget();
  mapping_.reset();
}

} // namespace mapdirect
