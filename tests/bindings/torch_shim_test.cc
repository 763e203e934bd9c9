// Compiles where our declarations of torch's stable C interface are those of torch's headers.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <type_traits>

#include "torch/shim.h"

namespace ours = normcore::python::torch;

#define NORMCORE_TORCH(name, parameters) \
  static_assert(std::is_same_v<decltype(&::name), decltype(ours::Shim::name)>, #name);
#include "torch/functions.def"
#undef NORMCORE_TORCH
#define NORMCORE_TORCH_NUMBER(name) \
  static_assert(std::is_same_v<decltype(&::name), std::int32_t (*)()>, #name);
#include "torch/numbers.def"
#undef NORMCORE_TORCH_NUMBER
static_assert(std::is_same_v<decltype(&::aoti_torch_get_current_cuda_stream),
                             decltype(ours::Shim::aoti_torch_get_current_cuda_stream)>);

static_assert(std::is_same_v<StableIValue, ours::Value>);
static_assert(TORCH_TARGET_VERSION == ours::kAbiVersion);
