// Switchable normalization (Luo et al. 2019): mean and variance are mixtures of those of instance,
// layer and batch, with learned weights (two softmaxes of three).
//   mean = sum_k w_k mean_k,  var = sum_k v_k var_k,  y = (x - mean) / sqrt(var + eps)
#pragma once

#include "normcore/methods/standardize.h"

namespace normcore {

struct SwitchableNorm {
  static constexpr Pool pools[] = {Pool::batch, Pool::sample, Pool::instance};
  static constexpr bool raw = false;
  static constexpr bool by_channel = false;
  struct Params {
    double eps;
    const double* mean_weights;  // [3]: instance, layer, batch; logits until they are prepared
    const double* var_weights;
  };
  struct ParamsGrad {
    double mean_logits[3], var_logits[3];  // through the softmax
  };

  NORMCORE_HD static double rstd(const Stats& s, const Params& p, Index) {
    return reciprocal_deviation(s, p.eps);
  }
  // The weights of three logits; subtracting the largest keeps exp in range.
  NORMCORE_HD static void softmax(const double* logits, double* weights) {
    double largest = logits[0], sum = 0;
    for (int k = 1; k < 3; ++k) largest = logits[k] > largest ? logits[k] : largest;
    for (int k = 0; k < 3; ++k) sum += weights[k] = std::exp(logits[k] - largest);
    for (int k = 0; k < 3; ++k) weights[k] /= sum;
  }
  static constexpr int kPrepared = 6;
  NORMCORE_HD static void prepare(const Params& p, double* weights) {
    softmax(p.mean_weights, weights);
    softmax(p.var_weights, weights + 3);
  }
  static Params prepared(const Params& p, const double* weights) {
    return {p.eps, weights, weights + 3};
  }

  // The weights run over the pools from the last to the first.
  NORMCORE_HD static Stats mix(const Stats (&s)[3], const Params& p) {
    Stats m{0, 0, s[2].count};
    for (int k = 0; k < 3; ++k) {
      m.mean += p.mean_weights[k] * s[2 - k].mean;
      m.var += p.var_weights[k] * s[2 - k].var;
    }
    return m;
  }

  NORMCORE_HD static Coef coefficients(const Stats (&s)[3], const Params& p, Index channel) {
    const Stats m = mix(s, p);
    const double r = rstd(m, p, channel);
    return {r, -r * m.mean};
  }

  NORMCORE_HD static void pullback(const Stats (&s)[3], const Params& p, Index channel, CoefGrad g,
                                   StatsGrad (&ds)[3], ParamsGrad& dp) {
    const Stats m = mix(s, p);
    const double r = rstd(m, p, channel);
    const double dmean = -r * g.b, dvar = -0.5 * (r * r) * (r * (g.a - m.mean * g.b));
    for (int k = 0; k < 3; ++k) {
      const Stats& pool = s[2 - k];
      ds[2 - k] = {p.mean_weights[k] * dmean, p.var_weights[k] * dvar};
      dp.mean_logits[k] = p.mean_weights[k] * dmean * (pool.mean - m.mean);
      dp.var_logits[k] = p.var_weights[k] * dvar * (pool.var - m.var);
    }
  }
};

}  // namespace normcore
