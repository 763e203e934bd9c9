// What is made once for each registered method.
#pragma once

#include "normcore/methods.def"
#include "pipeline/run.h"

namespace normcore {

template <class Method>
inline constexpr const char* kMethodName = nullptr;
#define NORMCORE_METHOD(name, type) \
  template <>                       \
  inline constexpr const char* kMethodName<type> = #name;
#include "normcore/methods.def"
#undef NORMCORE_METHOD

#define NORMCORE_METHOD(name, type) static_assert(check_method<type>());
#include "normcore/methods.def"
#undef NORMCORE_METHOD

// Defines run_forward and run_backward of the current namespace for a method.
#define NORMCORE_INSTANTIATE(type)      \
  NORMCORE_INSTANTIATE_FOR(type, float) \
  NORMCORE_INSTANTIATE_FOR(type, double)
#define NORMCORE_INSTANTIATE_FOR(type, C)                                           \
  template void run_forward<type, C>(const Plan&, DType, const ForwardArgs<C>&,     \
                                     const type::Params&, const Context&, Memory&); \
  template void run_backward<type, C>(const Plan&, DType, const BackwardArgs<C>&,   \
                                      const type::Params&, const Context&, Memory&);

}  // namespace normcore
