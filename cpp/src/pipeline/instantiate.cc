// Every registered method, instantiated for the CPU.
#include "cpu/backend.h"
#include "cpu/explain.h"
#include "pipeline/backward.h"
#include "pipeline/forward.h"
#include "pipeline/methods.h"

namespace normcore {

std::vector<const char*> method_names() {
  return {
#define NORMCORE_METHOD(name, type) #name,
#include "normcore/methods.def"
#undef NORMCORE_METHOD
  };
}

namespace {

template <class Method>
typename Method::Params prepared(const typename Method::Params& params, Memory& memory) {
  if constexpr (PreparesParams<Method>) {
    double* numbers = memory.take<double>(Method::kPrepared);
    Method::prepare(params, numbers);
    return Method::prepared(params, numbers);
  } else {
    return params;
  }
}

}  // namespace

template <class Method, class C>
void run_forward(const Plan& plan, DType dtype, const ForwardArgs<C>& args,
                 const typename Method::Params& params, const Context& context, Memory& memory) {
  if (context.device == Device::kCuda) {
    return cuda::run_forward<Method, C>(plan, dtype, args, params, context, memory);
  }
  const cpu::Backend<C> backend(plan, dtype, context.threads);
  explain(args.op ? args.op : kMethodName<Method>, plan, backend.threads());
  Forward<Method, cpu::Backend<C>>(backend, args, prepared<Method>(params, memory)).run();
}

template <class Method, class C>
void run_backward(const Plan& plan, DType dtype, const BackwardArgs<C>& args,
                  const typename Method::Params& params, const Context& context, Memory& memory) {
  if (context.device == Device::kCuda) {
    return cuda::run_backward<Method, C>(plan, dtype, args, params, context, memory);
  }
  const cpu::Backend<C> backend(plan, dtype, context.threads);
  explain(kMethodName<Method>, plan, backend.threads());
  Backward<Method, cpu::Backend<C>>(backend, args, prepared<Method>(params, memory)).run();
}

#define NORMCORE_METHOD(name, type) NORMCORE_INSTANTIATE(type)
#include "normcore/methods.def"
#undef NORMCORE_METHOD

}  // namespace normcore
