// The probes of one instruction set: compiled once for each, with NORMCORE_ISA and
// NORMCORE_ISA_NAME, under the rules and flags of the library's kernels.
#include "cpu/drivers.inl"
#include "cpu/vector_math.h"
#include "probes.h"

namespace normcore::probes::NORMCORE_ISA {
namespace {

using namespace cpu::NORMCORE_ISA;

double multiply_adds(Index n, float* out) {
  constexpr int kChains = 10;  // two units, each with results four cycles later, and some more
  F32 sum[kChains];
  for (int i = 0; i < kChains; ++i) sum[i] = splat(float(i));
  const F32 a = splat(0.999f), b = splat(*out);
  for (Index k = 0; k < n; ++k) {
    for (int i = 0; i < kChains; ++i) sum[i] = fma<float>(sum[i], a, b);
  }
  for (int i = 1; i < kChains; ++i) sum[0] += sum[i];
  *out = hsum<float>(sum[0]);
  return 2.0 * kChains * kLanes<float> * double(n);
}

template <class C>
constexpr Elementary<C> kElementary = {
    [](const C* x, C* y, Index n) {
      sweep<false>(y, 0, n, [=](Index i, auto tag) __attribute__((always_inline)) {
        return one(exp<C>(load(x + i, tag)));
      });
    },
    [](const C* x, C* y, Index n) {
      sweep<false>(y, 0, n, [=](Index i, auto tag) __attribute__((always_inline)) {
        return one(log<C>(load(x + i, tag)));
      });
    },
    [](const C* x, C exponent, C* y, Index n) {
      sweep<false>(y, 0, n, [=](Index i, auto tag) __attribute__((always_inline)) {
        return one(pow<C>(load(x + i, tag), exponent));
      });
    },
};

}  // namespace

extern const ProbeTable kTable;
const ProbeTable kTable = {NORMCORE_ISA_NAME, kElementary<float>, kElementary<double>,
                           multiply_adds};

}  // namespace normcore::probes::NORMCORE_ISA
