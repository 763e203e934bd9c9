// Methods that exist only here, one for each thing that a method may have and a registered one does
// not: an array over the channels under every pool, and a gradient of a parameter of its own with a
// single pool. What runs them, CPU or emulated device, is the caller's. Hunts for a step that takes
// one channel's coefficients for another's, and for gradients that a kernel throws away.
#pragma once

#include <gtest/gtest.h>

#include "normcore/method.h"
#include "pipeline/backward.h"
#include "pipeline/forward.h"
#include "support.h"

namespace normcore::testing {

// y = (x - mean) / sqrt(var + eps_c), eps being learned for each channel, or fixed.
struct EpsGradient {
  double eps;
};
template <Pool kPool, bool kLearned = true>
struct ChannelEps {
  static constexpr Pool pools[1] = {kPool};
  static constexpr bool raw = false;
  static constexpr bool by_channel = true;
  struct Params {
    const double* eps;  // [C]
  };
  using ParamsGrad = std::conditional_t<kLearned, EpsGradient, NoGradients>;

  NORMCORE_HD static double rstd(const Stats& s, const Params& p, Index channel) {
    return 1 / std::sqrt(s.var + p.eps[channel]);
  }
  NORMCORE_HD static Coef coefficients(const Stats (&s)[1], const Params& p, Index channel) {
    const double r = rstd(s[0], p, channel);
    return {r, -r * s[0].mean};
  }
  NORMCORE_HD static void pullback(const Stats (&s)[1], const Params& p, Index channel, CoefGrad g,
                                   StatsGrad (&ds)[1], ParamsGrad& dp) {
    const double r = rstd(s[0], p, channel);
    ds[0] = {-r * g.b, -0.5 * r * r * r * (g.a - s[0].mean * g.b)};
    if constexpr (kLearned) dp.eps = ds[0].var;
  }
};

// y = scale * (x - mean) / sqrt(var + eps), with one learned scale for all channels.
template <Pool kPool>
struct LearnedScale {
  static constexpr Pool pools[1] = {kPool};
  static constexpr bool raw = false;
  static constexpr bool by_channel = false;
  struct Params {
    double eps, scale;
  };
  struct ParamsGrad {
    double scale;
  };

  NORMCORE_HD static double rstd(const Stats& s, const Params& p, Index) {
    return 1 / std::sqrt(s.var + p.eps);
  }
  NORMCORE_HD static Coef coefficients(const Stats (&s)[1], const Params& p, Index channel) {
    const double a = p.scale * rstd(s[0], p, channel);
    return {a, -a * s[0].mean};
  }
  NORMCORE_HD static void pullback(const Stats (&s)[1], const Params& p, Index channel, CoefGrad g,
                                   StatsGrad (&ds)[1], ParamsGrad& dp) {
    const double r = rstd(s[0], p, channel);
    dp.scale = r * (g.a - s[0].mean * g.b);
    ds[0] = {-p.scale * r * g.b, -0.5 * r * r * p.scale * dp.scale};
  }
};

static_assert(check_method<ChannelEps<Pool::group>>());
static_assert(check_method<LearnedScale<Pool::sample>>());

// What the concept refuses.
struct WithoutRstd : LearnedScale<Pool::batch> {
  static double rstd(const Stats&, const Params&) { return 0; }
};
static_assert(!NormMethod<WithoutRstd>);
struct GroupSpread : LearnedScale<Pool::group> {
  struct Params {
    SpreadKind spread;
  };
  static double rstd(const Stats&, const Params&, Index) { return 0; }
  static Coef coefficients(const Stats (&)[1], const Params&, Index) { return {}; }
  static void pullback(const Stats (&)[1], const Params&, Index, CoefGrad, StatsGrad (&)[1],
                       ParamsGrad&) {}
};
static_assert(HasRstd<GroupSpread> && HasPullback<GroupSpread> && !NormMethod<GroupSpread>);
struct CoarseLast : LearnedScale<Pool::batch> {
  static constexpr Pool pools[] = {Pool::instance, Pool::batch};
};
static_assert(!last_pool_is_finest<CoarseLast>());

// ---- a problem [N, C, S] and its answers in double

struct Shape {
  Index n, c, s, groups;
  bool channels_last = false;

