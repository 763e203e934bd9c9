// What local divisive normalization does to an element, u = (x - mean of a window) * unit:
//   y = weight u r + bias,  r = ((sigma unit)^2 + variance unit^2)^(-1/2)
// `unit`, a power of two, keeps all of it near 1 where numbers are narrow.
#pragma once

#include "special/formulas.h"

namespace normcore::divisive {

template <class M>
struct Divided {
  using V = typename M::Value;
  V u, sigma, inverse;  // sigma times the unit; r

  // variance: times the unit's square
  NORMCORE_FORMULA Divided(V u_, V sigma_, V variance) : u(u_), sigma(sigma_) {
    const V zero{}, s = M::fma(sigma, sigma, variance);
    // Where nothing varies and sigma is 0, 0 and not 0 / 0; a NaN stays.
    inverse = s == 0 ? zero : typename M::Number(1) / M::sqrt(s);
  }
  NORMCORE_FORMULA V y(V weight, V bias) const { return M::fma(weight * inverse, u, bias); }
  // What dy brings to u where r is held.
  NORMCORE_FORMULA V direct(V dy, V weight) const { return dy * weight * inverse; }
  // And to s, times -2.
  NORMCORE_FORMULA V slope(V of_direct) const { return of_direct * (u * inverse) * inverse; }
  // Gradients of the parameters; sigma's over its unit.
  NORMCORE_FORMULA V dweight(V dy) const { return dy * (u * inverse); }
  NORMCORE_FORMULA V dsigma(V of_slope) const { return -(of_slope * sigma); }
};

}  // namespace normcore::divisive
