// Which table of kernels is in use.
#pragma once

#include "cpu/kernels.h"
#include "normcore/dtype.h"

namespace normcore::cpu {

// What the calling thread computes with: the table of the call that it takes part in.
NORMCORE_API const KernelTable& kernels();
// What set_isa said last, which may change at any time: calls take it when they begin.
const KernelTable& chosen_kernels();

// All threads copy: the yardstick of the benchmarks.
NORMCORE_API void parallel_copy(const void* src, void* dst, Index bytes, bool stream);

template <class C>
const KernelSet<C>& kernel_set(const KernelTable& table, DType dtype) {
  if constexpr (sizeof(C) == 8) {
    return table.f64;
  } else {
    return dtype == DType::kFloat32    ? table.f32
           : dtype == DType::kBFloat16 ? table.bf16
                                       : table.f16;
  }
}

}  // namespace normcore::cpu
