// What local response normalization does to an element, for loops that are no vectors.
#pragma once

#include <cmath>

#include "normcore/export.h"

namespace normcore {

struct ResponseFormula {
  double k, scale, beta;
  double limit;  // of squares in float; negative where nothing stays in its range
};

// d^-beta
template <class C>
NORMCORE_HD inline C inverse_power(C d, C beta) {
  if (beta == C(0.75)) {
    const C r = 1 / std::sqrt(d);
    return r * std::sqrt(r);
  }
  if (beta == C(0.5)) return 1 / std::sqrt(d);
  if (beta == C(1)) return 1 / d;
  return std::pow(d, -beta);
}

}  // namespace normcore
