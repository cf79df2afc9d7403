// Generated CUDA C and MSL, rewritten to C++ that the headers in include/ complete.
#pragma once
#include <string>
#include <utility>
#include <vector>

namespace shim {

using Sources = std::vector<std::pair<std::string, std::string>>;  // name -> text

// All kernels of a module of the kind "cuda" or "metal", as one C++ file. Throws std::runtime_error.
std::string rewrite(const std::string& kind, const Sources& sources);

}  // namespace shim
