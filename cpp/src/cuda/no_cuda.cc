// The build without CUDA.
#include <type_traits>

#include "device_buffer.h"
#include "normcore/errors.h"
#include "pipeline.h"

namespace normcore::cuda {

bool is_built() { return false; }
bool is_available() { return false; }

namespace {
[[noreturn]] void refuse() { throw value_error("this build of normcore has no CUDA backend"); }
}  // namespace

std::unique_ptr<Memory> make_memory(const Context&) { refuse(); }
std::shared_ptr<void> allocate_shared(std::size_t, const Context&) { refuse(); }
void order_streams(const Context&, const Context&) { refuse(); }
int device_of(const void*) { refuse(); }

template <class C>
void run_forward(MethodId, const Plan&, DType, const ForwardArgs<C>&, double, const Context&,
                 Memory&) {
  refuse();
}
template <class C>
void run_backward(MethodId, const Plan&, DType, const BackwardArgs<C>&, double, const Context&,
                  Memory&) {
  refuse();
}

#define NORMCORE_INSTANTIATE(C)                                                               \
  template void run_forward<C>(MethodId, const Plan&, DType, const ForwardArgs<C>&, double,   \
                               const Context&, Memory&);                                      \
  template void run_backward<C>(MethodId, const Plan&, DType, const BackwardArgs<C>&, double, \
                                const Context&, Memory&);
NORMCORE_INSTANTIATE(float)
NORMCORE_INSTANTIATE(double)

}  // namespace normcore::cuda
