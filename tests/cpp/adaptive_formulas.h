// The formulas of the adaptive methods, of the other scales of batch norm, of weights and of masks
// in plain doubles: short loops, nothing shared with the library.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "normcore/normcore.h"

namespace normcore::testing {

using Vector = std::vector<double>;

inline constexpr double kEps = 1e-3, kMomentum = 0.25, kRMax = 1.2, kDMax = 0.3,
                        kInfinite = INFINITY;
inline constexpr Index kK = 3;

// The arguments of any of the methods, x: [N, C, S]. `first` and `second` are the parameters of the
// method's own; `spread` is the second running buffer.
struct Values {
  Index N, C, S;
  Vector x{}, dy{}, weight{}, bias{}, first{}, second{}, mean{}, spread{}, mask{};

  // Samples from..to.
  Values part(Index from, Index to) const {
    Values v = *this;
    auto cut = [&](Vector& a, Index row) {
      a = Vector(a.begin() + from * row, a.begin() + to * row);
    };
    v.N = to - from;
    cut(v.x, C * S);
    cut(v.dy, C * S);
    cut(v.mask, S);
    return v;
  }
};

// Of channels, samples, or channels of samples.
enum class Of { kChannel, kSample, kCell };
inline std::size_t pool_of(const Values& v, Of of, std::size_t i) {
  const std::size_t cell = i / std::size_t(v.S), C = std::size_t(v.C);
  return of == Of::kChannel ? cell % C : of == Of::kSample ? cell / C : cell;
}
inline std::size_t pools(const Values& v, Of of) {
  return std::size_t(of == Of::kChannel ? v.C : of == Of::kSample ? v.N : v.N * v.C);
}
inline double weight_of(const Values& v, std::size_t i) {
  return v.weight[v.weight.size() == 1 ? 0 : pool_of(v, Of::kChannel, i)];
}
inline double counts(const Values& v, std::size_t i) {
  const std::size_t S = std::size_t(v.S);
  return v.mask[i / S / std::size_t(v.C) * S + i % S];
}

struct Moments {
  Vector count, mean, var;
  Vector squares{};  // the sums of the squared weights
};
inline Moments moments(const Values& v, Of of, bool masked = false) {
  const Vector zero(pools(v, of), 0);
  Moments m{zero, zero, zero, zero};
  auto counting = [&](std::size_t i) { return masked ? counts(v, i) : 1.0; };
  auto pool = [&](std::size_t i) { return pool_of(v, of, i); };
  for (std::size_t i = 0; i < v.x.size(); ++i) {
    m.count[pool(i)] += counting(i);
    m.squares[pool(i)] += counting(i) * counting(i);
  }
  for (std::size_t i = 0; i < v.x.size(); ++i) {
    m.mean[pool(i)] += counting(i) * v.x[i] / m.count[pool(i)];
  }
  for (std::size_t i = 0; i < v.x.size(); ++i) {
    const double d = v.x[i] - m.mean[pool(i)];
    m.var[pool(i)] += counting(i) * d * d / m.count[pool(i)];
  }
  return m;
}
// The |x|, or |x - mean|, of every pool.
inline std::vector<Vector> sizes(const Values& v, Of of, bool centred) {
  std::vector<Vector> result(pools(v, of));
  const Moments m = moments(v, of);
  for (std::size_t i = 0; i < v.x.size(); ++i) {
    const std::size_t p = pool_of(v, of, i);
    result[p].push_back(std::abs(v.x[i] - centred * m.mean[p]));
  }
  return result;
}
inline double mean_power(const Vector& a, double p) {
  double sum = 0;
  for (const double v : a) sum += std::pow(v, p);
  return sum / double(a.size());
}
inline double mean_of_largest(Vector a, Index k) {
  std::sort(a.begin(), a.end(), std::greater<>());
  a.resize(std::min(a.size(), std::size_t(k)));
  return mean_power(a, 1);
}

// y, and by channel the mean and 1 / scale that are reported, and what the running buffers move to;
// absent ones are empty.
struct Result {
  Vector y{}, mean{}, rstd{}, new_mean{}, new_spread{};
};

// y = weight * xhat(i) + bias
template <class F>
Vector affine(const Values& v, F xhat) {
  Vector y;
  for (std::size_t i = 0; i < v.x.size(); ++i) {
    y.push_back(weight_of(v, i) * xhat(i) + v.bias[pool_of(v, Of::kChannel, i)]);
  }
  return y;
}
// y = weight * (x - mean) / scale + bias; in training the buffers take the mean and `spread`.
inline Result scaled(const Values& v, const Vector& mean, const Vector& scale,
                     const Vector& spread = {}) {
  Result r{.mean = mean, .new_mean = spread.empty() ? Vector() : mean, .new_spread = spread};
  for (const double s : scale) r.rstd.push_back(1 / s);
  r.y = affine(v, [&](std::size_t i) {
    const std::size_t k = pool_of(v, Of::kChannel, i);
    return (v.x[i] - mean[k]) / scale[k];
  });
  return r;
}
inline Vector deviations(const Vector& var) {
  Vector s;
  for (const double v : var) s.push_back(std::sqrt(v + kEps));
  return s;
}
inline Vector unbiased(const Moments& m) {
  Vector var = m.var;
  for (std::size_t k = 0; k < var.size(); ++k) {
    const double divisor = m.count[k] - m.squares[k] / m.count[k];
    if (divisor > 0) var[k] *= m.count[k] / divisor;
  }
  return var;
}

inline Result masked_formula(const Values& v) {
  const Moments m = moments(v, Of::kChannel, true);
  return scaled(v, m.mean, deviations(m.var), unbiased(m));
}
// r and d are those of `at`: they pass no gradient.
inline Result renorm_formula(const Values& v, const Values& at) {
  const Moments m = moments(v, Of::kChannel), fixed = moments(at, Of::kChannel);
  const Vector s = deviations(m.var), s0 = deviations(fixed.var);
  Result r = scaled(v, m.mean, s, s);
  r.y = affine(v, [&](std::size_t i) {
    const std::size_t k = pool_of(v, Of::kChannel, i);
    const double by = std::clamp(s0[k] / at.spread[k], 1 / kRMax, kRMax);
    const double d = std::clamp((fixed.mean[k] - at.mean[k]) / at.spread[k], -kDMax, kDMax);
    return (v.x[i] - m.mean[k]) / s[k] * by + d;
  });
  return r;
}
inline Moments batch_moments(const Values& v, bool training) {
  return training ? moments(v, Of::kChannel) : Moments{{}, v.mean, v.spread};
}
inline Result batch_instance_formula(const Values& v, bool training) {
  const Moments batch = batch_moments(v, training), own = moments(v, Of::kCell);
  Result r{.new_mean = training ? batch.mean : Vector(),
           .new_spread = training ? unbiased(batch) : Vector()};
  r.y = affine(v, [&](std::size_t i) {
    const std::size_t k = pool_of(v, Of::kChannel, i), c = pool_of(v, Of::kCell, i);
    return v.first[k] * (v.x[i] - batch.mean[k]) / std::sqrt(batch.var[k] + kEps) +
           (1 - v.first[k]) * (v.x[i] - own.mean[c]) / std::sqrt(own.var[c] + kEps);
  });
  return r;
}
inline Vector softmax(const Vector& logits) {
  Vector w;
  double sum = 0;
  for (const double v : logits) w.push_back(std::exp(v)), sum += w.back();
  for (double& v : w) v /= sum;
  return w;
}
inline Result switchable_formula(const Values& v, bool training) {
  const Moments batch = batch_moments(v, training), layer = moments(v, Of::kSample),
                own = moments(v, Of::kCell);
  const Vector w = softmax(v.first), u = softmax(v.second);
  Result r{.new_mean = training ? batch.mean : Vector(),
           .new_spread = training ? batch.var : Vector()};
  r.y = affine(v, [&](std::size_t i) {
    const std::size_t k = pool_of(v, Of::kChannel, i), c = pool_of(v, Of::kCell, i),
                      n = pool_of(v, Of::kSample, i);
    const double mean = w[0] * own.mean[c] + w[1] * layer.mean[n] + w[2] * batch.mean[k];
    const double var = u[0] * own.var[c] + u[1] * layer.var[n] + u[2] * batch.var[k];
    return (v.x[i] - mean) / std::sqrt(var + kEps);
  });
  return r;
}
inline Result mean_only_formula(const Values& v, bool training) {
  const Vector mean = batch_moments(v, training).mean, one(std::size_t(v.C), 1);
  Result r{.mean = mean, .rstd = one, .new_mean = training ? mean : Vector()};
  for (std::size_t i = 0; i < v.x.size(); ++i) {
    const std::size_t k = pool_of(v, Of::kChannel, i);
    r.y.push_back(v.x[i] - mean[k] + v.bias[k]);
  }
  return r;
}
template <class F>  // of the deviations of a channel
Result other_scale(const Values& v, F scale_of) {
  Vector scale;
  for (const Vector& a : sizes(v, Of::kChannel, true)) scale.push_back(scale_of(a));
  return scaled(v, moments(v, Of::kChannel).mean, scale, scale);
}
inline double lp_scale(const Vector& a, double p) {
  if (p == 1) return std::sqrt(std::acos(0.0)) * mean_power(a, 1) + kEps;
  return p == kInfinite ? mean_of_largest(a, 1) + kEps : std::pow(mean_power(a, p) + kEps, 1 / p);
}
inline double topk_scale(const Vector& a) {
  const double pi = std::acos(-1.0), n = double(a.size());
  const double c = (1 + std::sqrt(pi * std::log(4.0))) / (2 * std::sqrt(2 * std::log(n)));
  return c * mean_of_largest(a, kK) + kEps;
}
template <class F>  // of the |x| of a pool
Result divided(const Values& v, Of of, F divisor_of) {
  Vector divisor;
  for (const Vector& a : sizes(v, of, false)) divisor.push_back(divisor_of(a));
  Result r;
  for (std::size_t i = 0; i < v.x.size(); ++i) r.y.push_back(v.x[i] / divisor[pool_of(v, of, i)]);
  return r;
}
inline double norm(const Vector& a, double ord) {
  return ord == kInfinite ? mean_of_largest(a, 1)
                          : std::pow(mean_power(a, ord) * double(a.size()), 1 / ord);
}
inline Result weight_norm_formula(const Values& v, bool whole) {
  double all = 0;
  for (const double x : v.x) all += x * x;
  Result r = divided(v, Of::kChannel,
                     [&](const Vector& a) { return whole ? std::sqrt(all) : norm(a, 2); });
  for (std::size_t i = 0; i < r.y.size(); ++i) r.y[i] *= weight_of(v, i);
  return r;
}

}  // namespace normcore::testing
