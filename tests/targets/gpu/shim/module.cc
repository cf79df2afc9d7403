// Loads the device code that an artifact embeds: reads TVM's blob, has the kernels compiled, and launches them.
#include <dlfcn.h>
#include <tvm/ffi/cast.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "device.h"
#include "engine.h"
#include "rewrite.h"

#ifndef SHIM_COMPILER
#error "SHIM_COMPILER is the command that compiles C++ to a shared library, but for the two files"
#endif
#ifndef SHIM_CHECKED
#error "SHIM_CHECKED is what is added to the command to compile kernels that check what they do"
#endif
#ifndef SHIM_CACHE
#error "SHIM_CACHE is the folder where compiled kernels are kept"
#endif

namespace shim {
namespace {

using namespace tvm;

struct Blob {
  const char* at;
  const char* end;

  template <class T>
  void read(T* out, size_t count) {
    if (size_t(end - at) / sizeof(T) < count) TVM_FFI_THROW(RuntimeError) << "the device module is truncated";
    memcpy(static_cast<void*>(out), at, count * sizeof(T));
    at += count * sizeof(T);
  }
  size_t size() {
    uint64_t value;
    read(&value, 1);
    return value;
  }
  std::string string() {
    std::string text(std::min(size(), size_t(end - at)), 0);
    read(&text[0], text.size());
    return text;
  }
};

struct Function {
  std::string name;
  std::vector<DLDataType> types;
  std::vector<unsigned> dimensions;  // of launch arguments: 0-2 of the grid, 3-5 of a block
  bool dynamic_shared = false;       // the last launch argument
  ShimKernel kernel;
};

// FNV-1a
uint64_t hash(const std::string& text, uint64_t value) {
  for (unsigned char c : text) value = (value ^ c) * 0x100000001b3;
  return value;
}

std::string contents(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Whether kernels are compiled so that they check alignments and the indices of arrays.
std::atomic<bool> checked{false};

// The compiled form of a C++ source; a source is compiled once, whatever process asks.
void* compiled(const std::string& source) {
  const std::string command = SHIM_COMPILER, more = checked ? SHIM_CHECKED : "";
  char name[40];
  snprintf(name, sizeof name, "/%016llx%016llx", (unsigned long long)hash(command + more + source, 0xcbf29ce484222325),
           (unsigned long long)hash(source + command + more, 0x9ae16a3b2f90404f));
  std::string base = SHIM_CACHE + std::string(name), library = base + ".so";
  if (access(library.c_str(), R_OK)) {
    std::string mine = base + "." + std::to_string(getpid());
    std::ofstream(mine + ".cc") << source;
    std::string all = command + " '" + mine + ".cc' " + more + " -o '" + mine + ".so' 2> '" + mine + ".log'";
    if (system(all.c_str())) {
      TVM_FFI_THROW(RuntimeError) << "the kernels don't compile: " << all << "\n" << contents(mine + ".log");
    }
    unlink((mine + ".log").c_str());
    rename((mine + ".cc").c_str(), (base + ".cc").c_str());
    rename((mine + ".so").c_str(), library.c_str());
  }
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) TVM_FFI_THROW(RuntimeError) << dlerror();
  return handle;
}

template <class T>
T* symbol(void* library, const std::string& name) {
  void* found = dlsym(library, name.c_str());
  if (!found) TVM_FFI_THROW(RuntimeError) << dlerror();
  return static_cast<T*>(found);
}

// A scalar as the kernel's parameter has it.
uint64_t scalar(const TVMFFIAny& value, DLDataType type) {
  uint64_t bits = 0;
  if (type.code == kDLFloat && type.bits == 32) {
    float narrow = static_cast<float>(value.v_float64);
    memcpy(&bits, &narrow, 4);
  } else {
    memcpy(&bits, &value.v_int64, 8);  // the low bytes of narrower integers come first
  }
  return bits;
}

class Module final : public ffi::ModuleObj {
 public:
  explicit Module(const Limits& limits) : limits_(limits) {}

  const char* kind() const final { return limits_.kind; }
  int GetPropertyMask() const final { return ffi::Module::kRunnable; }

  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    auto found = functions_.find(std::string(name));
    if (found == functions_.end()) return std::nullopt;
    auto self = ffi::GetRef<ffi::Module>(this);
    const Function* function = &found->second;
    return ffi::Function::FromPacked(
        [this, self, function](ffi::PackedArgs args, ffi::Any*) { this->launch(*function, args); });
  }

