// A kernel becomes a function of its block, its thread's index and its parameters; its shared arrays become members of
// a struct, which the engine allocates once a block. The rest of the language is left to macros and types.
#include "rewrite.h"

#include <cctype>
#include <stdexcept>

namespace shim {
namespace {

constexpr const char* kPreludeBegin = "// deepzig device functions";
constexpr const char* kPreludeEnd = "// end of device functions";

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }
bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)); }

size_t skip_space(const std::string& text, size_t at) {
  while (at < text.size() && is_space(text[at])) at++;
  return at;
}

std::string trimmed(const std::string& text) {
  size_t begin = skip_space(text, 0), end = text.size();
  while (end > begin && is_space(text[end - 1])) end--;
  return text.substr(begin, end - begin);
}

// The place after the bracket that closes the one at `open`.
size_t after_closing(const std::string& text, size_t open) {
  int depth = 0;
  for (size_t i = open; i < text.size(); i++) {
    if (text[i] == '(' || text[i] == '{' || text[i] == '[') depth++;
    if ((text[i] == ')' || text[i] == '}' || text[i] == ']') && --depth == 0) return i + 1;
  }
  throw std::runtime_error("the source ends inside of brackets");
}

size_t find_word(const std::string& text, const std::string& word, size_t at = 0) {
  for (; (at = text.find(word, at)) != std::string::npos; at++) {
    size_t end = at + word.size();
    if ((at == 0 || !is_word(text[at - 1])) && (end == text.size() || !is_word(text[end]))) return at;
  }
  return std::string::npos;
}

std::string without_prelude(const std::string& text) {
  size_t begin = text.find(kPreludeBegin);
  if (begin == std::string::npos) return text;
  size_t end = text.find(kPreludeEnd, begin);
  if (end == std::string::npos) throw std::runtime_error("the device functions have no end");
  return text.substr(0, begin) + text.substr(end + std::string(kPreludeEnd).size());
}

std::string without_comments(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (text.compare(i, 2, "//") == 0) {
      i = text.find('\n', i);
    } else if (text.compare(i, 2, "/*") == 0) {
      i = text.find("*/", i);
      if (i != std::string::npos) i += 2;
    } else {
      out += text[i++];
      continue;
    }
    if (i == std::string::npos) break;
  }
  return out;
}

std::string without_includes(const std::string& text) {
  std::string out;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.find('\n', begin);
    end = end == std::string::npos ? text.size() : end + 1;
    std::string line = text.substr(begin, end - begin);
    out += trimmed(line).rfind("#include", 0) == 0 ? "\n" : line;
    begin = end;
  }
  return out;
}

struct Kernel {
  std::string name, parameters, body;
};

struct Shared {
  std::string members, body;
};

// Take the declarations of shared arrays out of a kernel's body: `word type name[size];`
Shared take_shared(const std::string& body, const std::string& word) {
  Shared out;
  size_t done = 0, count = 0;
  for (size_t at = 0; (at = find_word(body, word, at)) != std::string::npos; at++) {
    size_t before = at;
    while (before > 0 && is_space(body[before - 1])) before--;
    bool dynamic = before >= 6 && body.compare(before - 6, 6, "extern") == 0;
    if (dynamic) {
      before -= 6;
      while (before > 0 && is_space(body[before - 1])) before--;
    }
    char last = before ? body[before - 1] : ';';
    size_t end = body.find(';', at);
    if ((last != ';' && last != '{' && last != '}') || end == std::string::npos) continue;  // a type, no declaration
    std::string declared = trimmed(body.substr(at + word.size(), end - at - word.size()));
    size_t bracket = declared.find('[');
    if (bracket == std::string::npos) throw std::runtime_error("a shared variable that is no array: " + declared);
    size_t name_end = bracket, name_begin;
    while (name_end > 0 && is_space(declared[name_end - 1])) name_end--;
    for (name_begin = name_end; name_begin > 0 && is_word(declared[name_begin - 1]);) name_begin--;
    std::string type = declared.substr(0, name_begin), name = declared.substr(name_begin, name_end - name_begin);
    std::string extent = declared.substr(bracket);
    out.body += body.substr(done, before - done);
    if (dynamic) {
      size_t cut = type.rfind(')');  // alignas(...) says nothing new: all of it is aligned
      if (cut != std::string::npos) type = type.substr(cut + 1);
      out.body += " " + type + "* " + name + " = (" + type + "*)shim::dynamic_shared(block_, shared_);";
    } else {
      std::string member = "array" + std::to_string(count++);
      out.members += "  " + type + member + extent + ";\n";
      out.body += " auto& " + name + " = shared_." + member + ";";
    }
    done = at = end + 1;
  }
  out.body += body.substr(done);
  return out;
}

