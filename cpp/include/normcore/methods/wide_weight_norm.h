// Weight normalization of weights whose squares may leave the range of double, which minds them as
// lp_normalize.h does: weight_norm.h with the norm in place of the mean square.
#pragma once

#include "normcore/method.h"

namespace normcore {

struct WideWeightNorm {
  static constexpr Pool pools[] = {Pool::instance};
  static constexpr bool raw = true;
  static constexpr bool by_channel = false;
  struct Params {
    double eps;
    SpreadKind spread;  // the sum of order 2: the norm
  };
  using ParamsGrad = NoGradients;

  NORMCORE_HD static double rstd(const Stats& s, const Params& p, Index) {
    const double norm = s.var, floor = std::sqrt(p.eps);
    if (floor == 0) return norm == 0 ? 0 : 1 / norm;
    // The larger is taken out of the root, so that no square leaves the range.
    const double large = norm < floor ? floor : norm, small = norm < floor ? norm : floor;
    const double ratio = small / large;
    return reciprocal_root(1 + ratio * ratio) / large;
  }

  NORMCORE_HD static Coef coefficients(const Stats (&s)[1], const Params& p, Index channel) {
    return {rstd(s[0], p, channel), 0};
  }

  NORMCORE_HD static void pullback(const Stats (&s)[1], const Params& p, Index channel, CoefGrad g,
                                   StatsGrad (&ds)[1], ParamsGrad&) {
    const double r = rstd(s[0], p, channel);
    ds[0] = {0, -(s[0].var * r) * r * (r * g.a)};  // dr/dnorm = -norm * r^3
  }
};

}  // namespace normcore
