// What divisive norm does to an element of a pixel whose channels are mixed:
//   y = g sgn(x) |x|^p D^(-e),  D = b + W |x|^a
// A slope that is infinite at 0 counts as 0.
#pragma once

#include "special/formulas.h"

namespace normcore::mixing {

// sgn(x) |x|^p
template <class M>
NORMCORE_FORMULA typename M::Value signed_power(typename M::Value x, typename M::Number p) {
  return p == 1 ? x : M::sign(x) * M::power(M::abs(x), p);
}
// D^(-e). Where it is infinite because all there is is 0, it is 0, and so is what it multiplies.
template <class M>
NORMCORE_FORMULA typename M::Value divisor_power(typename M::Value d, typename M::Value x,
                                                 typename M::Number e) {
  using V = typename M::Value;
  const V zero{}, f = M::power(d, -e), at_zero = x == 0 ? zero : f;
  return e > 0 ? (d == 0 ? at_zero : f) : f;
}
template <class M>
NORMCORE_FORMULA typename M::Value y(typename M::Value x, typename M::Value d,
                                     typename M::Value gain, typename M::Number p,
                                     typename M::Number e) {
  return gain * signed_power<M>(x, p) * divisor_power<M>(d, x, e);
}

// What a gradient dy of y brings to D, to the gain, to x where D is held, and to e.
template <class M>
struct Terms {
  using V = typename M::Value;
  using C = typename M::Number;
  V d, gain, x;

  NORMCORE_FORMULA Terms(V dy, V x_, V d_, V gain_, C p, C e) : d_(d_) {
    const V zero{}, factor = divisor_power<M>(d_, x_, e), q = dy * gain_;
    gain = dy * (signed_power<M>(x_, p) * factor);
    q_y_ = gain * gain_;
    const V slope_of_d = -e * (q_y_ / d_);
    d = d_ == 0 ? zero : slope_of_d;
    x = q * factor;
    if (p != 1) {
      const V slope = p * M::power(M::abs(x_), p - 1);
      x *= p < 1 ? (x_ == 0 ? zero : slope) : slope;
    }
  }
  NORMCORE_FORMULA V e() const {
    const V zero{}, term = -(q_y_ * M::log(d_));
    return q_y_ == 0 ? zero : term;  // also where the logarithm is infinite
  }

 private:
  V d_, q_y_;
};

// d|x|^a / dx, `size` being |x|^a
template <class M>
NORMCORE_FORMULA typename M::Value slope(typename M::Value x, typename M::Value size,
                                         typename M::Number a) {
  if (a == 2) return x + x;
  if (a == 1) return M::sign(x);
  const typename M::Value zero{}, ratio = a * (size / x);
  return x == 0 ? zero : ratio;
}
// |x|^a log|x|: its slope along a.
template <class M>
NORMCORE_FORMULA typename M::Value slope_of_exponent(typename M::Value x, typename M::Value size) {
  const typename M::Value zero{}, term = size * M::log(M::abs(x));
  return x == 0 ? zero : term;
}

}  // namespace normcore::mixing
