// The adaptive methods, the other scales of batch norm, weights and masks through the public
// headers: forward against the formulas, backward against central differences of them, over strided
// views. Every run draws new numbers: NORMCORE_TEST_SEED repeats one.
#include <gtest/gtest.h>

#include "adaptive_methods.h"
#include "allocations.h"

namespace normcore {
namespace {

using namespace testing;
using testing::kEps, testing::kMomentum;  // the numbers, not the options of signatures.h

// The last are cut into blocks of channels: in any element type, and in float64.
const Size kForward[] = {{3, 4, 6}, {2, 3, 9}, {9, 2, 4}, {5, 3, 1100}, {300, 5, 4}, {8, 300, 90}};
const Size kBackward[] = {{3, 4, 6},   {2, 3, 9},   {9, 2, 4},   {2, 1, 7},
                          {5, 3, 300}, {200, 5, 4}, {10, 70, 80}};

// d sum(dy * y) / d one argument: central differences at two steps, whose errors in h^2 cancel.
double slope(const Method& m, const Values& at, Vector Values::* argument, std::size_t i) {
  auto projection = [&](double h) {
    Values v = at;
    (v.*argument)[i] += h;
    const Vector y = m.formula(v, at).y;
    return std::inner_product(y.begin(), y.end(), at.dy.begin(), 0.0);
  };
  auto central = [&](double h) { return (projection(h) - projection(-h)) / (2 * h); };
  return (4 * central(kStep) - central(2 * kStep)) / 3;
}

// Rounding once to storage, and some operations in the compute type on numbers of this size.
void expect_forward(const Array& got, const Vector& want, const char* what) {
  if (want.empty()) return;
  const double u = compute_rounding(got.dtype), most = largest(want);
  expect_near(got.read(), want, 64 * u * (4 + most) + rounding(got.dtype) * most, what);
}

class Adaptive : public Searching {
 protected:
  // All, or one where arrays are large.
  std::vector<int> layouts(Size size) {
    if (size.small()) return {0, 1, 2};
    return {int(random_.integer(0, 2))};
  }
};

TEST_P(Adaptive, ForwardMatchesItsFormulaInEveryLayout) {
  for (const Size size : kForward) {
    for (const DType t : kDTypes) {
      for (const int layout : layouts(size)) {
        SCOPED_TRACE(std::string(name_of(t)) + ", layout " + std::to_string(layout) + ", N " +
                     std::to_string(size.N));
        const Call c(GetParam(), t, layout, draw(random_, GetParam(), size));
        const Values v = c.values();
        const Result want = GetParam().formula(v, v);
        c.forward(c.stats());
        expect_forward(c.y, want.y, "y");
        expect_forward(c.mean, want.mean, "mean");
        expect_forward(c.rstd, want.rstd, "rstd");
        auto moved = [](Vector to, const Vector& from) {
          if (to.empty()) return from;
          for (std::size_t k = 0; k < to.size(); ++k) {
            to[k] = (1 - kMomentum) * from[k] + kMomentum * to[k];
          }
          return to;
        };
        expect_forward(c.running_mean, moved(want.new_mean, v.mean), "running mean");
        expect_forward(c.running_spread, moved(want.new_spread, v.spread), "running spread");
        for (const Array* a : {&c.y, &c.x, &c.running_mean, &c.running_spread, &c.mean, &c.given}) {
          ASSERT_TRUE(a->gaps_untouched());
        }
        ASSERT_EQ(c.x.read(), v.x);
        ASSERT_EQ(c.mask.read(), v.mask);
      }
    }
  }
}

TEST_P(Adaptive, BackwardMatchesCentralDifferences) {
  for (const Size size : kBackward) {
    if (!size.small() && !GetParam().smooth) continue;
    for (const int layout : layouts(size)) {
      for (const bool saved : {true, false}) {
        if (!saved && GetParam().name == "batch_renorm") continue;  // refuses it
        SCOPED_TRACE("layout " + std::to_string(layout) + ", N " + std::to_string(size.N) +
                     (saved ? ", saved statistics" : ""));
        Call c(GetParam(), DType::kFloat64, layout, draw(random_, GetParam(), size));
        const Values v = c.values();
        if (saved) {
          c.forward(c.stats());
          // With the statistics of the forward call the buffers no longer matter.
          if (GetParam().stats != Method::kNoStats) {
            c.running_mean.assign(Vector(v.mean.size(), 7));
            c.running_spread.assign(Vector(v.mean.size(), 9));
          }
        }
        c.backward(saved ? c.saved() : SavedStats());
        const auto expect = [&](const Array& gradient, Vector Values::* argument,
                                const char* what) {
          for (Index i = 0; i < gradient.size(); ++i) {
            if (!size.small() && random_.integer(1, gradient.size()) > 3) continue;
            const double want = slope(GetParam(), v, argument, std::size_t(i));
            // The error in h^4, and over h the rounding of naive sums of this many terms.
            const double tolerance = 1e-9 + 16 * 0x1p-53 * double(v.x.size()) / kStep;
            ASSERT_NEAR(gradient.read(i), want, tolerance * (1 + std::abs(want)))
                << what << " at " << i;
          }
          ASSERT_TRUE(gradient.gaps_untouched()) << what;
        };
        expect(c.dx, &Values::x, "dx");
        for (const Gradient& g : parameter_gradients(GetParam())) {
          expect(c.*g.array, g.argument, g.name);
        }
      }
    }
  }
}

TEST_P(Adaptive, ThreadsChangeNoBitAndNothingIsAllocatedInTheSteadyState) {
  const Values v = draw(random_, GetParam(), {16, 8, 2000});
  const Call one(GetParam(), DType::kFloat32, 0, v), two(GetParam(), DType::kFloat32, 0, v);
  auto run = [](const Call& c, int threads) {
    c.forward(c.stats(), {.threads = threads});
    c.backward(c.saved(), {.threads = threads});
  };
  run(one, 1);
  run(two, 3);
  for (Array Call::* a : {&Call::y, &Call::dx, &Call::dweight, &Call::dfirst, &Call::running_mean,
                          &Call::running_spread, &Call::pooled}) {
    EXPECT_EQ(std::memcmp((one.*a).bytes.data(), (two.*a).bytes.data(), (one.*a).bytes.size()), 0);
  }
  for (const int threads : {1, 2}) {
    EXPECT_EQ(allocations_of([&] { one.forward({}, {.threads = threads}); }), 0);
    EXPECT_EQ(allocations_of([&] { run(one, threads); }), 0);
  }
}

TEST_P(Adaptive, InPlaceGivesTheSameBits) {
  for (const int layout : {0, 1, 2}) {
    const Values v = draw(random_, GetParam(), {3, 4, 70});
    const Call apart(GetParam(), DType::kFloat32, layout, v);
    Call within(GetParam(), DType::kFloat32, layout, v);
    within.in_place = true;
    apart.forward(apart.stats());
    apart.backward(apart.saved());
    within.backward(apart.saved());  // before x is gone
    within.forward({});
    EXPECT_EQ(within.dy.read(), apart.dx.read());
    EXPECT_EQ(within.x.read(), apart.y.read());
  }
}

TEST_P(Adaptive, AbsentParametersAreOneAndZero) {
  Values v = draw(random_, GetParam(), {3, 4, 70});
  if (GetParam().stats != Method::kNoStats) v.weight.assign(4, 1);
  v.bias.assign(4, 0);
  const Call given(GetParam(), DType::kFloat32, 0, v);
  Call absent(GetParam(), DType::kFloat32, 0, v);
  absent.bare = true;
  for (const Call* c : std::initializer_list<const Call*>{&given, &absent}) {
    c->forward(c->stats());
    c->backward(c->saved());
  }
  EXPECT_EQ(absent.y.read(), given.y.read());
  EXPECT_EQ(absent.dx.read(), given.dx.read());
}

INSTANTIATE_TEST_SUITE_P(All, Adaptive, ::testing::ValuesIn(methods()),
                         [](const auto& info) { return info.param.name; });

// ---- what central differences cannot see

TEST(AdaptiveTies, EqualsOfTheLeastShareItsPlaceInTheGradient) {
  // With mean 0: dx = (dy - mean(dy) - mean(dy * y) * slope) / scale, as the slopes add up to 0.
  const double x[] = {3, -3, 1, -1, 0, 0}, dy[] = {0.5, 2, -1, 4, 3, 0.25};
  const std::pair<Index, Vector> slopes[] = {// k, and the slopes but for c
                                             {1, {3, -3, 0, 0, 0, 0}},
                                             {2, {3, -3, 0, 0, 0, 0}},
                                             {3, {2, -2, 1, -1, 0, 0}}};
  const double pi = std::acos(-1.0);
  const double c = (1 + std::sqrt(pi * std::log(4.0))) / (2 * std::sqrt(2 * std::log(6.0)));
  for (const bool lp : {false, true}) {
    for (const auto& [k, h] : slopes) {
      if (lp && k > 1) continue;
      double dx[6], dy_mean = 0, product = 0;
      const double factor = lp ? 1 : c, scale = factor * (k == 3 ? 7.0 / 3 : 3.0) + kEps;
      for (int i = 0; i < 6; ++i) dy_mean += dy[i] / 6, product += dy[i] * x[i] / scale / 6;
      const Gradients out{{dx, {6, 1}}, {}, {}};
      if (lp) {
        lp_batch_norm_backward({dy, {6, 1}}, {x, {6, 1}}, {}, out, {.p = INFINITY, .eps = kEps});
      } else {
        topk_batch_norm_backward({dy, {6, 1}}, {x, {6, 1}}, {}, out, {.k = k, .eps = kEps});
      }
      for (int i = 0; i < 6; ++i) {
        const double slope = h[std::size_t(i)] * factor;
        EXPECT_NEAR(dx[i], (dy[i] - dy_mean - product * slope) / scale, 1e-14) << k << " at " << i;
      }
    }
  }
  const double v[] = {2, -2, 1}, dv[] = {1, 3, 5};  // y = v / 2, sum(dv * y) = 0.5
  double dx[3];
  normalize_backward({dv, {3}}, {v, {3}}, {dx, {3}}, {.ord = INFINITY});
  const double want[] = {(1 - 0.5 * 0.5) / 2, (3 + 0.5 * 0.5) / 2, 2.5};
  for (int i = 0; i < 3; ++i) EXPECT_NEAR(dx[i], want[i], 1e-15);
}

TEST(AdaptiveZeros, HaveNoNormAndNoGradient) {
  const double zeros[6] = {}, dy[] = {1, 2, 3, 4, 5, 6}, g[] = {2, 3};
  double y[6], dx[6], dg[2];
  const auto all_zero = [](const double* a, int n) {
    return std::all_of(a, a + n, [](double v) { return v == 0; });
  };
  for (const double ord : {1.0, 2.0, double(INFINITY)}) {
    normalize({zeros, {2, 3}}, {y, {2, 3}}, {.ord = ord, .eps = 0});
    normalize_backward({dy, {2, 3}}, {zeros, {2, 3}}, {dx, {2, 3}}, {.ord = ord, .eps = 0});
    EXPECT_TRUE(all_zero(y, 6) && all_zero(dx, 6)) << ord;
  }
  weight_norm({zeros, {2, 3}}, {g, {2}}, {y, {2, 3}});
  weight_norm_backward({dy, {2, 3}}, {zeros, {2, 3}}, {g, {2}}, {dx, {2, 3}}, {dg, {2}});
  EXPECT_TRUE(all_zero(y, 6) && all_zero(dx, 6) && all_zero(dg, 2));
}

}  // namespace
}  // namespace normcore
