// The shim's engine by itself, as a program: prints nothing and returns 0 if it works.
#include "shim/engine.h"

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace {

constexpr unsigned kThreads = 77, kBlocks = 37;

// y[block][thread] = the thread's number after a trip through shared memory and two exchanges, and what must survive
// switches: floats and integers that the compiler keeps in registers.
void trip(const ShimBlock* block, ShimDim thread) {
  auto shared = static_cast<unsigned*>(block->shared);
  auto y = *static_cast<float**>(block->args[0]);
  unsigned held = thread.x;
  double kept = thread.x * 1.5, more = thread.x + 0.25;
  for (int i = 0; i < 5; i++) {
    shared[thread.x] = held;
    shim::kApi.barrier(1);
    held = shared[(thread.x + 1) % kThreads];
    shim::kApi.barrier(2);
    ShimLanes lanes = shim::kApi.publish(&held, sizeof held, 3);
    memcpy(&held, lanes.slots + (lanes.lane + 1) % lanes.count * kShimSlotBytes, sizeof held);
    kept += 1;
    more *= 2;
  }
  bool survived = kept == thread.x * 1.5 + 5 && more == (thread.x + 0.25) * 32;
  y[block->index.x * kThreads + thread.x] = survived ? float(held) : -1;
}

void diverging(const ShimBlock*, ShimDim thread) {
  if (thread.x != 40) shim::kApi.barrier(7);
}

std::vector<unsigned> expected() {
  std::vector<unsigned> held(kThreads), next(kThreads);
  for (unsigned i = 0; i < kThreads; i++) held[i] = i;
  for (int round = 0; round < 5; round++) {
    for (unsigned i = 0; i < kThreads; i++) next[i] = held[(i + 1) % kThreads];
    for (unsigned i = 0; i < kThreads; i++) {
      unsigned first = i / 32 * 32, count = kThreads - first < 32 ? kThreads - first : 32;
      held[i] = next[first + (i - first + 1) % count];
    }
  }
  return held;
}

int fail(const char* what, const std::string& more) { return printf("%s: %s\n", what, more.c_str()), 1; }

}  // namespace

int main() {
  for (bool reversed : {false, true}) {
    shim::set_reversed(reversed);
    std::vector<float> y(kBlocks * kThreads);
    float* data = y.data();
    void* args[] = {&data};
    shim::Launch launch{"trip", {trip, 0}, {kBlocks, 1, 1}, {kThreads, 1, 1}, args, kThreads * sizeof(unsigned)};
    std::string error = shim::run(launch);
    if (!error.empty()) return fail("error", error);
    std::vector<unsigned> right = expected();
    for (unsigned i = 0; i < y.size(); i++) {
      if (y[i] != float(right[i % kThreads])) return fail("wrong", std::to_string(i));
    }
    launch = {"diverging", {diverging, 0}, {3, 1, 1}, {64, 1, 1}, args, 0};
    error = shim::run(launch);
    if (error.find("divergence") == std::string::npos || error.find("(40, 0, 0) has returned") == std::string::npos) {
      return fail("no divergence", error);
    }
  }
  return 0;
}
