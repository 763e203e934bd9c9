// The methods of adaptive_formulas.h beside the operations of the library: one table, and the
// arrays of a call, in layouts that are each another.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "adaptive_formulas.h"
#include "ops/signatures.h"
#include "support.h"

namespace normcore::testing {

struct Call;

struct Method {
  std::string name;
  bool smooth;
  std::function<Result(const Values& v, const Values& at)> formula;
  std::function<void(const Call&, const StatsOut&, const Context&)> forward;
  std::function<void(const Call&, const SavedStats&, const Context&)> backward;
  // Parameters: weight (a single one for all?), bias, and the method's own.
  bool has_weight = false, has_bias = false, one_weight = false;
  std::vector<Own> own{};
  // Statistics: by channel, by (N, C) without mean and rstd, or none.
  enum { kNoStats, kByChannel, kByCell } stats = kNoStats;

  // The shape of one of its own.
  bool logits(std::size_t i) const { return i < own.size() && own[i].shape == OwnShape::logits; }
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
  Tensor wanted(const Array& gradient) const { return bare ? Tensor() : gradient.tensor(); }
  Gradients gradients() const {
    return {in_place ? dy.tensor() : dx.tensor(), method.has_weight ? wanted(dweight) : Tensor(),
            method.has_bias ? wanted(dbias) : Tensor()};
  }
  ConstTensor w() const { return bare ? ConstTensor() : weight.tensor(); }
  ConstTensor b() const { return bare ? ConstTensor() : bias.tensor(); }
  Tensor out() const { return in_place ? x.tensor() : y.tensor(); }
  void forward(const StatsOut& s, const Context& c = {}) const { method.forward(*this, s, c); }
  void backward(const SavedStats& s, const Context& c = {}) const { method.backward(*this, s, c); }
};

// A gradient of parameters, and the argument that it is of.
struct Gradient {
  Array Call::* array;
  Vector Values::* argument;
  const char* name;
};
inline std::vector<Gradient> parameter_gradients(const Method& m) {
  std::vector<Gradient> all;
  if (m.has_weight) all.push_back({&Call::dweight, &Values::weight, "dweight"});
  if (m.has_bias) all.push_back({&Call::dbias, &Values::bias, "dbias"});
  for (const Own& own : m.own) {
    const bool first = &own == &m.own.front();
    all.push_back({first ? &Call::dfirst : &Call::dsecond, first ? &Values::first : &Values::second,
                   own.gradient});
  }
  return all;
}

// ---- the methods

template <class F>
void with_arguments(const Call& c, F f) {
  const ConstTensor x = c.x.tensor(), weight = c.w(), bias = c.b();
  const ConstTensor first = c.first.tensor(), second = c.second.tensor();
  f(Inputs{x, weight, bias, {&first, &second}});
}

// A method over channels, called as its signature says; `set`: options that not all of them have.
template <class M>
void add(std::vector<Method>& all, const std::string& name, bool training, bool smooth,
         std::function<Result(const Values&, const Values&)> formula,
         std::function<void(typename Signature<M>::Options&, const Call&)> set = {}) {
  auto options = [=](const Call& c) {
    typename Signature<M>::Options o;
    for_each_argument<M>([&](const auto& a) {
      using A = std::remove_cvref_t<decltype(a)>;
      if constexpr (A::kind == Kind::buffer) {
        o.*a.member = (a.follows == Follows::mean ? c.running_mean : c.running_spread).tensor();
      }
      if constexpr (A::kind == Kind::learns) o.*a.member = training;
    });
    o.momentum = kMomentum;
    if constexpr (requires { o.eps; }) o.eps = kEps;
    if (set) set(o, c);
    return o;
  };
  all.push_back({name + (training ? "" : "_eval"), smooth, formula,
                 [=](const Call& c, const StatsOut& s, const Context& context) {
                   with_arguments(c, [&](const Inputs& a) {
                     call_forward<M>(a, c.out(), options(c), s, context);
                   });
                 },
                 [=](const Call& c, const SavedStats& s, const Context& context) {
                   const Tensor first = c.wanted(c.dfirst), second = c.wanted(c.dsecond);
                   with_arguments(c, [&](const Inputs& a) {
                     call_backward<M>(c.dy.tensor(), a, c.gradients(), {&first, &second},
                                      options(c), /*dh=*/{}, s, context);
                   });
                 },
                 has<M>(Kind::weight), has<M>(Kind::bias)});
  for_each_argument<M>([&](const auto& a) {
    if constexpr (requires { a.shape; }) all.back().own.push_back(a);
  });
  all.back().stats = kReports<M> ? Method::kByChannel : Method::kByCell;
}

inline std::vector<Method> make_methods() {
  std::vector<Method> all;
  for (const bool training : {true, false}) {
    auto in_eval = [](const Values& v, bool squared = false) {
      return scaled(v, v.mean, squared ? deviations(v.spread) : v.spread);
    };
    add<BatchNorm>(
        all, "masked_batch_norm", training, true,
        [=](const Values& v, const Values&) {
          return training ? masked_formula(v) : in_eval(v, true);
        },
        [](auto& o, const Call& c) { o.mask = c.mask.tensor(); });
    add<BatchRenorm>(
        all, "batch_renorm", training, true,
        [=](const Values& v, const Values& at) {
          return training ? renorm_formula(v, at) : in_eval(v);
        },
        [](auto& o, const Call&) { o.r_max = kRMax, o.d_max = kDMax; });
    for (const double p : {1.0, 3.0, kInfinite}) {
      add<LpBatchNorm>(
          all, p == kInfinite ? "lp_batch_norm_inf" : "lp_batch_norm_" + std::to_string(int(p)),
          training, p == 3 || !training,
          [=](const Values& v, const Values&) {
            if (!training) return in_eval(v);
            return other_scale(v, [p](const Vector& a) { return lp_scale(a, p); });
          },
          [p](auto& o, const Call&) { o.p = p; });
    }
    add<TopKBatchNorm>(
        all, "topk_batch_norm", training, !training,
        [=](const Values& v, const Values&) {
          return training ? other_scale(v, topk_scale) : in_eval(v);
        },
        [](auto& o, const Call&) { o.k = kK; });
    add<MeanOnlyBatchNorm>(
        all, "mean_only_batch_norm", training, true,
        [=](const Values& v, const Values&) { return mean_only_formula(v, training); });
    add<BatchInstanceNorm>(
        all, "batch_instance_norm", training, true,
        [=](const Values& v, const Values&) { return batch_instance_formula(v, training); });
    add<SwitchableNorm>(
        all, "switchable_norm", training, true,
        [=](const Values& v, const Values&) { return switchable_formula(v, training); });
  }
  for (const bool whole : {false, true}) {
    const WeightNormOptions o{whole ? std::optional<int>() : -2};
    all.push_back({whole ? "weight_norm_of_all" : "weight_norm", true,
                   [=](const Values& v, const Values&) { return weight_norm_formula(v, whole); },
                   [=](const Call& c, const StatsOut&, const Context& context) {
                     weight_norm(c.x.tensor(), c.weight.tensor(), c.out(), o, context);
                   },
                   [=](const Call& c, const SavedStats&, const Context& context) {
                     weight_norm_backward(c.dy.tensor(), c.x.tensor(), c.weight.tensor(),
                                          c.gradients().dx, c.dweight.tensor(), o, context);
                   },
                   /*has_weight=*/true, /*has_bias=*/false, /*one_weight=*/whole});
  }
  // Over rows, over samples, and where eps is greater than any norm.
  const std::pair<double, double> orders[] = {{1, kEps}, {2, kEps}, {kInfinite, kEps}, {2, 1e4}};
  for (const auto& [ord, eps] : orders) {
    for (const Of of : {Of::kCell, Of::kSample}) {
      const NormalizeOptions o{ord, of == Of::kCell ? Axes{-1} : Axes{2, -2}, eps};
      all.push_back({"normalize_" + (ord == kInfinite ? "inf" : std::to_string(int(ord))) +
                         (of == Of::kCell ? "" : "_samples") + (eps > 1 ? "_below_eps" : ""),
                     ord == 2,
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
  v.weight = normal(m.one_weight ? 1 : C, 1, 0.5);
  v.bias = normal(C, 0, 1);
  v.first = normal(m.logits(0) ? 3 : C, 0.5, 0.5);
  v.second = normal(m.logits(1) || m.own.size() < 2 ? 3 : C, 0, 1);
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
