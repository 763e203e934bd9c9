// The registered methods, and the pipeline by the name of a method: what ops.cc calls.
#pragma once

#include <vector>

#include "backward.h"
#include "forward.h"
#include "memory.h"
#include "normcore/context.h"

namespace normcore {

enum class MethodId {
#define NORMCORE_METHOD(name, type) name,
#include "normcore/methods.def"
#undef NORMCORE_METHOD
};

struct MethodInfo {
  const char* name;
  const Pool* pools;
  int pool_count;
};
const MethodInfo& method_info(MethodId method);
NORMCORE_API std::vector<const char*> method_names();

// C is float or double.
template <class C>
void run_forward(MethodId method, const Plan& plan, DType dtype, const ForwardArgs<C>& args,
                 double eps, const Context& context, Memory& memory);
template <class C>
void run_backward(MethodId method, const Plan& plan, DType dtype, const BackwardArgs<C>& args,
                  double eps, const Context& context, Memory& memory);

// The same on a CUDA device: cuda/backend.cu, or no_cuda.cc, which refuses.
namespace cuda {
template <class C>
void run_forward(MethodId method, const Plan& plan, DType dtype, const ForwardArgs<C>& args,
                 double eps, const Context& context, Memory& memory);
template <class C>
void run_backward(MethodId method, const Plan& plan, DType dtype, const BackwardArgs<C>& args,
                  double eps, const Context& context, Memory& memory);
}  // namespace cuda

}  // namespace normcore
