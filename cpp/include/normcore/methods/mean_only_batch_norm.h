// Mean-only batch normalization (Salimans and Kingma 2016): y = x - mean, for layers whose weights
// are normalized.
#pragma once

#include "normcore/method.h"

namespace normcore {

struct MeanOnlyBatchNorm {
  static constexpr Pool pools[] = {Pool::batch};
  static constexpr bool raw = false;
  static constexpr bool by_channel = false;
  static constexpr bool shifts_only = true;
  struct Params {};
  using ParamsGrad = NoGradients;

  NORMCORE_HD static double rstd(const Stats&, const Params&, Index) { return 1; }

  NORMCORE_HD static Coef coefficients(const Stats (&s)[1], const Params&, Index) {
    return {1, -s[0].mean};
  }

  NORMCORE_HD static void pullback(const Stats (&)[1], const Params&, Index, CoefGrad g,
                                   StatsGrad (&ds)[1], ParamsGrad&) {
    ds[0] = {-g.b, 0};
  }
};

}  // namespace normcore
