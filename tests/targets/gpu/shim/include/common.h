// What CUDA C and MSL have in common: exchanges between the lanes of a subgroup, kernels' entries.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "floats.h"
#include "kernel.h"

typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;

extern "C" const ShimApi* shim_api;
const ShimApi* shim_api;

// What code compiled with -fsanitize=alignment,bounds calls where it does what a GPU faults at, or does not notice.
namespace shim {

struct Type {
  uint16_t kind, info;
  char name[1];
};

struct Mismatch {
  const char* file;
  unsigned line, column;
  const Type* type;
  unsigned char log_alignment, kind;
};

struct OutOfBounds {
  const char* file;
  unsigned line, column;
  const Type* array;
  const Type* index;
};

}  // namespace shim

extern "C" inline __attribute__((used)) void __ubsan_handle_type_mismatch_v1(shim::Mismatch* data, uintptr_t) {
  char text[300];
  snprintf(text, sizeof text, "reads or writes a %s that is not aligned to %d bytes", data->type->name,
           1 << data->log_alignment);
  shim_api->fault(text, int(data->line));
}

extern "C" inline __attribute__((used)) void __ubsan_handle_out_of_bounds(shim::OutOfBounds* data, uintptr_t index) {
  char text[300];
  snprintf(text, sizeof text, "uses index %ld of an array %s", long(index), data->array->name);
  shim_api->fault(text, int(data->line));
}

namespace shim {

// What lane `source` of the subgroup published; its own, where there is no such lane.
template <class T>
inline T lane_of(const ShimLanes& lanes, unsigned source) {
  static_assert(sizeof(T) <= kShimSlotBytes, "a lane publishes a few words");
  T value;
  memcpy(&value, lanes.slots + (source < lanes.count ? source : lanes.lane) * kShimSlotBytes, sizeof value);
  return value;
}

template <class T>
inline ShimLanes publish(const T& value, int line) {
  return shim_api->publish(&value, sizeof value, line);
}

template <class T>
inline T shuffle(T value, int lane, int line) {
  return lane_of<T>(publish(value, line), unsigned(lane));
}

template <class T>
inline T shuffle_xor(T value, int mask, int line) {
  ShimLanes lanes = publish(value, line);
  return lane_of<T>(lanes, lanes.lane ^ unsigned(mask));
}

template <class T>
inline T shuffle_relative(T value, int distance, int line, unsigned width = kShimSubgroupSize) {
  ShimLanes lanes = publish(value, line);
  int source = int(lanes.lane) + distance, first = int(lanes.lane / width * width);
  return lane_of<T>(lanes, source < first || source >= first + int(width) ? lanes.lane : unsigned(source));
}

// The lanes' values, combined in the order of a tree of exchanges: lane i with lane i ^ 16, then i ^ 8, ...
template <class T, class Combine>
inline T reduce(T value, Combine combine, int line) {
  ShimLanes lanes = publish(value, line);
  T values[kShimSubgroupSize], next[kShimSubgroupSize];
  for (unsigned i = 0; i < lanes.count; i++) values[i] = lane_of<T>(lanes, i);
  for (unsigned step = kShimSubgroupSize / 2; step; step /= 2) {
    for (unsigned i = 0; i < lanes.count; i++) {
      next[i] = (i ^ step) < lanes.count ? combine(values[i], values[i ^ step]) : values[i];
    }
    for (unsigned i = 0; i < lanes.count; i++) values[i] = next[i];
  }
  return values[lanes.lane];
}

inline unsigned ballot(bool value, int line) {
  ShimLanes lanes = publish(value, line);
  unsigned result = 0;
  for (unsigned i = 0; i < lanes.count; i++) result |= unsigned(lane_of<bool>(lanes, i)) << i;
  return result;
}

// Shared memory whose size is known at launch lies behind that of the kernel's own arrays.
template <class S>
constexpr unsigned shared_bytes = __is_empty(S) ? 0 : sizeof(S);

template <class S>
inline void* dynamic_shared(const ShimBlock& block, S&) {
  return static_cast<char*>(block.shared) + ((shared_bytes<S> + 1023) & ~1023u);
}

template <class T>
struct Reference {
  typedef T type;
};
template <class T>
struct Reference<T&> {
  typedef T type;
};
template <class T>
struct Reference<T&&> {
  typedef T type;
};
template <class T>
struct Reference<const T&> {
  typedef const T type;
};

template <int... I>
struct Indices {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
  typedef Indices<I...> type;
};

// Runs one thread of a kernel, whose parameters lie behind the block's `args`.
template <auto F>
struct Entry;
template <class S, class... P, void (*F)(const ShimBlock&, ShimDim, S&, P...)>
struct Entry<F> {
  template <int... I>
  static inline void call(const ShimBlock* block, ShimDim index, Indices<I...>) {
    F(*block, index, *static_cast<S*>(block->shared), *static_cast<typename Reference<P>::type*>(block->args[I])...);
  }
  static void run_one(const ShimBlock* block, ShimDim index) {
    call(block, index, typename Count<sizeof...(P)>::type());
  }
};

}  // namespace shim

#define SHIM_KERNEL(name)                        \
  extern "C" const ShimKernel shim_kernel_##name; \
  const ShimKernel shim_kernel_##name = {shim::Entry<run>::run_one, shim::shared_bytes<Shared>};
