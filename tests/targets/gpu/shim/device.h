// What the software devices can do.
#pragma once
#include <tvm/ffi/function.h>

#include <cstddef>
#include <string>

namespace shim {

// Register a function, unless another copy of this library has: devices and functions have to be of one copy.
inline void provide(const std::string& name, tvm::ffi::Function function) {
  if (!tvm::ffi::Function::GetGlobal(name)) tvm::ffi::Function::SetGlobal(name, function, true);
}

struct Limits {
  const char* kind;
  unsigned threads;       // of a block
  size_t static_shared;   // bytes
  size_t shared;          // bytes, with what is asked for at launch: the least of sm_80, sm_89 and sm_90
  const char* version;    // compute capability
};

constexpr Limits kLimits[] = {
    {"cuda", 1024, 48 << 10, 99 << 10, "9.0"},
    {"metal", 1024, 32 << 10, 32 << 10, ""},
};

}  // namespace shim
