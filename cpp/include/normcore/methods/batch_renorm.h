// Batch renormalization (Ioffe 2017): batch statistics, corrected towards the running ones by
// clipped factors that pass no gradient.
//   s = sqrt(var + eps),  r = clip(s / running_std, 1/r_max, r_max),
//   d = clip((mean - running_mean) / running_std, -d_max, d_max),  y = (x - mean) / s * r + d
#pragma once

#include "normcore/methods/standardize.h"

namespace normcore {

struct BatchRenorm {
  // The variance of the first is the square of the running standard deviation.
  static constexpr Pool pools[] = {Pool::given, Pool::batch};
  static constexpr bool raw = false;
  static constexpr bool by_channel = false;
  struct Params {
    double eps, r_max, d_max;
  };
  using ParamsGrad = NoGradients;

  NORMCORE_HD static double rstd(const Stats& s, const Params& p, Index) {
    return reciprocal_deviation(s, p.eps);
  }
  NORMCORE_HD static double clip(double v, double low, double high) {
    return v < low ? low : v > high ? high : v;
  }

  NORMCORE_HD static Coef coefficients(const Stats (&s)[2], const Params& p, Index channel) {
    const double running_std = std::sqrt(s[0].var), rs = rstd(s[1], p, channel);
    const double r = clip(1 / (rs * running_std), 1 / p.r_max, p.r_max);
    const double d = clip((s[1].mean - s[0].mean) / running_std, -p.d_max, p.d_max);
    return {r * rs, d - r * rs * s[1].mean};
  }

  NORMCORE_HD static void pullback(const Stats (&s)[2], const Params& p, Index channel, CoefGrad g,
                                   StatsGrad (&ds)[2], ParamsGrad&) {
    const double a = coefficients(s, p, channel).a, rs = rstd(s[1], p, channel);
    ds[1] = {-a * g.b, -0.5 * (rs * rs) * (a * (g.a - s[1].mean * g.b))};
  }
};

}  // namespace normcore
