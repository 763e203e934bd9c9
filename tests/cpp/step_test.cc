// The scalar steps of a cell, against what they stand for: a table of random elements worked out in
// double. Hunts for a step that a change in the centring leaves behind.
#include "pipeline/step.h"

#include <gtest/gtest.h>

#include <vector>

#include "normcore/methods/batch_norm.h"
#include "normcore/methods/rms_norm.h"
#include "support.h"

namespace normcore {
namespace {

using testing::Random;

struct Elements {
  std::vector<double> x, dy;
  double mean = 0, var = 0;

  Elements(Random& random, std::size_t n, double at, bool raw) : x(n), dy(n) {
    for (double& v : x) v = at + random.normal();
    for (double& v : dy) v = random.normal();
    for (double v : x) mean += raw ? 0 : v / double(n);
    for (double v : x) var += (v - mean) * (v - mean) / double(n);
  }
  double count() const { return double(x.size()); }
};

// dx by the steps, for one pool that is one cell.
template <class Method>
std::vector<double> gradient(const Elements& e, double weight, bool by_element) {
  constexpr bool kRaw = Method::raw;
  float center;
  const Stats stats[1] = {counted_from_center<kRaw>(e.mean, e.var, e.count(), &center)};
  const typename Method::Params params{0};
  const Coef f = Method::coefficients(stats, params, 0);
  const double unit = unit_of(f.a);
  double dy_u = 0, dy_1 = 0;
  for (std::size_t i = 0; i < e.x.size(); ++i) {
    const double g = by_element ? weight * e.dy[i] : e.dy[i];
    dy_u += g * ((e.x[i] - double(center)) * unit);
    dy_1 += g;
  }
  const double outside = by_element ? 1 : weight;
  StatsGrad d[1] = {};
  NoGradients none;
  Method::pullback(stats, params, 0, coefficient_gradient(outside, dy_u, dy_1, unit), d, none);
  Share share;
  if (by_element) {
    share = Share::by_element<kRaw>(d[0].var, dy_1, stats[0], f.a);
  } else {
    share.add<kRaw>(d[0], stats[0]);
  }
  std::vector<double> dx;
  for (std::size_t i = 0; i < e.x.size(); ++i) {
    const double u = (e.x[i] - double(center)) * unit, through = share.q / unit * u;
    dx.push_back(by_element ? f.a * (weight * e.dy[i] - share.r) + through
                            : weight * f.a * e.dy[i] + (through + share.r));
  }
  return dx;
}

// dx = weight * r * (dy - mean(dy) - xhat * mean(dy * xhat)); raw: without mean(dy).
template <class Method>
std::vector<double> exact(const Elements& e, double weight) {
  const double r = 1 / std::sqrt(e.var);
  double dy = 0, dy_xhat = 0;
  for (std::size_t i = 0; i < e.x.size(); ++i) {
    dy += Method::raw ? 0 : e.dy[i] / e.count();
    dy_xhat += e.dy[i] * (e.x[i] - e.mean) * r / e.count();
  }
  std::vector<double> dx;
  for (std::size_t i = 0; i < e.x.size(); ++i) {
    dx.push_back(weight * r * (e.dy[i] - dy - (e.x[i] - e.mean) * r * dy_xhat));
  }
  return dx;
}

template <class Method>
void check_gradients() {
  Random random(testing::run_seed());
  for (int trial = 0; trial < 200; ++trial) {
    const double at = trial % 2 ? 1e4 * random.normal() : random.normal();
    const Elements e(random, std::size_t(random.integer(2, 40)), at, Method::raw);
    const double weight = random.normal();
    const std::vector<double> want = exact<Method>(e, weight);
    for (const bool by_element : {false, true}) {
      const std::vector<double> got = gradient<Method>(e, weight, by_element);
      for (std::size_t i = 0; i < got.size(); ++i) {
        // A centre of float is off by 1e-3 at most, which costs so many digits of double.
        EXPECT_NEAR(got[i], want[i], 1e-9 * std::fabs(weight) / std::sqrt(e.var));
      }
    }
  }
}

TEST(Step, SharesOutTheGradientOfTheFormula) {
  check_gradients<BatchNorm>();
  check_gradients<RMSNorm>();
}

TEST(Step, CountsFromAFloatThatCanTellTheMean) {
  EXPECT_EQ((center_of<false, float>(1.0 / 3, 1, 10)), 1.0f / 3);
  EXPECT_EQ((center_of<true, float>(3, 1, 10)), 0);
  // The squares of so great a spread are near the end of the range, and so is the centre.
  EXPECT_EQ((center_of<false, float>(1e30, 0x1p253, 10)), 0);
  EXPECT_EQ((center_of<false, double>(1e30, 0x1p253, 10)), 1e30);
  EXPECT_EQ((from_center<false>(1 + 0x1p-30, 1.0f)), 0x1p-30);
}

TEST(Step, OneElementHasNoGradient) {
  EXPECT_TRUE(is_always_zero<BatchNorm>(1));
  EXPECT_FALSE(is_always_zero<BatchNorm>(2));
  EXPECT_FALSE(is_always_zero<RMSNorm>(1));
}

TEST(Step, MovesBuffersByTheFactorOfTheVariance) {
  EXPECT_EQ(blended(2, 4, 0, 7), 2);
  EXPECT_EQ(blended(2, 4, 1, 1), 4);
  EXPECT_EQ(blended(2, 4, 0.25, 2), 3.5);
}

}  // namespace
}  // namespace normcore