  void load(const ffi::Bytes& bytes) {
    Blob blob{bytes.data(), bytes.data() + bytes.size()};
    std::string format = blob.string();
    for (size_t left = blob.size(); left; left--) read_function(&blob);
    Sources sources;
    bool whole = std::string(limits_.kind) == "cuda";  // else one source a kernel
    for (size_t left = whole ? 1 : blob.size(); left; left--) {
      std::string name = whole ? "" : blob.string();
      sources.emplace_back(name, blob.string());
    }
    for (auto& [name, text] : sources) {
      if (text.find("void") == std::string::npos || text.find('\0') != std::string::npos) {
        TVM_FFI_THROW(RuntimeError) << "the software GPU needs source text, the module has " << format;
      }
    }
    std::string source;
    try {
      source = rewrite(limits_.kind, sources);
    } catch (const std::runtime_error& error) {
      TVM_FFI_THROW(RuntimeError) << error.what();
    }
    void* library = compiled(source);
    *symbol<const ShimApi*>(library, "shim_api") = &kApi;
    for (auto& [name, function] : functions_) {
      function.kernel = *symbol<const ShimKernel>(library, "shim_kernel_" + name);
      if (function.kernel.shared_bytes > limits_.static_shared) {
        TVM_FFI_THROW(RuntimeError) << "kernel " << name << " has " << function.kernel.shared_bytes
                                    << " bytes of shared memory, of " << limits_.static_shared;
      }
    }
  }

 private:
  void read_function(Blob* blob) {
    std::string key = blob->string();
    Function function;
    function.name = blob->string();
    function.types.resize(std::min(blob->size(), size_t(1) << 16));
    blob->read(function.types.data(), function.types.size());
    for (size_t left = blob->size(); left; left--) {
      std::string tag = blob->string();
      if (tag == "tirx.use_dyn_shared_memory") {
        function.dynamic_shared = true;
      } else if (tag.rfind("blockIdx.", 0) == 0 || tag.rfind("threadIdx.", 0) == 0) {
        function.dimensions.push_back((tag[0] == 't' ? 3 : 0) + (tag.back() - 'x'));
      } else {
        TVM_FFI_THROW(RuntimeError) << "kernel " << key << " is launched with " << tag;
      }
    }
    std::vector<int32_t> extra(std::min(blob->size(), size_t(1) << 16));
    blob->read(extra.data(), extra.size());
    functions_[key] = function;
  }

  void launch(const Function& function, ffi::PackedArgs packed) const {
    auto raw = reinterpret_cast<const TVMFFIAny*>(packed.data());
    size_t count = function.types.size();
    std::vector<uint64_t> values(count);
    std::vector<void*> args;
    bool one_struct = std::string(limits_.kind) == "metal";  // scalars are fields of 8 bytes of the last argument
    bool scalars = false;
    for (size_t i = 0; i < count; i++) {
      bool pointer = function.types[i].code == kDLOpaqueHandle;
      values[i] = pointer ? reinterpret_cast<uint64_t>(raw[i].v_ptr) : scalar(raw[i], function.types[i]);
      if (pointer || !one_struct || !scalars) args.push_back(&values[i]);
      scalars |= !pointer;
    }
    unsigned size[6] = {1, 1, 1, 1, 1, 1};
    for (size_t i = 0; i < function.dimensions.size(); i++) {
      int64_t given = raw[count + i].v_int64;
      if (given > 0) size[function.dimensions[i]] = given;  // as TVM's runtimes do: at least one
    }
    Launch launch{function.name, function.kernel, {size[0], size[1], size[2]}, {size[3], size[4], size[5]}, args.data(), 0};
    launch.shared_bytes = function.kernel.shared_bytes;
    if (function.dynamic_shared) {
      size_t begin = (launch.shared_bytes + 1023) & ~size_t(1023);
      launch.shared_bytes = begin + raw[count + function.dimensions.size()].v_int64;
    }
    size_t threads = size_t(size[3]) * size[4] * size[5];
    if (threads > limits_.threads || launch.shared_bytes > limits_.shared) {
      TVM_FFI_THROW(RuntimeError) << "kernel " << function.name << " wants " << threads << " threads and "
                                  << launch.shared_bytes << " bytes of shared memory a block, of " << limits_.threads
                                  << " and " << limits_.shared;
    }
    std::string error = run(launch);
    if (!error.empty()) TVM_FFI_THROW(RuntimeError) << error;
  }

  const Limits& limits_;
  std::map<std::string, Function> functions_;
};

template <int I>
ffi::Module load(const ffi::Bytes& bytes) {
  auto module = ffi::make_object<Module>(kLimits[I]);
  module->load(bytes);
  return ffi::Module(module);
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  // How kernels run, and how those are compiled that are loaded after it.
  provide("deepzig.shim.reversed", ffi::Function::FromTyped([](bool on) { set_reversed(on); }));
  provide("deepzig.shim.checked", ffi::Function::FromTyped([](bool on) { checked = on; }));
  provide("ffi.Module.load_from_bytes.cuda", ffi::Function::FromTyped(load<0>));
  provide("ffi.Module.load_from_bytes.metal", ffi::Function::FromTyped(load<1>));
}

}  // namespace shim
