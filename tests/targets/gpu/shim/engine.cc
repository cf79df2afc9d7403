// Threads of a block form a ring: each runs until it meets a barrier, a shuffle or its end, then the next one does.
// When a subgroup's last lane gets there, all its lanes must have met the same thing, at the same line: that is what a
// rendezvous means, and anything else is an error of the kernel. Threads are numbered twice: by their indices, and by
// their places in the ring.
#include "engine.h"

#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "context.h"
#include "matrix.h"

namespace shim {
namespace {

// Kernels' frames are checked when they are compiled (-Wframe-larger-than). No power of two, so that equal places of
// stacks lie in different cache sets.
constexpr size_t kStackBytes = (64 << 10) + 5 * 64;
constexpr size_t kGuardBytes = 64;
constexpr unsigned char kPoison = 0xff;  // a NaN in every float format
constexpr unsigned char kGuard = 0xa5;

struct Tag {
  int kind, line;
  bool operator!=(const Tag& other) const { return kind != other.kind || line != other.line; }
};

struct Place {
  unsigned thread;
  bool begins;  // a subgroup
};

struct Copy {
  void* to;
  const void* from;
  unsigned bytes, group;
};

// Copies that a thread has asked for and that are still to be made.
struct Copies {
  std::vector<Copy> pending;
  unsigned group = 0;
};

std::atomic<bool> reversed_order{false};

// One OS thread's part: the block that it runs.
struct Worker {
  const Launch* launch = nullptr;
  ShimBlock block{};
  unsigned count = 0;    // threads of the block
  bool reversed = false;
  unsigned current = 0;  // the place that runs
  unsigned started = 0;  // places below this one have begun
  unsigned first = 0;    // the place where the current subgroup begins
  unsigned stacks_used = 0;
  Tag subgroup_tag{}, block_tag{};
  Context main{};
  std::string error;
  std::unique_ptr<Place[]> places{new Place[kMaxThreads]};
  std::unique_ptr<Context[]> contexts{new Context[kMaxThreads]};
  std::unique_ptr<unsigned char[]> phase{new unsigned char[kMaxThreads]()};
  std::unique_ptr<unsigned char[]> slots{new unsigned char[2 * kMaxThreads * kShimSlotBytes]};
  std::unique_ptr<Copies[]> copies{new Copies[kMaxThreads]};
  bool copied = false;
  std::unique_ptr<unsigned char[]> shared;
  size_t shared_room = 0;
  char* stacks;

