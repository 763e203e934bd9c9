// The pipeline of every registered method, on the device of a call: what the operations call.
#pragma once

#include <vector>

#include "normcore/context.h"
#include "pipeline/arguments.h"
#include "pipeline/memory.h"

namespace normcore {

NORMCORE_API std::vector<const char*> method_names();

// C is float or double.
template <class Method, class C>
void run_forward(const Plan& plan, DType dtype, const ForwardArgs<C>& args,
                 const typename Method::Params& params, const Context& context, Memory& memory);
template <class Method, class C>
void run_backward(const Plan& plan, DType dtype, const BackwardArgs<C>& args,
                  const typename Method::Params& params, const Context& context, Memory& memory);

// The same on a CUDA device: cuda/backend.cu, or no_cuda.cc, which refuses.
namespace cuda {
template <class Method, class C>
void run_forward(const Plan& plan, DType dtype, const ForwardArgs<C>& args,
                 const typename Method::Params& params, const Context& context, Memory& memory);
template <class Method, class C>
void run_backward(const Plan& plan, DType dtype, const BackwardArgs<C>& args,
                  const typename Method::Params& params, const Context& context, Memory& memory);
}  // namespace cuda

}  // namespace normcore
