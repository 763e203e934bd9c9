#include "shim.h"

#ifdef _WIN32
#include <windows.h>

#include <filesystem>
#else
#include <dlfcn.h>
#endif

#include <stdexcept>

namespace normcore::python::torch {

Shim shim;

namespace {

#ifdef _WIN32
HMODULE find_library(const std::string& path) {
  return GetModuleHandleW(std::filesystem::path(std::u8string(path.begin(), path.end())).c_str());
}
template <class F>
F* find_symbol(HMODULE library, const char* name) {
  return reinterpret_cast<F*>(reinterpret_cast<void*>(GetProcAddress(library, name)));
}
#else
void* find_library(const std::string& path) {
  return dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
}
template <class F>
F* find_symbol(void* library, const char* name) {
  return reinterpret_cast<F*>(dlsym(library, name));
}
#endif
using Library = decltype(find_library({}));

// A library that is loaded already.
Library loaded(const std::string& path) {
  const Library library = find_library(path);
  if (!library) throw std::runtime_error(path + " is not loaded, expected torch's library");
  return library;
}

template <class F>
void find(Library library, const char* name, F*& function) {
  function = find_symbol<F>(library, name);
  if (!function) {
    throw std::runtime_error(std::string("this torch has no ") + name +
                             ", expected torch 2.10 or later");
  }
}

}  // namespace

void load_shim(const std::string& cpu_library, const std::string& cuda_library) {
  const Library cpu = loaded(cpu_library);
#define NORMCORE_TORCH(name, parameters) find(cpu, #name, shim.name);
#include "functions.def"
#undef NORMCORE_TORCH
#define NORMCORE_TORCH_NUMBER(name) \
  {                                 \
    std::int32_t (*number)();       \
    find(cpu, #name, number);       \
    shim.name = number();           \
  }
#include "numbers.def"
#undef NORMCORE_TORCH_NUMBER
  if (!cuda_library.empty()) {
    find(loaded(cuda_library), "aoti_torch_get_current_cuda_stream",
         shim.aoti_torch_get_current_cuda_stream);
  }
}

void check(std::int32_t code, const char* what) {
  if (code != 0) throw std::runtime_error(std::string("torch could not ") + what);
}

}  // namespace normcore::python::torch
