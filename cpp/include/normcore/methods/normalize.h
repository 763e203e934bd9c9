// Division by the Euclidean norm: y = x / max(sqrt(sum x^2), eps). With eps = 0 zeros give zeros.
#pragma once

#include "normcore/method.h"

namespace normcore {

struct Normalize {
  static constexpr Pool pools[] = {Pool::sample};
  static constexpr bool raw = true;
  static constexpr bool by_channel = false;
  struct Params {
    double eps;
  };
  using ParamsGrad = NoGradients;

  NORMCORE_HD static double rstd(const Stats& s, const Params& p, Index) {
    const double norm = std::sqrt(s.var * s.count);
    const double divisor = norm < p.eps ? p.eps : norm;
    return divisor == 0 ? 0 : 1 / divisor;
  }

  NORMCORE_HD static Coef coefficients(const Stats (&s)[1], const Params& p, Index channel) {
    return {rstd(s[0], p, channel), 0};
  }

  NORMCORE_HD static void pullback(const Stats (&s)[1], const Params& p, Index channel, CoefGrad g,
                                   StatsGrad (&ds)[1], ParamsGrad&) {
    const double r = rstd(s[0], p, channel);
    const bool clamped = std::sqrt(s[0].var * s[0].count) < p.eps;  // divided by a constant
    ds[0] = {0, clamped ? 0 : -0.5 * s[0].count * (r * r) * (r * g.a)};
  }
};

}  // namespace normcore
