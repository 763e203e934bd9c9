// Division by the 1-norm, the 2-norm or the largest: y = x / max(norm, eps). With eps = 0 zeros
// give zeros. The norm is what `norm` returns; normalize.h divides by the 2-norm with less work.
#pragma once

#include "normcore/method.h"

namespace normcore {

struct LpNormalize {
  static constexpr Pool pools[] = {Pool::sample};
  static constexpr bool raw = true;
  static constexpr bool by_channel = false;
  struct Params {
    double eps;
    SpreadKind spread;  // the sum of order 1 or 2, or the one largest: the norm itself
  };
  using ParamsGrad = NoGradients;

  NORMCORE_HD static double rstd(const Stats& s, const Params& p, Index) {
    const double divisor = s.var < p.eps ? p.eps : s.var;
    return divisor == 0 ? 0 : 1 / divisor;
  }

  NORMCORE_HD static Coef coefficients(const Stats (&s)[1], const Params& p, Index channel) {
    return {rstd(s[0], p, channel), 0};
  }

  NORMCORE_HD static void pullback(const Stats (&s)[1], const Params& p, Index channel, CoefGrad g,
                                   StatsGrad (&ds)[1], ParamsGrad&) {
    const double r = rstd(s[0], p, channel);
    ds[0] = {0, s[0].var < p.eps ? 0 : -r * (r * g.a)};  // clamped: divided by a constant
  }
};

}  // namespace normcore
