// Weight normalization (Salimans and Kingma 2016): w = g * v / sqrt(sum v^2 + eps), the sum being
// over a slice of v with one g. A slice of zeros gives zeros, and gradients of zero. The pipeline
// folds g in as the weight of a channel.
#pragma once

#include "normcore/method.h"

namespace normcore {

struct WeightNorm {
  static constexpr Pool pools[] = {Pool::instance};
  static constexpr bool raw = true;
  static constexpr bool by_channel = false;
  struct Params {
    double eps;
  };
  using ParamsGrad = NoGradients;

  NORMCORE_HD static double rstd(const Stats& s, const Params& p, Index) {
    const double squares = s.var * s.count + p.eps;
    return squares > 0 ? reciprocal_root(squares) : squares == 0 ? 0 : squares;  // NaN stays NaN
  }

  NORMCORE_HD static Coef coefficients(const Stats (&s)[1], const Params& p, Index channel) {
    return {rstd(s[0], p, channel), 0};
  }

  NORMCORE_HD static void pullback(const Stats (&s)[1], const Params& p, Index channel, CoefGrad g,
                                   StatsGrad (&ds)[1], ParamsGrad&) {
    const double r = rstd(s[0], p, channel);
    ds[0] = {0, -0.5 * s[0].count * (r * r) * (r * g.a)};
  }
};

}  // namespace normcore
