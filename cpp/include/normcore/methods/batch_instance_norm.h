// Batch-instance normalization (Nam and Kim 2018): a gate per channel between the two.
//   y = rho * (x - mean_B) * r_B + (1 - rho) * (x - mean_I) * r_I,  r = 1 / sqrt(var + eps)
#pragma once

#include "normcore/methods/standardize.h"

namespace normcore {

struct BatchInstanceNorm {
  static constexpr Pool pools[] = {Pool::batch, Pool::instance};
  static constexpr bool raw = false;
  static constexpr bool by_channel = true;
  struct Params {
    double eps;
    const double* rho;  // [C]
  };
  struct ParamsGrad {
    double rho;
  };

  NORMCORE_HD static double rstd(const Stats& s, const Params& p, Index) {
    return reciprocal_deviation(s, p.eps);
  }

  NORMCORE_HD static Coef coefficients(const Stats (&s)[2], const Params& p, Index channel) {
    const double rho = p.rho[channel];
    const double a = rho * rstd(s[0], p, channel), b = (1 - rho) * rstd(s[1], p, channel);
    return {a + b, -(a * s[0].mean + b * s[1].mean)};
  }

  NORMCORE_HD static void pullback(const Stats (&s)[2], const Params& p, Index channel, CoefGrad g,
                                   StatsGrad (&ds)[2], ParamsGrad& dp) {
    const double rho = p.rho[channel], share[2] = {rho, 1 - rho};
    double xhat[2];  // sum over the elements of dy * xhat
    for (int i = 0; i < 2; ++i) {
      const double r = rstd(s[i], p, channel);
      xhat[i] = r * (g.a - s[i].mean * g.b);
      ds[i] = {-share[i] * r * g.b, -0.5 * share[i] * (r * r) * xhat[i]};
    }
    dp.rho = xhat[0] - xhat[1];
  }
};

}  // namespace normcore
