// Software devices "cuda" and "metal" in the host's memory. Fresh memory is full of NaNs, so that reads of what nobody
// wrote show in results; words around each allocation tell whether anyone wrote past its ends.
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "device.h"

namespace shim {
namespace {

using namespace tvm;

constexpr size_t kAlignment = 256;
constexpr size_t kGuardWords = kAlignment / 2;
constexpr uint16_t kGuardWord = 0xffd5;  // a NaN as well, for reads past the end

class Memory {
 public:
  void* allocate(size_t bytes) {
    size_t room = (bytes + kAlignment - 1) / kAlignment * kAlignment + 2 * kAlignment;
    char* begin = static_cast<char*>(aligned_alloc(kAlignment, room));
    if (!begin) TVM_FFI_THROW(RuntimeError) << "out of memory: " << bytes << " bytes";
    char* data = begin + kAlignment;
    memset(data, 0xff, bytes);
    for (char* guard : {begin, data + bytes}) {
      for (size_t i = 0; i < kGuardWords; i++) memcpy(guard + 2 * i, &kGuardWord, 2);
    }
    std::lock_guard<std::mutex> hold(lock_);
    sizes_[data] = bytes;
    return data;
  }

  void release(void* pointer) {
    auto data = static_cast<char*>(pointer);
    std::string damage;
    {
      std::lock_guard<std::mutex> hold(lock_);
      auto found = sizes_.find(data);
      damage = found == sizes_.end() ? "memory is freed that was not allocated" : damage_of(data, found->second);
      if (found != sizes_.end()) sizes_.erase(found);
    }
    if (!damage.empty()) {
      fprintf(stderr, "software GPU: %s\n", damage.c_str());
      abort();
    }
    free(data - kAlignment);
  }

  // What is wrong with any allocation, or nothing.
  std::string check() {
    std::lock_guard<std::mutex> hold(lock_);
    for (auto& [data, bytes] : sizes_) {
      std::string damage = damage_of(data, bytes);
      if (damage.empty()) continue;
      for (char* guard : {data - kAlignment, data + bytes}) {  // told once
        for (size_t i = 0; i < kGuardWords; i++) memcpy(guard + 2 * i, &kGuardWord, 2);
      }
      return damage;
    }
    return "";
  }

 private:
  static std::string damage_of(const char* data, size_t bytes) {
    for (size_t i = 0; i < kGuardWords; i++) {
      if (memcmp(data + bytes + 2 * i, &kGuardWord, 2)) return told("past the end", bytes, 2 * i);
      if (memcmp(data - 2 - 2 * i, &kGuardWord, 2)) return told("before the begin", bytes, 2 * i);
    }
    return "";
  }

  static std::string told(const char* where, size_t bytes, size_t distance) {
    return "something wrote " + std::string(where) + " of an allocation of " + std::to_string(bytes) + " bytes, at " +
           std::to_string(distance) + " bytes from it";
  }

  std::mutex lock_;
  std::map<char*, size_t> sizes_;
};

Memory& memory() {
  static Memory* memory = new Memory;  // never destroyed: tensors may live longer than static objects
  return *memory;
}

class Device final : public runtime::DeviceAPI {
 public:
  explicit Device(const Limits& limits) : limits_(limits) {}

  void SetDevice(tvm::Device) final {}

  void GetAttr(tvm::Device device, runtime::DeviceAttrKind kind, ffi::Any* value) final {
    switch (kind) {
      case runtime::kExist: *value = int(device.device_id == 0); break;
      case runtime::kMaxThreadsPerBlock: *value = int(limits_.threads); break;
      case runtime::kWarpSize: *value = 32; break;
      case runtime::kMaxSharedMemoryPerBlock: *value = int(limits_.static_shared); break;
      case runtime::kComputeVersion: *value = ffi::String(limits_.version); break;
      case runtime::kDeviceName: *value = ffi::String(std::string("software ") + limits_.kind); break;
      case runtime::kMultiProcessorCount: *value = 2; break;
      case runtime::kTotalGlobalMemory: *value = int64_t(1) << 34; break;
      case runtime::kAvailableGlobalMemory: *value = int64_t(1) << 33; break;
      default: break;
    }
  }

  void* AllocDataSpace(tvm::Device, size_t bytes, size_t, DLDataType) final { return memory().allocate(bytes); }
  void FreeDataSpace(tvm::Device, void* pointer) final { memory().release(pointer); }
  void StreamSync(tvm::Device, TVMStreamHandle) final {}

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes, tvm::Device,
                      tvm::Device, DLDataType, TVMStreamHandle) final {
    memcpy(static_cast<char*>(to) + to_offset, static_cast<const char*>(from) + from_offset, bytes);
  }

 private:
  const Limits& limits_;
};

template <int I>
void device_api(ffi::PackedArgs, ffi::Any* result) {
  static Device* device = new Device(kLimits[I]);
  *result = static_cast<void*>(static_cast<runtime::DeviceAPI*>(device));
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  provide("device_api.cuda", ffi::Function::FromPacked(device_api<0>));
  provide("device_api.metal", ffi::Function::FromPacked(device_api<1>));
  provide("deepzig.shim.damage", ffi::Function::FromTyped([] { return ffi::String(memory().check()); }));
}

}  // namespace shim
