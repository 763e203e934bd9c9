// What local response normalization does to an element:
//   y = x d^-beta,  d = k + scale * (sum of squares of its window)
//   dx = dy d^-beta - 2 beta scale x (sum of dy x d^-beta / d of the windows that it is in)
#pragma once

#include "special/formulas.h"

namespace normcore {

struct ResponseFormula {
  double k, scale, beta;
  double limit;  // of squares in float; negative where nothing stays in its range
};

namespace response {

template <class M>
NORMCORE_FORMULA typename M::Value divisor(typename M::Value squares, typename M::Number scale,
                                           typename M::Number k) {
  const typename M::Value zero{};
  return M::fma(zero + scale, squares, zero + k);
}

// The common exponents need no logarithm.
enum class Exponent { kHalf, kThreeQuarters, kWhole, kAny };

// f.template operator()<the kind of exponent>()
template <class C, class F>
NORMCORE_FORMULA auto with_exponent(C beta, F f) {
  if (beta == C(0.75)) return f.template operator()<Exponent::kThreeQuarters>();
  if (beta == C(0.5)) return f.template operator()<Exponent::kHalf>();
  if (beta == C(1)) return f.template operator()<Exponent::kWhole>();
  return f.template operator()<Exponent::kAny>();
}

// d^-beta and 1 / d
template <class M>
struct Powers {
  typename M::Value power, inverse;
};
template <class M, Exponent kExponent>
NORMCORE_FORMULA Powers<M> powers(typename M::Value d, typename M::Number beta) {
  using C = typename M::Number;
  if constexpr (kExponent == Exponent::kHalf) return {C(1) / M::sqrt(d), C(1) / d};
  if constexpr (kExponent == Exponent::kThreeQuarters) {
    const typename M::Value r = C(1) / M::sqrt(d);
    return {r * M::sqrt(r), C(1) / d};
  }
  if constexpr (kExponent == Exponent::kWhole) return {C(1) / d, C(1) / d};
  return {M::power(d, -beta), C(1) / d};
}

// dy d^-beta, and what it brings to the elements of the window.
template <class M>
struct Terms {
  typename M::Value direct, shared;
};
template <class M>
NORMCORE_FORMULA Terms<M> terms(typename M::Value dy, typename M::Value x, const Powers<M>& of_d) {
  const typename M::Value direct = dy * of_d.power;
  return {direct, direct * x * of_d.inverse};
}
// `factor`: 2 beta scale
template <class M>
NORMCORE_FORMULA typename M::Value grad(typename M::Value direct, typename M::Value x,
                                        typename M::Number factor, typename M::Value sum) {
  return direct - x * factor * sum;
}

}  // namespace response
}  // namespace normcore