  Worker() {
    void* memory = mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    stacks = static_cast<char*>(memory);
  }
  ~Worker() { munmap(stacks, kMaxThreads * kStackBytes); }
};

__attribute__((tls_model("initial-exec"))) thread_local Worker* self = nullptr;

ShimDim index_of(const Worker& worker, unsigned place) {
  const ShimDim& threads = worker.block.threads;
  unsigned thread = worker.places[place].thread;
  if (threads.y == 1 && threads.z == 1) return {thread, 0, 0};
  return {thread % threads.x, thread / threads.x % threads.y, thread / (threads.x * threads.y)};
}

std::string told(const ShimDim& dim) {
  return "(" + std::to_string(dim.x) + ", " + std::to_string(dim.y) + ", " + std::to_string(dim.z) + ")";
}

std::string told(const Tag& tag) {
  if (tag.kind == kShimReturned) return "has returned";
  std::string what = tag.kind == kShimBlockBarrier ? "waits at the barrier of line " : "waits for its subgroup in line ";
  return what + std::to_string(tag.line);
}

std::string thread_at(const Worker& worker, unsigned place) { return "thread " + told(index_of(worker, place)); }

std::string about(const Worker& worker) {
  return "kernel " + worker.launch->name + ", block " + told(worker.block.index) + ": ";
}

// Leave the block for good: its fibers are never resumed.
[[noreturn]] void fail(Worker& worker, const std::string& what) {
  worker.error = about(worker) + what;
  Context abandoned;
  switch_context(&abandoned, &worker.main);
  std::abort();
}

[[noreturn]] void diverge(Worker& worker, unsigned other, const Tag& theirs, const Tag& ours) {
  fail(worker, "divergence: " + thread_at(worker, other) + " " + told(theirs) + ", " +
                   thread_at(worker, worker.current) + " " + told(ours));
}

constexpr unsigned kEnd = ~0u;

// The current thread has met `tag`: which place runs next, kEnd when all have returned.
unsigned met(Worker& worker, const Tag& tag) {
  unsigned place = worker.current, next = place + 1;
  if (worker.places[place].begins) {
    worker.first = place;
    worker.subgroup_tag = tag;
  } else if (tag != worker.subgroup_tag) {
    diverge(worker, worker.first, worker.subgroup_tag, tag);
  }
  bool last = next == worker.count;
  if (!last && !worker.places[next].begins) return next;
  if (tag.kind == kShimSubgroup) return worker.first;
  if (worker.first == 0) {
    worker.block_tag = tag;
  } else if (tag != worker.block_tag) {
    diverge(worker, 0, worker.block_tag, tag);
  }
  if (!last) return next;
  return tag.kind == kShimReturned ? kEnd : 0;
}

// What runs on a fiber's stack: threads, as long as they return without having met another.
void fiber() {
  Worker& worker = *self;
  for (;;) {
    worker.launch->kernel.run_one(&worker.block, index_of(worker, worker.current));
    unsigned next = met(worker, {kShimReturned, 0});
    if (next == kEnd) break;
    unsigned done = worker.current;
    worker.current = next;
    if (next != worker.started) {
      switch_context(&worker.contexts[done], &worker.contexts[next]);
      std::abort();
    }
    worker.started++;
  }
  Context abandoned;
  switch_context(&abandoned, &worker.main);
}

// Prepare the next thread that has not begun to run on a stack of its own.
void start(Worker& worker) {
  char* stack = worker.stacks + kStackBytes * worker.stacks_used++;
  make_context(&worker.contexts[worker.started++], stack, kStackBytes, fiber);
}

void rendezvous(Worker& worker, const Tag& tag) {
  unsigned place = worker.current, next = met(worker, tag);
  if (next == place) return;
  if (next == worker.started) start(worker);
  worker.current = next;
  switch_context(&worker.contexts[place], &worker.contexts[next]);
}

void barrier(int line) { rendezvous(*self, {kShimBlockBarrier, line}); }

ShimLanes publish(const void* bytes, unsigned count, int line) {
  Worker& worker = *self;
  unsigned thread = worker.places[worker.current].thread, lane = thread % kShimSubgroupSize, first = thread - lane;
  // Two halves in turn: a lane that runs ahead to the next exchange must not overwrite what others still read.
  unsigned char* half = worker.slots.get() + size_t(worker.phase[thread] ^= 1) * kMaxThreads * kShimSlotBytes;
  memcpy(half + size_t(thread) * kShimSlotBytes, bytes, count);
  rendezvous(worker, {kShimSubgroup, line});
  unsigned lanes = worker.count - first < kShimSubgroupSize ? worker.count - first : kShimSubgroupSize;
  return {half + size_t(first) * kShimSlotBytes, lane, lanes};
}

void copy(void* to, const void* from, unsigned bytes) {
  Worker& worker = *self;
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes) {
    std::string size = std::to_string(bytes);
    fail(worker, thread_at(worker, worker.current) + " copies " + size + " bytes that are not aligned to " + size);
  }
  Copies& copies = worker.copies[worker.current];
  copies.pending.push_back({to, from, bytes, copies.group});
  worker.copied = true;
}

void commit() { self->copies[self->current].group++; }

void wait(unsigned pending) {
  Copies& copies = self->copies[self->current];
  auto& all = copies.pending;
  size_t done = 0;
  for (; done < all.size() && all[done].group + pending < copies.group; done++) {
    memcpy(all[done].to, all[done].from, all[done].bytes);
  }
  all.erase(all.begin(), all.begin() + done);
}

void fault(const char* what, int line) {
  Worker& worker = *self;
  fail(worker, thread_at(worker, worker.current) + " " + what + ", line " + std::to_string(line));
}

// Subgroups stay together in both orders.
void set_places(Worker& worker, unsigned count, bool reversed) {
  if (worker.count == count && worker.reversed == reversed) return;
  worker.count = count;
  worker.reversed = reversed;
  for (unsigned i = 0; i < count; i++) {
    Place& place = worker.places[i];
    place.thread = reversed ? count - 1 - i : i;
    place.begins = i == 0 || place.thread / kShimSubgroupSize != worker.places[i - 1].thread / kShimSubgroupSize;
  }
}

void check_shared(Worker& worker) {
  const unsigned char* guard = static_cast<unsigned char*>(worker.block.shared) + worker.launch->shared_bytes;
  for (size_t i = 0; i < kGuardBytes; i++) {
    if (guard[i] == kGuard) continue;
    worker.error = about(worker) + "wrote past the end of its shared memory";
    return;
  }
}

std::string run_block(Worker& worker, const Launch& launch, size_t index) {
  size_t need = launch.shared_bytes + kGuardBytes + 1024;
  if (need > worker.shared_room) {
    worker.shared.reset(new unsigned char[need]);
    worker.shared_room = need;
  }
  auto aligned = (reinterpret_cast<uintptr_t>(worker.shared.get()) + 1023) & ~uintptr_t(1023);
  bool reversed = reversed_order;
  set_places(worker, launch.threads.x * launch.threads.y * launch.threads.z, reversed);
  if (reversed) index = size_t(launch.grid.x) * launch.grid.y * launch.grid.z - 1 - index;
  worker.launch = &launch;
  worker.block.grid = launch.grid;
  worker.block.threads = launch.threads;
  worker.block.index = {unsigned(index % launch.grid.x), unsigned(index / launch.grid.x % launch.grid.y),
                        unsigned(index / (size_t(launch.grid.x) * launch.grid.y))};
  worker.block.args = launch.args;
  worker.block.shared = reinterpret_cast<void*>(aligned);
  memset(worker.block.shared, kPoison, launch.shared_bytes);
  memset(static_cast<char*>(worker.block.shared) + launch.shared_bytes, kGuard, kGuardBytes);
  worker.current = worker.started = worker.stacks_used = 0;
  for (unsigned i = 0; worker.copied && i < kMaxThreads; i++) worker.copies[i] = {};
  worker.copied = false;
  worker.error.clear();
  start(worker);
  switch_context(&worker.main, &worker.contexts[0]);
  if (worker.error.empty()) check_shared(worker);
  return worker.error;
}

Worker& this_worker() {
  static thread_local std::unique_ptr<Worker> worker;
  if (!worker) {
    worker = std::make_unique<Worker>();
    self = worker.get();
  }
  return *worker;
}

// The blocks of a launch that are still to run, shared by OS threads.
struct Blocks {
  const Launch& launch;
  const size_t count;
  std::atomic<size_t> next{0};
  std::mutex lock{};
  std::string error{};

