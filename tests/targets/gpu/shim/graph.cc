// CUDA graphs for TVM's virtual machine. A graph is a function and the arguments that it was captured with: a replay
// calls it with those again, whatever the caller has in hand by then, as a real graph would.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <map>
#include <mutex>
#include <tuple>
#include <vector>

namespace shim {
namespace {

using namespace tvm;

// The function object, which the entry keeps alive, the number of the entry, and the values of symbolic sizes.
using Key = std::tuple<const ffi::Object*, int64_t, std::vector<int64_t>>;

struct Graph {
  ffi::ObjectRef function;
  ffi::Array<ffi::Any> args;
  ffi::Any result;
};

struct Graphs {
  std::mutex lock;
  std::map<Key, Graph> captured, allocated;
};

Graphs& graphs() {
  static Graphs* graphs = new Graphs;
  return *graphs;
}

ffi::Any invoke(ffi::AnyView machine, const Graph& graph) {
  static const ffi::Function call = ffi::Function::GetGlobalRequired("vm.builtin.invoke_closure");
  std::vector<ffi::AnyView> all{machine, graph.function};
  for (const ffi::Any& arg : graph.args) all.push_back(arg);
  ffi::Any result;
  call.CallPacked(all.data(), int32_t(all.size()), &result);
  return result;
}

Graph* find(std::map<Key, Graph>* all, const Key& key) {
  std::lock_guard<std::mutex> hold(graphs().lock);
  auto found = all->find(key);
  return found == all->end() ? nullptr : &found->second;
}

Graph* keep(std::map<Key, Graph>* all, const Key& key, Graph graph) {
  std::lock_guard<std::mutex> hold(graphs().lock);
  return &(all->insert_or_assign(key, std::move(graph)).first->second);
}

// (machine, function, arguments, entry[, shape]) -> what the function returned when it was captured
void run_or_capture(ffi::PackedArgs args, ffi::Any* result) {
  auto function = args[1].cast<ffi::ObjectRef>();
  Key key{function.get(), args[3].cast<int64_t>(), {}};
  if (args.size() == 5) {
    auto shape = args[4].cast<ffi::Shape>();
    std::get<2>(key).assign(shape.begin(), shape.end());
  }
  Graph* graph = find(&graphs().captured, key);
  if (!graph) graph = keep(&graphs().captured, key, {function, args[2].cast<ffi::Array<ffi::Any>>(), {}});
  graph->result = invoke(args[0], *graph);
  *result = graph->result;
}

// (machine, function, entry) -> what the function returned the first time
void get_cached_alloc(ffi::PackedArgs args, ffi::Any* result) {
  auto function = args[1].cast<ffi::ObjectRef>();
  Key key{function.get(), args[2].cast<int64_t>(), {}};
  Graph* graph = find(&graphs().allocated, key);
  if (!graph) {
    Graph made{function, {}, {}};
    made.result = invoke(args[0], made);
    graph = keep(&graphs().allocated, key, std::move(made));
  }
  *result = graph->result;
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  const std::string prefix = "vm.builtin.cuda_graph.";
  provide(prefix + "run_or_capture", ffi::Function::FromPacked(run_or_capture));
  provide(prefix + "get_cached_alloc", ffi::Function::FromPacked(get_cached_alloc));
}

}  // namespace shim
