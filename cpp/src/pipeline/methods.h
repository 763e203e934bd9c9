// The headers of all registered methods, and what is made once for each.
#pragma once

#include "normcore/methods/batch_instance_norm.h"
#include "normcore/methods/batch_norm.h"
#include "normcore/methods/batch_renorm.h"
#include "normcore/methods/group_norm.h"
#include "normcore/methods/instance_norm.h"
#include "normcore/methods/layer_norm.h"
#include "normcore/methods/lp_batch_norm.h"
#include "normcore/methods/lp_normalize.h"
#include "normcore/methods/mean_only_batch_norm.h"
#include "normcore/methods/normalize.h"
#include "normcore/methods/rms_norm.h"
#include "normcore/methods/switchable_norm.h"
#include "normcore/methods/topk_batch_norm.h"
#include "normcore/methods/weight_norm.h"
#include "normcore/methods/wide_weight_norm.h"
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
