// Runs kernels: one block after another, its threads as fibers that meet at barriers and shuffles.
#pragma once
#include <string>

#include "include/kernel.h"

namespace shim {

constexpr unsigned kMaxThreads = 1024;

extern const ShimApi kApi;

struct Launch {
  std::string name;
  ShimKernel kernel;
  ShimDim grid, threads;
  void** args;
  size_t shared_bytes;  // static and dynamic
};

// Whether blocks and threads run from the last to the first: what a kernel computes may not depend on it.
void set_reversed(bool reversed);

// Run all blocks. Returns what went wrong, or nothing.
std::string run(const Launch& launch);

}  // namespace shim
