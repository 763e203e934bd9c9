// Every registered method, instantiated for the CPU.
#include "cpu/backend.h"
#include "methods.h"

namespace normcore {
const MethodInfo& method_info(MethodId method) {
  static const MethodInfo kInfo[] = {
#define NORMCORE_METHOD(name, type) {#name, type::pools, kPoolCount<type>},
#include "normcore/methods.def"
#undef NORMCORE_METHOD
  };
  return kInfo[static_cast<int>(method)];
}

std::vector<const char*> method_names() {
  return {
#define NORMCORE_METHOD(name, type) #name,
#include "normcore/methods.def"
#undef NORMCORE_METHOD
  };
}

template <class C>
void run_forward(MethodId method, const Plan& plan, DType dtype, const ForwardArgs<C>& args,
                 double eps, const Context& context, Memory& memory) {
  if (context.device == Device::kCuda) {
    return cuda::run_forward<C>(method, plan, dtype, args, eps, context, memory);
  }
  const cpu::Backend<C> backend(plan, dtype, context.threads);
  explain(method_info(method).name, plan, backend.threads());
  with_method(method, [&]<class M>(std::type_identity<M>) {
    forward<M>(backend, args, typename M::Params{eps});
  });
}

template <class C>
void run_backward(MethodId method, const Plan& plan, DType dtype, const BackwardArgs<C>& args,
                  double eps, const Context& context, Memory& memory) {
  if (context.device == Device::kCuda) {
    return cuda::run_backward<C>(method, plan, dtype, args, eps, context, memory);
  }
  const cpu::Backend<C> backend(plan, dtype, context.threads);
  explain(method_info(method).name, plan, backend.threads());
  with_method(method, [&]<class M>(std::type_identity<M>) {
    Backward<M, cpu::Backend<C>>(backend, args, typename M::Params{eps}).run();
  });
}

#define NORMCORE_INSTANTIATE(C)                                                               \
  template void run_forward<C>(MethodId, const Plan&, DType, const ForwardArgs<C>&, double,   \
                               const Context&, Memory&);                                      \
  template void run_backward<C>(MethodId, const Plan&, DType, const BackwardArgs<C>&, double, \
                                const Context&, Memory&);
NORMCORE_INSTANTIATE(float)
NORMCORE_INSTANTIATE(double)

}  // namespace normcore
