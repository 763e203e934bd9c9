// The methods of adaptive_formulas.h beside the operations of the library: one table, and the
// arrays of a call, in layouts that are each another.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "adaptive_formulas.h"
#include "support.h"

namespace normcore::testing {

struct Call;

struct Method {
  std::string name;
  // Parameters: w(eight), one g, b(ias), r(ho), l(ogits).
  std::string takes;
  // Statistics: by channel, by (N, C) without mean and rstd, or none.
  enum { kNoStats, kByChannel, kByCell } stats;
  bool smooth;
  std::function<Result(const Values& v, const Values& at)> formula;
  std::function<void(const Call&, const StatsOut&, const Context&)> forward;
  std::function<void(const Call&, const SavedStats&, const Context&)> backward;

  bool has(char c) const { return takes.find(c) != std::string::npos; }
};
inline void PrintTo(const Method& m, std::ostream* out) { *out << m.name; }

// Arrays of one call. Each layout has another order of the axes, gaps, or a negative stride.
struct Call {
  const Method& method;
  DType dtype;
  int layout;
  Index N, C, S;
  Array x, dy, y, dx, mask, weight, bias, first, second, running_mean, running_spread;
  Array dweight, dbias, dfirst, dsecond, mean, rstd, pooled, given;
  bool in_place = false;  // y over x, dx over dy
  bool bare = false;      // neither weight nor bias, and no gradients but dx

  Call(const Method& m, DType t, int layout_in, const Values& v)
      : method(m),
        dtype(t),
        layout(layout_in),
        N(v.N),
        C(v.C),
        S(v.S),
        x(like_x(0)),
        dy(like_x(1)),
        y(like_x(2)),
        dx(like_x(0)),
        mask(statistics_dtype(t), {N, S},
             layout % 2 ? std::vector<Index>{1, N + 1} : std::vector<Index>{S, 1}),
        weight(vector(v.weight)),
        bias(vector(v.bias)),
        first(vector(v.first)),
        second(vector(v.second)),
        running_mean(vector(v.mean)),
        running_spread(vector(v.spread)),
        dweight(vector(v.weight)),
        dbias(vector(v.bias)),
        dfirst(vector(v.first)),
        dsecond(vector(v.second)),
        mean(vector(v.mean)),
        rstd(vector(v.mean)),
        pooled(DType::kFloat64,
               m.stats == Method::kByCell ? std::vector<Index>{N, C, 2} : std::vector<Index>{C, 2}),
        given(DType::kFloat64, {C, 2}, {2 + layout, 1}) {
    x.assign(v.x), dy.assign(v.dy), mask.assign(v.mask), weight.assign(v.weight);
    bias.assign(v.bias), first.assign(v.first), second.assign(v.second);
    running_mean.assign(v.mean), running_spread.assign(v.spread);
  }
  // As rounded.
  Values values() const {
    return {N,
            C,
            S,
            x.values,
            dy.values,
            weight.values,
            bias.values,
            first.values,
            second.values,
            running_mean.values,
            running_spread.values,
            mask.values};
  }
  Array like_x(int shift) const {
    switch ((layout + shift) % 3) {
      case 0:
        return Array(dtype, {N, C, S});
      case 1:
        return Array(dtype, {N, C, S}, {S * C, 1, C});
      default:
        return Array(dtype, {N, C, S}, {-C * (2 * S + 1), 2 * S + 1, 2});
    }
  }
  Array vector(const Vector& v) const {
    const Index strides[] = {1, 2, -3};
    return Array(statistics_dtype(dtype), {Index(v.size())}, {strides[layout % 3]});
  }