  void work() {
    Worker& worker = this_worker();
    for (size_t i; (i = next++) < count;) {
      std::string error_here = run_block(worker, launch, i);
      if (error_here.empty()) continue;
      std::lock_guard<std::mutex> hold(lock);
      if (error.empty()) error = error_here;
      next = count;
    }
  }
};

// A second OS thread, for launches that are worth waking it.
class Helper {
 public:
  Helper() : thread_([this] { serve(); }) { thread_.detach(); }

  void offer(Blocks* blocks) {
    {
      std::lock_guard<std::mutex> hold(lock_);
      offered_ = blocks;
    }
    changed_.notify_one();
  }

  // No block may be touched after this returns.
  void withdraw() {
    std::unique_lock<std::mutex> hold(lock_);
    offered_ = nullptr;
    idle_.wait(hold, [this] { return !busy_; });
  }

 private:
  void serve() {
    std::unique_lock<std::mutex> hold(lock_);
    for (;;) {
      changed_.wait(hold, [this] { return offered_ != nullptr; });
      Blocks* blocks = offered_;
      offered_ = nullptr;
      busy_ = true;
      hold.unlock();
      blocks->work();
      hold.lock();
      busy_ = false;
      idle_.notify_all();
    }
  }

  std::mutex lock_;
  std::condition_variable changed_, idle_;
  Blocks* offered_ = nullptr;
  bool busy_ = false;
  std::thread thread_;
};

constexpr auto kWorthWaking = std::chrono::microseconds(100);

}  // namespace

const ShimApi kApi = {barrier,  publish, copy,         commit,       wait, mma_bf16,
                      mma_f16, mma_s8,  simd_mma_f32, simd_mma_f16, fault};

void set_reversed(bool reversed) { reversed_order = reversed; }

std::string run(const Launch& launch) {
  static std::mutex one_launch;  // a device runs one kernel after another
  std::lock_guard<std::mutex> hold(one_launch);
  Blocks blocks{launch, size_t(launch.grid.x) * launch.grid.y * launch.grid.z};
  auto begin = std::chrono::steady_clock::now();
  blocks.error = run_block(this_worker(), launch, blocks.next++);
  auto took = std::chrono::steady_clock::now() - begin;
  if (!blocks.error.empty() || blocks.count == 1) return blocks.error;
  static const bool alone = std::thread::hardware_concurrency() < 2;
  if (alone || took * (blocks.count - 1) < kWorthWaking) {
    blocks.work();
    return blocks.error;
  }
  static Helper* helper = new Helper;  // never destroyed: its thread may still wait when the process ends
  helper->offer(&blocks);
  blocks.work();
  helper->withdraw();
  return blocks.error;
}

}  // namespace shim
