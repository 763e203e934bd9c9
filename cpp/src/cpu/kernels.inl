// The table of kernels, written once and compiled once per ISA by kernels_<isa>.cc, which defines
// NORMCORE_ISA and NORMCORE_ISA_NAME.
#include "kernel_set.inl"

namespace normcore::cpu::NORMCORE_ISA {

extern const KernelTable kTable;
const KernelTable kTable = {
    NORMCORE_ISA_NAME, kBytes,    kSet<float>, kSet<BF16>,     kSet<F16>,       kSet<double>, merge,
    join_moments,      join_sums, copy,        kMixing<float>, kMixing<double>,
};

}  // namespace normcore::cpu::NORMCORE_ISA
