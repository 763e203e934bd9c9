#include "register.h"

namespace normcore::python::torch {

Library::Library() {
  constexpr const char* kNamespace = "normcore";
  check(shim.aoti_torch_library_init_def(kNamespace, kNamespace, 0, &definitions_),
        "define the operators of normcore, which are there already");
  const char* keys[] = {"CPU", cuda::is_built() ? "CUDA" : nullptr};
  for (int i = 0; i < 2 && keys[i]; ++i) {
    check(shim.aoti_torch_library_init_impl(kNamespace, keys[i], kNamespace, 0, &kernels_[i]),
          "take kernels of normcore");
  }
}

void Library::define(const std::string& name, const std::string& schema, Kernel kernel) {
  check(shim.aoti_torch_library_def(definitions_, (name + schema).c_str()),
        ("define normcore::" + name + schema).c_str());
  for (TorchLibraryOpaque* library : kernels_) {
    if (!library) continue;
    check(shim.torch_library_impl(library, name.c_str(), kernel, kAbiVersion),
          ("take the kernel of normcore::" + name).c_str());
  }
}

void define_operators() {
  static Library library;  // torch keeps what it names for ever
  define_methods(library);
  define_special(library);
}

}  // namespace normcore::python::torch

namespace normcore::python {

void register_torch(py::module_& m) {
  m.def(
      "define_torch_operators",
      [](const std::string& cpu_library, const std::string& cuda_library) {
        torch::load_shim(cpu_library, cuda_library);
        torch::define_operators();
      },
      py::arg("cpu_library"), py::arg("cuda_library"),
      "Define torch's operators normcore::*, by the paths of torch's libraries, the second empty "
      "where torch has no CUDA. Once in a process.");
}

}  // namespace normcore::python
