// The entrance of the CUDA backend: from an element type to the pipeline that was compiled for it.
#include <type_traits>

#include "cuda/elements.cuh"
#include "cuda/launch.h"
#include "pipeline/methods.h"

namespace normcore::cuda {

// In pipeline_<type>.cu.
template <class Method, class T>
void forward_on(const Plan& plan, DeviceMemory& memory, const typename Method::Params& params,
                const ForwardArgs<Compute<T>>& args);
template <class Method, class T>
void backward_on(const Plan& plan, DeviceMemory& memory, const typename Method::Params& params,
                 const BackwardArgs<Compute<T>>& args);

namespace {

// f(a value of the storage type of dtype), whose compute type is C.
template <class C, class F>
void on_elements(DType dtype, F&& f) {
  with_element_type(dtype, [&]<class T>(T v) {
    if constexpr (std::is_same_v<Compute<T>, C>) f(v);
  });
}

}  // namespace

template <class Method, class C>
void run_forward(const Plan& plan, DType dtype, const ForwardArgs<C>& args,
                 const typename Method::Params& params, const Context&, Memory& memory) {
  auto& device = static_cast<DeviceMemory&>(memory);
  on_elements<C>(dtype, [&]<class T>(T) { forward_on<Method, T>(plan, device, params, args); });
}

template <class Method, class C>
void run_backward(const Plan& plan, DType dtype, const BackwardArgs<C>& args,
                  const typename Method::Params& params, const Context&, Memory& memory) {
  auto& device = static_cast<DeviceMemory&>(memory);
  on_elements<C>(dtype, [&]<class T>(T) { backward_on<Method, T>(plan, device, params, args); });
}

#define NORMCORE_METHOD(name, type) NORMCORE_INSTANTIATE(type)
#include "normcore/methods.def"
#undef NORMCORE_METHOD

}  // namespace normcore::cuda