  StatsOut stats() const {
    if (method.stats == Method::kByCell)
      return {.pooled = pooled.tensor(), .given = given.tensor()};
    return {mean.tensor(), rstd.tensor(), pooled.tensor(), given.tensor()};
  }
  SavedStats saved() const { return {pooled.tensor(), given.tensor()}; }
  Tensor own(const Array& gradient) const { return bare ? Tensor() : gradient.tensor(); }
  bool wanted(char parameter) const { return method.has(parameter) && !bare; }
  Gradients gradients() const {
    return {in_place ? dy.tensor() : dx.tensor(), wanted('w') ? dweight.tensor() : Tensor(),
            wanted('b') ? dbias.tensor() : Tensor()};
  }
  ConstTensor w() const { return bare ? ConstTensor() : weight.tensor(); }
  ConstTensor b() const { return bare ? ConstTensor() : bias.tensor(); }
  Tensor out() const { return in_place ? x.tensor() : y.tensor(); }
  // With a mean and a second buffer of any name.
  template <class Options>
  Options with_buffers(Buffer Options::* second_buffer, bool training) const {
    Options o;
    o.running_mean = running_mean.tensor();
    o.*second_buffer = running_spread.tensor();
    o.training = training;
    o.momentum = kMomentum;
    o.eps = kEps;
    return o;
  }
  void forward(const StatsOut& s, const Context& c = {}) const { method.forward(*this, s, c); }
  void backward(const SavedStats& s, const Context& c = {}) const { method.backward(*this, s, c); }
};

// ---- the methods

// Forward and backward of an operation on x, weight and bias.
template <class Options>
void add(std::vector<Method>& methods, const std::string& name, bool smooth,
         void (*forward)(const ConstTensor&, const ConstTensor&, const ConstTensor&, const Tensor&,
                         const Options&, const StatsOut&, const Context&),
         void (*backward)(const ConstTensor&, const ConstTensor&, const ConstTensor&,
                          const Gradients&, const Options&, const SavedStats&, const Context&),
         std::function<Options(const Call&)> options,
         std::function<Result(const Values&, const Values&)> formula) {
  methods.push_back({name, "wb", Method::kByChannel, smooth, formula,
                     [=](const Call& c, const StatsOut& s, const Context& context) {
                       forward(c.x.tensor(), c.w(), c.b(), c.out(), options(c), s, context);
                     },
                     [=](const Call& c, const SavedStats& s, const Context& context) {
                       backward(c.dy.tensor(), c.x.tensor(), c.w(), c.gradients(), options(c), s,
                                context);
                     }});
}

inline std::vector<Method> make_methods() {
  std::vector<Method> all;
  for (const bool training : {true, false}) {
    const std::string eval = training ? "" : "_eval";
    auto in_eval = [training](const Values& v, bool squared) {
      return scaled(v, v.mean, squared ? deviations(v.spread) : v.spread);
    };
    add<BatchNormOptions>(
        all, "masked_batch_norm" + eval, true, batch_norm, batch_norm_backward,
        [=](const Call& c) {
          auto o = c.with_buffers(&BatchNormOptions::running_var, training);
          o.mask = c.mask.tensor();
          return o;
        },
        [=](const Values& v, const Values&) {
          return training ? masked_formula(v) : in_eval(v, true);
        });
    add<BatchRenormOptions>(
        all, "batch_renorm" + eval, true, batch_renorm, batch_renorm_backward,
        [=](const Call& c) {
          auto o = c.with_buffers(&BatchRenormOptions::running_std, training);
          o.r_max = kRMax;
          o.d_max = kDMax;
          return o;
        },
        [=](const Values& v, const Values& at) {
          return training ? renorm_formula(v, at) : in_eval(v, false);
        });
    for (const double p : {1.0, 3.0, kInfinite}) {
      add<LpBatchNormOptions>(
          all,
          (p == kInfinite ? "lp_batch_norm_inf" : "lp_batch_norm_" + std::to_string(int(p))) + eval,
          p == 3 || !training, lp_batch_norm, lp_batch_norm_backward,
          [=](const Call& c) {
            auto o = c.with_buffers(&LpBatchNormOptions::running_scale, training);
            o.p = p;
            return o;
          },
          [=](const Values& v, const Values&) {
            if (!training) return in_eval(v, false);
            return other_scale(v, [p](const Vector& a) { return lp_scale(a, p); });
          });
    }
    add<TopKBatchNormOptions>(
        all, "topk_batch_norm" + eval, !training, topk_batch_norm, topk_batch_norm_backward,
        [=](const Call& c) {
          auto o = c.with_buffers(&TopKBatchNormOptions::running_scale, training);
          o.k = kK;
          return o;
        },
        [=](const Values& v, const Values&) {
          return training ? other_scale(v, topk_scale) : in_eval(v, false);
        });
    all.push_back({"mean_only_batch_norm" + eval, "b", Method::kByChannel, true,
                   [=](const Values& v, const Values&) { return mean_only_formula(v, training); },
                   [=](const Call& c, const StatsOut& s, const Context& context) {
                     mean_only_batch_norm(c.x.tensor(), c.b(), c.out(),
                                          {c.running_mean.tensor(), training, kMomentum}, s,
                                          context);
                   },
                   [=](const Call& c, const SavedStats& s, const Context& context) {
                     mean_only_batch_norm_backward(c.dy.tensor(), c.x.tensor(), c.gradients(),
                                                   {c.running_mean.tensor(), training}, s, context);
                   }});
    auto mixed = [=](const Call& c) {
      return c.with_buffers(&BatchInstanceNormOptions::running_var, training);
    };
    all.push_back(
        {"batch_instance_norm" + eval, "wbr", Method::kByCell, true,
         [=](const Values& v, const Values&) { return batch_instance_formula(v, training); },
         [=](const Call& c, const StatsOut& s, const Context& context) {
           batch_instance_norm(c.x.tensor(), c.first.tensor(), c.w(), c.b(), c.out(), mixed(c), s,
                               context);
         },
         [=](const Call& c, const SavedStats& s, const Context& context) {
           batch_instance_norm_backward(c.dy.tensor(), c.x.tensor(), c.first.tensor(), c.w(),
                                        c.gradients(), c.own(c.dfirst), mixed(c), s, context);
         }});
    all.push_back({"switchable_norm" + eval, "wbl", Method::kByCell, true,
                   [=](const Values& v, const Values&) { return switchable_formula(v, training); },
                   [=](const Call& c, const StatsOut& s, const Context& context) {
                     switchable_norm(c.x.tensor(), c.first.tensor(), c.second.tensor(), c.w(),
                                     c.b(), c.out(), mixed(c), s, context);
                   },
                   [=](const Call& c, const SavedStats& s, const Context& context) {
                     switchable_norm_backward(
                         c.dy.tensor(), c.x.tensor(), c.first.tensor(), c.second.tensor(), c.w(),
                         c.gradients(), c.own(c.dfirst), c.own(c.dsecond), mixed(c), s, context);
                   }});
  }
  for (const bool whole : {false, true}) {
    const WeightNormOptions o{whole ? std::optional<int>() : -2};
    all.push_back({whole ? "weight_norm_of_all" : "weight_norm", whole ? "wg" : "w",
                   Method::kNoStats, true,
                   [=](const Values& v, const Values&) { return weight_norm_formula(v, whole); },
                   [=](const Call& c, const StatsOut&, const Context& context) {
                     weight_norm(c.x.tensor(), c.weight.tensor(), c.out(), o, context);
                   },
                   [=](const Call& c, const SavedStats&, const Context& context) {
                     weight_norm_backward(c.dy.tensor(), c.x.tensor(), c.weight.tensor(),
                                          c.gradients().dx, c.dweight.tensor(), o, context);
                   }});
  }
  // Over rows, over samples, and where eps is greater than any norm.
  const std::pair<double, double> orders[] = {{1, kEps}, {2, kEps}, {kInfinite, kEps}, {2, 1e4}};
  for (const auto& [ord, eps] : orders) {
    for (const Of of : {Of::kCell, Of::kSample}) {
      const NormalizeOptions o{ord, of == Of::kCell ? Axes{-1} : Axes{2, -2}, eps};
      all.push_back({"normalize_" + (ord == kInfinite ? "inf" : std::to_string(int(ord))) +
                         (of == Of::kCell ? "" : "_samples") + (eps > 1 ? "_below_eps" : ""),
                     "", Method::kNoStats, ord == 2,
                     [=](const Values& v, const Values&) {
                       return divided(
                           v, of, [=](const Vector& a) { return std::max(norm(a, o.ord), o.eps); });
                     },
                     [=](const Call& c, const StatsOut&, const Context& context) {
                       normalize(c.x.tensor(), c.out(), o, context);
                     },
                     [=](const Call& c, const SavedStats&, const Context& context) {
                       normalize_backward(c.dy.tensor(), c.x.tensor(), c.gradients().dx, o,
                                          context);
                     }});
    }
  }
  return all;
}
inline const std::vector<Method>& methods() {
  static const std::vector<Method> all = make_methods();
  return all;
}

// ---- numbers, and what is expected

class Searching : public ::testing::TestWithParam<Method> {
 protected:
  Random random_{run_seed()};
  ::testing::ScopedTrace trace_{__FILE__, __LINE__,
                                "NORMCORE_TEST_SEED=" + std::to_string(run_seed())};
};
struct Size {
  Index N, C, S;
  bool small() const { return N * C * S < 100; }
};
// The smallest distance of two different sizes in a pool, and of one and zero.
inline double smallest_gap(const Values& v, Of of, bool centred) {
  double gap = INFINITY;
  for (Vector a : sizes(v, of, centred)) {
    a.push_back(0);
    std::sort(a.begin(), a.end());
    for (std::size_t i = 1; i < a.size(); ++i) gap = std::min(gap, a[i] - a[i - 1]);
  }
  return gap;
}

inline constexpr double kStep = 0x1p-13;  // of central differences

// Numbers for any method, with no kink (of |x - mean|, of which is the largest) near a small x.
inline Values draw(Random& random, const Method& m, Size size) {
  auto normal = [&](Index n, double mean, double scale) {
    Vector a(static_cast<std::size_t>(n), 0);
    for (double& v : a) v = mean + scale * random.normal();
    return a;
  };
  const auto [N, C, S] = size;
  Values v{.N = N, .C = C, .S = S};
  do {
    v.x = normal(N * C * S, 1, 1.5);
  } while (size.small() && !m.smooth &&
           std::min(smallest_gap(v, Of::kChannel, true),
                    std::min(smallest_gap(v, Of::kCell, false),
                             smallest_gap(v, Of::kSample, false))) < 8 * kStep);
  v.dy = normal(N * C * S, 0.1, 1);
  v.weight = normal(m.has('g') ? 1 : C, 1, 0.5);
  v.bias = normal(C, 0, 1);
  v.first = normal(m.has('l') ? 3 : C, 0.5, 0.5);
  v.second = normal(3, 0, 1);
  v.mean = normal(C, 1, 0.3);
  v.spread = normal(C, 1.5, 0.3);
  for (Index i = 0; i < N * S; ++i) {
    v.mask.push_back(i < 2 || random.integer(0, 2) ? 0.2 + 3 * random.uniform() : 0);
  }
  return v;
}

inline double largest(const Vector& a) {
  double most = 0;
  for (const double v : a) most = std::max(most, std::abs(v));
  return most;
}
inline void expect_near(const Vector& got, const Vector& want, double tolerance, const char* what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (std::size_t i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(got[i], want[i], tolerance) << what << " at " << i;
  }
}

}  // namespace normcore::testing