  Index at(Index i, Index k, Index j) const { return (i * c + k) * s + j; }
  std::size_t size() const { return std::size_t(n * c * s); }
};

// The number of the pool that (n, c) belongs to.
inline Index pool_of(Pool pool, const Shape& shape, Index i, Index k) {
  switch (pool) {
    case Pool::instance:
      return i * shape.c + k;
    case Pool::batch:
      return k;
    case Pool::sample:
      return i;
    default:
      return i * shape.groups + k / (shape.c / shape.groups);
  }
}

// y of ChannelEps (scale 1) or of LearnedScale (all eps equal).
inline std::vector<double> oracle(Pool pool, const Shape& shape, const std::vector<double>& x,
                                  const std::vector<double>& eps, double scale) {
  const auto pools = std::size_t(shape.n * std::max(shape.c, shape.groups));
  std::vector<double> count(pools), mean(pools), var(pools), y(x.size());
  auto each = [&](auto f) {
    for (Index i = 0; i < shape.n; ++i) {
      for (Index k = 0; k < shape.c; ++k) {
        const auto p = std::size_t(pool_of(pool, shape, i, k));
        for (Index j = 0; j < shape.s; ++j) f(p, k, std::size_t(shape.at(i, k, j)));
      }
    }
  };
  each([&](std::size_t p, Index, std::size_t e) { count[p] += 1, mean[p] += x[e]; });
  for (std::size_t p = 0; p < pools; ++p) mean[p] /= count[p];
  each([&](std::size_t p, Index, std::size_t e) {
    var[p] += (x[e] - mean[p]) * (x[e] - mean[p]) / count[p];
  });
  each([&](std::size_t p, Index k, std::size_t e) {
    y[e] = scale * (x[e] - mean[p]) / std::sqrt(var[p] + eps[std::size_t(k)]);
  });
  return y;
}

// Runs forward and backward of a method in float32 and compares. `Run` has, for a plan,
// forward<Method>(plan, args, params) and backward<Method>(plan, args, params).
template <class Method, class Run>
void check_contract(const Shape& shape, unsigned seed) {
  constexpr Pool kPool = Method::pools[0];
  constexpr bool kEps = Method::by_channel;
  Random random(seed);
  const auto channels = std::size_t(shape.c);
  std::vector<double> eps(channels, 0.25);
  if (kEps) {
    for (double& v : eps) v = 0.05 + 2 * random.uniform();
  }
  const double scale = kEps ? 1 : 1.5;
  typename Method::Params params;
  if constexpr (kEps) {
    params = {eps.data()};
  } else {
    params = {eps[0], scale};
  }

  std::vector<Index> strides = {shape.c * shape.s, shape.s, 1};
  if (shape.channels_last) strides = {shape.c * shape.s, 1, shape.c};
  const std::vector<Index> sizes = {shape.n, shape.c, shape.s};
  constexpr DType kFloat = DType::kFloat32;
  Array x(kFloat, sizes, strides), dy(kFloat, sizes, strides), y(kFloat, sizes, strides),
      dx(kFloat, sizes, strides);
  x.fill(random, 0.5, 1);
  dy.fill(random, 0, 1);

  const Role roles[] = {Role::outer, Role::channel, Role::space};
  const ConstTensor x_view = x.tensor(), dy_view = dy.tensor(), y_view = y.tensor(),
                    dx_view = dx.tensor();
  PlanRequest request{
      .roles = roles, .pools = {extent_of(kPool, Affinity::channel)}, .groups = shape.groups};
  request.set_operands({&x_view, &y_view});
  Plan plan;
  make_plan(request, &plan);
  const auto entries = std::size_t(plan.pool_rows(plan.extent) * plan.pool_cols(plan.extent));
  std::vector<double> mean(entries, NAN), var(entries, NAN), rstd(entries, NAN);
  ForwardArgs<float> forward{};
  forward.x = x.bytes.data();
  forward.y = y.bytes.data();
  forward.mean = mean.data();
  forward.var = var.data();
  forward.rstd = rstd.data();
  Run::template forward<Method>(plan, forward, params);

  const std::vector<double> want = oracle(kPool, shape, x.values, eps, scale);
  // A handful of float roundings of numbers of a few units.
  for (std::size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(y.read(Index(i)), want[i], 1e-5) << i;
  for (std::size_t e = 0; e < entries; ++e) {
    const Index k = kPool == Pool::sample  ? 0
                    : kPool == Pool::group ? Index(e) % shape.groups * (shape.c / shape.groups)
                                           : Index(e) % shape.c;
    ASSERT_NEAR(rstd[e], 1 / std::sqrt(var[e] + eps[std::size_t(k)]), 1e-12) << e;
  }

  request.set_operands({&x_view, &dy_view, &dx_view});
  make_plan(request, &plan);
  for (const bool saved : {false, true}) {
    std::vector<double> dweight(channels, NAN), dbias(channels, NAN), dparams(channels, NAN);
    BackwardArgs<float> backward{};
    backward.x = x.bytes.data();
    backward.dy = dy.bytes.data();
    backward.dx = dx.bytes.data();
    backward.dweight = dweight.data();
    backward.dbias = dbias.data();
    if (kParameterCount<Method> > 0) backward.dparams = dparams.data();
    if (saved) {
      backward.forward_mean = mean.data();
      backward.forward_var = var.data();
    }
    Run::template backward<Method>(plan, backward, params);

    // Central differences of the oracle: their own error is near 1e-9.
    auto loss = [&](const std::vector<double>& at, const std::vector<double>& e, double s) {
      const std::vector<double> out = oracle(kPool, shape, at, e, s);
      double sum = 0;
      for (std::size_t i = 0; i < out.size(); ++i) sum += dy.values[i] * out[i];
      return sum;
    };
    constexpr double kStep = 1e-5;
    // Sums of so many float products of about one.
    const double tolerance = 2e-6 * double(shape.n * shape.s) + 1e-4;
    for (int trial = 0; trial < 20; ++trial) {
      const auto i = std::size_t(random.integer(0, Index(want.size()) - 1));
      std::vector<double> up = x.values, down = x.values;
      up[i] += kStep;
      down[i] -= kStep;
      const double slope = (loss(up, eps, scale) - loss(down, eps, scale)) / (2 * kStep);
      ASSERT_NEAR(dx.read(Index(i)), slope, 2e-5) << i;
    }
    for (std::size_t k = 0; k < channels && kEps && backward.dparams; ++k) {
      std::vector<double> up = eps, down = eps;
      up[k] += kStep;
      down[k] -= kStep;
      const double slope = (loss(x.values, up, 1) - loss(x.values, down, 1)) / (2 * kStep);
      ASSERT_NEAR(dparams[k], slope, tolerance) << k;
    }
    if (!kEps) {
      const double sum = std::accumulate(dparams.begin(), dparams.end(), 0.0);
      ASSERT_NEAR(sum, loss(x.values, eps, scale) / scale, tolerance * double(shape.c));
    }
    for (std::size_t k = 0; k < channels; ++k) {
      double w = 0, b = 0;
      for (Index i = 0; i < shape.n; ++i) {
        for (Index j = 0; j < shape.s; ++j) {
          const auto e = std::size_t(shape.at(i, Index(k), j));
          w += dy.values[e] * want[e];
          b += dy.values[e];
        }
      }
      ASSERT_NEAR(dweight[k], w, tolerance) << k;
      ASSERT_NEAR(dbias[k], b, tolerance) << k;
    }
  }
}

template <class Run>
void check_contracts(const Shape& shape) {
  const unsigned seed = run_seed();
  SCOPED_TRACE("repeat with NORMCORE_TEST_SEED=" + std::to_string(seed));
  check_contract<ChannelEps<Pool::group>, Run>(shape, seed);
  check_contract<ChannelEps<Pool::sample>, Run>(shape, seed + 1);
  check_contract<ChannelEps<Pool::instance>, Run>(shape, seed + 2);
  check_contract<ChannelEps<Pool::batch>, Run>(shape, seed + 3);
  check_contract<ChannelEps<Pool::group, false>, Run>(shape, seed + 4);
  check_contract<ChannelEps<Pool::sample, false>, Run>(shape, seed + 5);
  check_contract<LearnedScale<Pool::group>, Run>(shape, seed + 6);
  check_contract<LearnedScale<Pool::sample>, Run>(shape, seed + 7);
  check_contract<LearnedScale<Pool::instance>, Run>(shape, seed + 8);
  check_contract<LearnedScale<Pool::batch>, Run>(shape, seed + 9);
}

inline constexpr Shape kContractShapes[] = {
    {3, 4, 37, 2}, {2, 6, 5, 3}, {1, 4, 700, 2}, {3, 4, 37, 2, true}, {2, 3, 5000, 3},
};

}  // namespace normcore::testing