std::string defined(const Kernel& kernel, const std::string& shared_word, const std::string& before) {
  Shared shared = take_shared(kernel.body, shared_word);
  std::string parameters = trimmed(kernel.parameters);
  return "namespace kernel_" + kernel.name + " {\n" + before + "struct Shared {\n" + shared.members + "};\n" +
         "static inline void run(const ShimBlock& block_, ShimDim thread_, Shared& shared_" +
         (parameters.empty() ? "" : ", ") + parameters + ") {\n" + shared.body + "\n}\n" + "SHIM_KERNEL(" +
         kernel.name + ")\n}\n";
}

// The first kernel in a text whose definition begins with `word`: where it begins and ends, and what it is.
// A declaration has an empty body.
struct Found {
  size_t begin, end;
  Kernel kernel;
};

Found find_kernel(const std::string& text, const std::string& word, size_t from) {
  size_t begin = text.find(word, from);
  if (begin == std::string::npos) return {begin, begin, {}};
  size_t at = skip_space(text, begin + word.size());
  for (std::string name;;) {
    size_t start = at;
    while (at < text.size() && is_word(text[at])) at++;
    if (at == start) throw std::runtime_error("a kernel without a name: " + text.substr(begin, 80));
    name = text.substr(start, at - start);
    at = skip_space(text, at);
    if (at >= text.size() || text[at] != '(') continue;  // `void`
    size_t closed = after_closing(text, at), next = skip_space(text, closed);
    std::string inside = text.substr(at + 1, closed - at - 2);
    at = next;
    if (text[next] == ';') return {begin, next + 1, {name, inside, ""}};
    if (text[next] != '{') continue;  // an attribute such as __launch_bounds__(128)
    size_t end = after_closing(text, next);
    return {begin, end, {name, inside, text.substr(next + 1, end - next - 2)}};
  }
}

std::string rewrite_cuda(const std::string& source) {
  const std::string word = "extern \"C\" __global__";
  std::string text = without_comments(without_prelude(source));
  std::string out = "#include \"cuda_shim.h\"\n#include \"dz_shim.h\"\n";
  size_t at = text.find(word);  // before the first kernel are helpers that the headers have
  if (at == std::string::npos) throw std::runtime_error("the source has no kernels");
  for (;;) {
    Found found = find_kernel(text, word, at);
    out += text.substr(at, found.begin - at);
    if (found.begin == std::string::npos) return out;
    if (!found.kernel.body.empty()) {
      found.kernel.body = "const ShimDim &threadIdx = thread_, &blockIdx = block_.index, &blockDim = block_.threads, "
                          "&gridDim = block_.grid;\n" +
                          found.kernel.body;
      out += defined(found.kernel, "__shared__", "");
    }
    at = found.end;
  }
}

const std::pair<const char*, const char*> kPositions[] = {
    {"threadgroup_position_in_grid", "block_.index"},
    {"thread_position_in_threadgroup", "thread_"},
    {"threads_per_threadgroup", "block_.threads"},
    {"threadgroups_per_grid", "block_.grid"},
};

std::string rewrite_msl(const std::string& source) {
  std::string text = without_includes(without_comments(without_prelude(source)));
  Found found = find_kernel(text, "kernel void", 0);
  if (found.begin == std::string::npos) throw std::runtime_error("the source has no kernel");
  std::string parameters, positions;
  const std::string& all = found.kernel.parameters;
  for (size_t at = 0; at < all.size();) {
    size_t open = all.find("[[", at), close = all.find("]]", at);
    if (open == std::string::npos || close == std::string::npos) break;
    std::string declared = trimmed(all.substr(at, open - at)), attribute = trimmed(all.substr(open + 2, close - open - 2));
    if (attribute.rfind("buffer", 0) == 0) {
      parameters += (parameters.empty() ? "" : ", ") + declared;
    } else {
      const char* value = nullptr;
      for (auto& [name, meaning] : kPositions) {
        if (attribute == name) value = meaning;
      }
      if (!value) throw std::runtime_error("a parameter with an unknown attribute: " + attribute);
      size_t name = declared.size();
      while (name > 0 && is_word(declared[name - 1])) name--;
      std::string type = trimmed(declared.substr(0, name));
      positions += "const " + declared + " = shim::Position<" + type + ">::of(" + value + ");\n";
    }
    at = all.find(',', close);
    if (at == std::string::npos) break;
    at++;
  }
  found.kernel.parameters = parameters;
  found.kernel.body = positions + found.kernel.body;
  return defined(found.kernel, "threadgroup", text.substr(0, found.begin));
}

}  // namespace

std::string rewrite(const std::string& kind, const Sources& sources) {
  if (kind == "cuda") return rewrite_cuda(sources.at(0).second);
  std::string out = "#include \"msl_shim.h\"\n#include \"dz_shim.h\"\nnamespace metal {\n";
  for (auto& [name, text] : sources) out += rewrite_msl(text);
  return out + "}\n";
}

}  // namespace shim
