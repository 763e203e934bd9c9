// Top-k batch normalization (Hoffer et al. 2018): the scale is the mean of the k largest
// deviations, times what makes it the standard deviation of normal data.
//   s = c * mean of the k largest |x - mean| + eps,  y = (x - mean) / s
//   c = (1 + sqrt(pi * ln 4)) / (2 * sqrt(2 * ln m)) for m elements
#pragma once

#include "normcore/method.h"

namespace normcore {

struct TopKBatchNorm {
  static constexpr Pool pools[] = {Pool::batch};
  static constexpr bool raw = false;
  static constexpr bool by_channel = false;
  struct Params {
    double eps;
    SpreadKind spread;  // of order 0
  };
  using ParamsGrad = NoGradients;

  NORMCORE_HD static double factor(const Stats& s) {
    // 1 + sqrt(pi * ln 4) over 2; of a single element there is no deviation.
    constexpr double kNumerator = 1.5434524642511518;
    return s.count > 1 ? kNumerator / std::sqrt(2 * std::log(s.count)) : 1;
  }
  NORMCORE_HD static double rstd(const Stats& s, const Params& p, Index) {
    return 1 / (factor(s) * s.var + p.eps);
  }

  NORMCORE_HD static Coef coefficients(const Stats (&s)[1], const Params& p, Index channel) {
    const double r = rstd(s[0], p, channel);
    return {r, -r * s[0].mean};
  }

  NORMCORE_HD static void pullback(const Stats (&s)[1], const Params& p, Index channel, CoefGrad g,
                                   StatsGrad (&ds)[1], ParamsGrad&) {
    const double r = rstd(s[0], p, channel);
    ds[0] = {-r * g.b, -r * (r * (g.a - s[0].mean * g.b)) * factor(s[0])};
  }
};

}  // namespace normcore
