#include "shim.h"

#include <dlfcn.h>

#include <stdexcept>

namespace normcore::python::torch {

Shim shim;

namespace {

// A library that is loaded already.
void* loaded(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (!library) throw std::runtime_error(path + " is not loaded, expected torch's library");
  return library;
}

template <class F>
void find(void* library, const char* name, F*& function) {
  function = reinterpret_cast<F*>(dlsym(library, name));
  if (!function) {
    throw std::runtime_error(std::string("this torch has no ") + name +
                             ", expected torch 2.10 or later");
  }
}

}  // namespace

void load_shim(const std::string& cpu_library, const std::string& cuda_library) {
  void* cpu = loaded(cpu_library);
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
