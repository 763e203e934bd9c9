// From the dtype of a call to the type that its templates compute with.
#pragma once

#include <type_traits>

#include "normcore/dtype.h"

namespace normcore {

// f(std::type_identity<C>) for the compute type of an element type.
template <class F>
void with_compute(DType dtype, F&& f) {
  if (dtype == DType::kFloat64) {
    f(std::type_identity<double>{});
  } else {
    f(std::type_identity<float>{});
  }
}

}  // namespace normcore
