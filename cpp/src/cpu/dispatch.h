// Which table of kernels is in use.
#pragma once

#include "cpu/kernels.h"
#include "normcore/dtype.h"

namespace normcore::cpu {

const KernelTable& kernels();

// All threads copy: the yardstick of the benchmarks.
void parallel_copy(const void* src, void* dst, Index bytes, bool stream);

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
