// What formulas compute with where loops take numbers one by one: see formulas.h.
#pragma once

#include <cmath>

#include "special/formulas.h"

namespace normcore {

template <class C>
struct Numbers {
  using Value = C;
  using Number = C;
  NORMCORE_FORMULA static C fma(C a, C b, C c) { return std::fma(a, b, c); }
  NORMCORE_FORMULA static C sqrt(C v) { return std::sqrt(v); }
  NORMCORE_FORMULA static C log(C v) { return std::log(v); }
  NORMCORE_FORMULA static C abs(C v) { return std::fabs(v); }
  NORMCORE_FORMULA static C sign(C v) { return v > 0 ? 1 : v < 0 ? -1 : 0; }
  // v^exponent, v >= 0
  NORMCORE_HD static C power(C v, C exponent) {
    if (exponent == 0) return 1;
    if (exponent == 1) return v;
    if (exponent == 2) return v * v;
    if (exponent == C(0.5)) return std::sqrt(v);
    if (exponent == C(-0.5)) return 1 / std::sqrt(v);
    if (exponent == -1) return 1 / v;
    return std::pow(v, exponent);
  }
};

}  // namespace normcore
