// Those kernels of x86-64-v4 that are for bfloat16, for CPUs with instructions that convert to it.
#define NORMCORE_ISA v4_bf16
#include "kernel_set.inl"

namespace normcore::cpu::NORMCORE_ISA {

extern const KernelSet<float> kTable;
const KernelSet<float> kTable = kSet<BF16>;

}  // namespace normcore::cpu::NORMCORE_ISA
