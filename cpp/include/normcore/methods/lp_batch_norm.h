// Lp and L1 batch normalization (Hoffer et al. 2018): the scale is the mean p-th power of the
// deviations, or the largest of them.
//   p = 1: s = sqrt(pi / 2) * mean |x - mean| + eps
//   else:  s = (mean |x - mean|^p + eps)^(1/p);   p infinite: s = max |x - mean| + eps
//   y = (x - mean) / s
#pragma once

#include "normcore/method.h"

namespace normcore {

struct LpBatchNorm {
  static constexpr Pool pools[] = {Pool::batch};
  static constexpr bool raw = false;
  static constexpr bool by_channel = false;
  struct Params {
    double eps;
    SpreadKind spread;  // of order p; infinite: the one largest
  };
  using ParamsGrad = NoGradients;

  static constexpr double kNormal = 1.2533141373155003;  // sqrt(pi / 2)

  NORMCORE_HD static bool is_linear(const Params& p) { return p.spread.order <= 1; }
  NORMCORE_HD static double factor(const Params& p) { return p.spread.order == 1 ? kNormal : 1; }

  NORMCORE_HD static double scale(const Stats& s, const Params& p) {
    if (is_linear(p)) return factor(p) * s.var + p.eps;
    // One of the two terms is taken out of the root, so that no power leaves the range.
    const double order = p.spread.order, power = std::pow(s.var, order);
    if (power > p.eps) return s.var * std::pow(1 + p.eps / power, 1 / order);
    return std::pow(p.eps, 1 / order) * std::pow(1 + power / p.eps, 1 / order);
  }
  NORMCORE_HD static double rstd(const Stats& s, const Params& p, Index) { return 1 / scale(s, p); }

  NORMCORE_HD static Coef coefficients(const Stats (&s)[1], const Params& p, Index channel) {
    const double r = rstd(s[0], p, channel);
    return {r, -r * s[0].mean};
  }

  NORMCORE_HD static void pullback(const Stats (&s)[1], const Params& p, Index channel, CoefGrad g,
                                   StatsGrad (&ds)[1], ParamsGrad&) {
    const double r = rstd(s[0], p, channel);
    const double dscale = -r * (r * (g.a - s[0].mean * g.b));
    const double slope = is_linear(p) ? factor(p) : std::pow(s[0].var * r, p.spread.order - 1);
    ds[0] = {-r * g.b, dscale * slope};
  }
};

}  // namespace normcore
