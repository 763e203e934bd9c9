// torch's stable C interface, as far as the operators of normcore.torch use it. It is declared here
// and found by name in the libraries of the process, so that neither a build nor a wheel of
// normcore needs torch, and one wheel serves every torch from 2.10 on.
// tests/bindings/torch_shim_test.cc compares the declarations with torch's own headers.
#pragma once

#include <cstdint>
#include <string>

struct AtenTensorOpaque;
struct StableListOpaque;
struct TorchLibraryOpaque;

namespace normcore::python::torch {

// An argument or a result of an operator: a bool, an integer, a double or a pointer in its first
// bytes. An optional is a pointer to another one, on the heap, or null.
using Value = std::uint64_t;
using Kernel = void (*)(Value*, std::uint64_t, std::uint64_t);

// The version of torch by whose rules the values are written and read: 2.10.
inline constexpr std::uint64_t kAbiVersion = 0x020a'0000'0000'0000;

struct Shim {
#define NORMCORE_TORCH(name, parameters) std::int32_t(*name) parameters = nullptr;
#include "functions.def"
#undef NORMCORE_TORCH
#define NORMCORE_TORCH_NUMBER(name) std::int32_t name = 0;
#include "numbers.def"
#undef NORMCORE_TORCH_NUMBER
  // Of builds of torch with CUDA.
  std::int32_t (*aoti_torch_get_current_cuda_stream)(std::int32_t, void**) = nullptr;
};
extern Shim shim;

// Fills the table from the libraries of torch that the process has loaded: the path of libtorch_cpu
// and, where there is one, of libtorch_cuda. Throws a std::runtime_error that says what is missing.
void load_shim(const std::string& cpu_library, const std::string& cuda_library);

// For a call of the interface, which says no more than that it failed.
void check(std::int32_t code, const char* what);

// Defines the operators normcore::* and registers their kernels. Once in a process.
void define_operators();

}  // namespace normcore::python::torch
