// What a library of compiled kernels and the shim know of each other.
#pragma once
#include <stdint.h>

struct ShimDim {
  unsigned x, y, z;
};

// A block (threadgroup) that runs.
struct ShimBlock {
  ShimDim grid, threads, index;
  void** args;   // addresses of the arguments' values
  void* shared;  // its shared memory
};

struct ShimKernel {
  void (*run_one)(const ShimBlock* block, ShimDim index);  // run one thread
  unsigned shared_bytes;                                  // its static shared memory
};

enum ShimKind { kShimReturned, kShimBlockBarrier, kShimSubgroup };

constexpr unsigned kShimSubgroupSize = 32;
constexpr unsigned kShimSlotBytes = 64;

// What the lanes of a subgroup published: lane i's bytes begin at slots + i * kShimSlotBytes.
struct ShimLanes {
  const unsigned char* slots;
  unsigned lane, count;
};

struct ShimApi {
  // Returns when every thread of the block has called it from the same line.
  void (*barrier)(int line);
  // Returns when every lane of the subgroup has called it from the same line. At most kShimSlotBytes bytes.
  ShimLanes (*publish)(const void* bytes, unsigned count, int line);
  // A copy that is not made before the thread waits for it (cp.async).
  void (*copy)(void* to, const void* from, unsigned bytes);
  // Puts the copies since the last call in a group.
  void (*commit)();
  // Makes the copies of all groups but the last `pending`.
  void (*wait)(unsigned pending);
  // Products of small matrices, which all lanes of a subgroup make together: matrix.h.
  void (*mma_bf16)(float* sums, const unsigned* a, const unsigned* b, int line);
  void (*mma_f16)(float* sums, const unsigned* a, const unsigned* b, int line);
  void (*mma_s8)(int* sums, const unsigned* a, const unsigned* b, int line);
  void (*simd_mma_f32)(float* sums, const float* a, const float* b, int line);
  void (*simd_mma_f16)(float* sums, const unsigned* a, const unsigned* b, int line);
  // Ends the launch with an error.
  void (*fault)(const char* what, int line);
};
