// The headers of all registered methods, and the way from a MethodId to a type.
#pragma once

#include <type_traits>

#include "normcore/methods/batch_norm.h"
#include "normcore/methods/group_norm.h"
#include "normcore/methods/instance_norm.h"
#include "normcore/methods/layer_norm.h"
#include "normcore/methods/rms_norm.h"
#include "pipeline.h"

namespace normcore {

// f(std::type_identity<M>) for the method's type M.
template <class F>
decltype(auto) with_method(MethodId method, F&& f) {
  switch (method) {
#define NORMCORE_METHOD(name, type) \
  case MethodId::name:              \
    return f(std::type_identity<type>{});
#include "normcore/methods.def"
#undef NORMCORE_METHOD
  }
  __builtin_unreachable();
}

}  // namespace normcore
