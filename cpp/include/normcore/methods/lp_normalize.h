// Division by the 1-norm or the largest: y = x / max(norm, eps). With eps = 0 zeros give zeros.
#pragma once

#include "normcore/method.h"

namespace normcore {

struct LpNormalize {
  static constexpr Pool pools[] = {Pool::sample};
  static constexpr bool raw = true;
  struct Params {
    double eps;
    SpreadKind spread;  // of order 1, or the one largest
  };
  using ParamsGrad = NoGradients;

  // The sum is the mean times the number.
  NORMCORE_HD static double factor(const Stats& s, const Params& p) {
    return p.spread.order == 1 ? s.count : 1;
  }
  NORMCORE_HD static double rstd(const Stats& s, const Params& p) {
    const double norm = factor(s, p) * s.var;
    const double divisor = norm < p.eps ? p.eps : norm;
    return divisor == 0 ? 0 : 1 / divisor;
  }

  NORMCORE_HD static Coef coefficients(const Stats (&s)[1], const Params& p, Index) {
    return {rstd(s[0], p), 0};
  }

  NORMCORE_HD static void pullback(const Stats (&s)[1], const Params& p, Index, CoefGrad g,
                                   StatsGrad (&ds)[1], ParamsGrad&) {
    const double r = rstd(s[0], p);
    const bool clamped = factor(s[0], p) * s[0].var < p.eps;  // divided by a constant
    ds[0] = {0, clamped ? 0 : -r * (r * g.a) * factor(s[0], p)};
  }
};

}  // namespace normcore
