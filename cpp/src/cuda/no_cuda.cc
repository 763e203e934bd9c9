// The build without CUDA.
#include "cuda/device_buffer.h"
#include "cuda/special.h"
#include "cuda/spectral.h"
#include "normcore/errors.h"
#include "pipeline/masked.h"
#include "pipeline/methods.h"

namespace normcore::cuda {

bool is_built() { return false; }
bool is_available() { return false; }

namespace {
[[noreturn]] void refuse() { throw value_error("this build of normcore has no CUDA backend"); }
}  // namespace

std::unique_ptr<Memory> make_memory(const Context&) { refuse(); }
std::shared_ptr<void> allocate_shared(std::size_t, const Context&) { refuse(); }
void order_streams(const Context&, const Context&) { refuse(); }
void copy(void*, const void*, std::size_t, const Context&, bool) { refuse(); }
int device_of(const void*) { refuse(); }
void keep_until_done(std::shared_ptr<void>, const Context&) { refuse(); }
void drop_what_is_done() {}
void wait_for_kept() {}
void empty_cache() {}

void local_response(const ConstTensor&, const ConstTensor&, const Tensor&, const Index*,
                    const Index*, const ResponseFormula&, const Context&) {
  refuse();
}
void mix_forward(const MixingCall&, const Tensor&, const Context&) { refuse(); }
void mix_backward(const MixingCall&, const ConstTensor&, const Tensor&, const MixingTensors&,
                  const Context&) {
  refuse();
}
void local_divisive(const LocalDivisiveCall&, const Context&) { refuse(); }
void masked_moments(const Plan&, DType, const void*, const void*, Memory&, double*, double*,
                    double*) {
  refuse();
}

template <class Method, class C>
void run_forward(const Plan&, DType, const ForwardArgs<C>&, const typename Method::Params&,
                 const Context&, Memory&) {
  refuse();
}
template <class Method, class C>
void run_backward(const Plan&, DType, const BackwardArgs<C>&, const typename Method::Params&,
                  const Context&, Memory&) {
  refuse();
}

template <class C>
const PowerNumbers* power_iteration(const PowerCall<C>&, Memory&) {
  refuse();
}
template <class C>
void divide(const Plan&, DType, const void*, void*, const PowerNumbers*, Memory&) {
  refuse();
}
template <class C>
void spectral_gradient(const Plan&, DType, const void*, const void*, void*, const double*,
                       const C* const (&)[2], double, Memory&) {
  refuse();
}
NORMCORE_INSTANTIATE_SPECTRAL(float)
NORMCORE_INSTANTIATE_SPECTRAL(double)

#define NORMCORE_METHOD(name, type) NORMCORE_INSTANTIATE(type)
#include "normcore/methods.def"
#undef NORMCORE_METHOD

}  // namespace normcore::cuda
