// Subtract the mean of one pool and divide by its standard deviation. Batch, layer, instance, group
// and RMS normalization are this one formula over different pools.
//   r = 1 / sqrt(var + eps),  y = r * (x - mean)
#pragma once

#include "normcore/method.h"

namespace normcore {

struct EpsParams {
  double eps;
};

// 1 / sqrt(var + eps)
NORMCORE_HD inline double reciprocal_deviation(const Stats& s, double eps) {
  return reciprocal_root(s.var + eps);
}

template <Pool kPool, bool kRaw = false>
struct Standardize {
  static constexpr Pool pools[1] = {kPool};  // a template's arrays say their size
  static constexpr bool raw = kRaw;
  static constexpr bool by_channel = false;
  using Params = EpsParams;
  using ParamsGrad = NoGradients;
  // What a kernel needs of it: there the pool does not matter, and one will do for all.
  using Formula = Standardize<Pool::instance, kRaw>;

  NORMCORE_HD static double rstd(const Stats& s, const Params& p, Index) {
    return reciprocal_deviation(s, p.eps);
  }

  NORMCORE_HD static Coef coefficients(const Stats (&s)[1], const Params& p, Index channel) {
    const double r = rstd(s[0], p, channel);
    return {r, -r * s[0].mean};
  }

  NORMCORE_HD static void pullback(const Stats (&s)[1], const Params& p, Index channel, CoefGrad g,
                                   StatsGrad (&ds)[1], ParamsGrad&) {
    const double r = rstd(s[0], p, channel);
    // dr/dvar = -r^3 / 2, taken in two factors: r^3 alone leaves the range for tiny data.
    ds[0] = {-r * g.b, -0.5 * (r * r) * (r * (g.a - s[0].mean * g.b))};
  }
};

}  // namespace normcore
