// Norms and moments through the public headers, against plain double arithmetic.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "allocations.h"
#include "support.h"

namespace normcore {
namespace {

using testing::Random;

constexpr Index kRows = 7, kCols = 1003;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class T>
std::vector<T> normal(double mean) {
  Random random(3);
  std::vector<T> x(kRows * kCols);
  for (T& v : x) v = T(mean + random.normal());
  return x;
}

TEST(Moments, MatchTheirDefinitionAtAnyMeanAndOverAnyAxes) {
  for (const double at : {0.0, 1e6}) {
    const std::vector<float> x = normal<float>(at);
    for (const int axis : {0, 1}) {
      const Index cells = axis == 0 ? kCols : kRows, n = axis == 0 ? kRows : kCols;
      const std::initializer_list<Index> shape = {axis == 0 ? 1 : kRows, axis == 0 ? kCols : 1};
      std::vector<double> count(cells), mean(cells), m2(cells);
      moments(ConstTensor(x.data(), {kRows, kCols}),
              {{count.data(), shape}, {mean.data(), shape}, {m2.data(), shape}},
              {.axes = Axes{axis}});
      for (Index k = 0; k < cells; ++k) {
        auto element = [&](Index i) {
          return double(axis == 0 ? x[i * kCols + k] : x[k * kCols + i]);
        };
        double exact = 0, squares = 0;
        for (Index i = 0; i < n; ++i) exact += element(i) / double(n);
        for (Index i = 0; i < n; ++i) squares += std::pow(element(i) - exact, 2);
        ASSERT_EQ(count[k], double(n));
        ASSERT_NEAR(mean[k], exact, 1e-6);  // of a deviation of 1, in float
        ASSERT_NEAR(m2[k], squares, 1e-6 * squares);
      }
    }
  }
}

TEST(Norm, MatchesItsDefinitionWhereSquaresLeaveTheRangeOfDouble) {
  for (const double scale : {1e-300, 1.0, 1e300}) {
    std::vector<double> x = normal<double>(0);
    double sum = 0, squares = 0, largest = 0;
    for (double& v : x) {
      sum += std::fabs(v);
      squares += v * v;
      largest = std::max(largest, std::fabs(v));
      v *= scale;
    }
    double y = std::nan("");
    const std::pair<double, double> cases[] = {
        {1, sum}, {2, std::sqrt(squares)}, {kInfinity, largest}};
    for (const auto& [ord, want] : cases) {
      norm(ConstTensor(x.data(), {kRows, kCols}), Tensor(&y, {1, 1}), {.ord = ord});
      EXPECT_NEAR(y / scale, want, 1e-13 * want) << ord << " at " << scale;
    }
  }
}

TEST(Reductions, HaveTheSameBitsForAnyNumberOfThreadsAndAllocateNothing) {
  std::vector<float> x(1 << 21);
  Random random(4);
  for (float& v : x) v = float(5 + random.normal());
  auto run = [&](int threads) {
    std::vector<double> out(4);
    const Context context{.threads = threads};
    const ConstTensor all(x.data(), {1 << 21});
    moments(all, {{&out[0], {1}}, {&out[1], {1}}, {&out[2], {1}}}, {}, context);
    norm(all, Tensor(&out[3], {1}), {}, context);
    return out;
  };
  const std::vector<double> want = run(1);
  EXPECT_EQ(run(2), want);
  EXPECT_EQ(run(3), want);
  float y = 0;
  auto call = [&] { norm(ConstTensor(x.data(), {1000}), Tensor(&y, {1})); };
  call();
  const auto before = testing::allocations();
  call();
  EXPECT_EQ(testing::allocations(), before);
}

TEST(Reductions, OfNothingAreZero) {
  double count = 7, mean = 7, m2 = 7, length = 7;
  const ConstTensor empty(&count, {1, 0});
  moments(empty, {{&count, {1, 1}}, {&mean, {1, 1}}, {&m2, {1, 1}}});
  norm(empty, Tensor(&length, {1, 1}));
  for (const double v : {count, mean, m2, length}) EXPECT_EQ(v, 0);
}

TEST(Reductions, RefuseWhatDoesNotFit) {
  float x[6] = {}, y[6] = {7, 7, 7, 7, 7, 7};
  const ConstTensor in(x, {2, 3});
  EXPECT_THROW(norm(in, Tensor(y, {2, 3}), {.axes = Axes{1}}), value_error);
  EXPECT_THROW(norm(in, {}, {.axes = Axes{1}}), value_error);
  EXPECT_THROW(norm(in, Tensor(y, {2}), {.axes = Axes{1}}), value_error);
  EXPECT_THROW(norm(in, Tensor(x, {2, 1}), {.axes = Axes{1}}), value_error);
  EXPECT_THROW(norm(in, Tensor(y, {1, 1}), {.ord = 3}), value_error);
  EXPECT_THROW(norm(in, Tensor(y, {1, 1}), {.axes = Axes{2}}), value_error);
  EXPECT_THROW(moments(in, {{}, {y, {1, 3}}}, {.axes = Axes{1}}), value_error);
  for (const float v : y) EXPECT_EQ(v, 7);
}

}  // namespace
}  // namespace normcore
