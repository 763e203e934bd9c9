// Local response and local divisive normalization through the public headers, against their
// formulas in double and numerical derivatives.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "allocations.h"
#include "support.h"

namespace normcore {
namespace {

using testing::Random;
using Values = std::vector<double>;

// x is [kN, kC, kH, kW].
constexpr Index kN = 2, kC = 5, kH = 6, kW = 7, kSize = kN * kC * kH * kW;

Values numbers(unsigned seed) {
  Random random(seed);
  Values x(kSize);
  for (double& v : x) v = 0.5 + random.normal();
  return x;
}
ConstTensor view(const Values& x) { return {x.data(), {kN, kC, kH, kW}}; }
Tensor view(Values& x) { return {x.data(), {kN, kC, kH, kW}}; }

// f(n, c, h, w, index of that element)
template <class F>
void each(F f) {
  for (Index i = 0; i < kSize; ++i) f(i / kW / kH / kC, i / kW / kH % kC, i / kW % kH, i % kW, i);
}
Index at(Index n, Index c, Index h, Index w) { return ((n * kC + c) * kH + h) * kW + w; }

Values response_formula(const Values& x, Index size, const LocalResponseNormOptions& o) {
  const Index longer = size / 2, shorter = (size - 1) / 2;
  const bool torch = o.even_window == EvenWindow::kTorch;
  const Index before = torch ? longer : shorter, after = torch ? shorter : longer;
  const bool space = o.across == Across::kSpace;
  Values y(kSize);
  each([&](Index n, Index c, Index h, Index w, Index i) {
    double sum = 0;
    each([&](Index n2, Index c2, Index h2, Index w2, Index j) {
      auto inside = [&](Index a, Index b) { return a - before <= b && b <= a + after; };
      const bool near =
          space ? c == c2 && inside(h, h2) && inside(w, w2) : h == h2 && w == w2 && inside(c, c2);
      if (n == n2 && near) sum += x[j] * x[j];
    });
    const double count = space ? double(size * size) : double(size);
    y[i] = x[i] * std::pow(o.k + o.alpha / count * sum, -o.beta);
  });
  return y;
}

// The mean over all channels and the window of a position.
double window_mean(const Values& x, Index n, Index h, Index w, Index size) {
  double sum = 0, count = 0;
  for (Index h2 = std::max<Index>(0, h - size / 2); h2 <= std::min(kH - 1, h + size / 2); ++h2) {
    for (Index w2 = std::max<Index>(0, w - size / 2); w2 <= std::min(kW - 1, w + size / 2); ++w2) {
      for (Index c = 0; c < kC; ++c, ++count) sum += x[at(n, c, h2, w2)];
    }
  }
  return sum / count;
}

struct Parameters {
  Values sigma{0.4, 0.9, 0.6, 1.1, 0.3}, weight{1, 2, 0.5, -1, 1.5}, bias{0, 1, -1, 2, 0.5};

  static ConstTensor view(const Values& v) { return {v.data(), {kC}}; }
};

Values divisive_formula(const Values& x, const Parameters& p, Index a, Index b) {
  Values v(kSize), squares(kSize), y(kSize);
  each([&](Index n, Index, Index h, Index w, Index i) {
    v[i] = x[i] - window_mean(x, n, h, w, a);
    squares[i] = v[i] * v[i];
  });
  each([&](Index n, Index c, Index h, Index w, Index i) {
    const double s = p.sigma[c] * p.sigma[c] + window_mean(squares, n, h, w, b);
    y[i] = p.weight[c] * v[i] / std::sqrt(s) + p.bias[c];
  });
  return y;
}

double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
// The derivative of f by each of the values, numerically.
template <class F>
Values slopes(Values& values, F f) {
  Values result;
  for (double& v : values) {
    const double old = v, step = 1e-5;
    v = old + step;
    const double above = f();
    v = old - step;
    result.push_back((above - f()) / (2 * step));
    v = old;
  }
  return result;
}

void expect_near(const Values& got, const Values& want, double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], want[i], tolerance) << "at " << i;
}

class Response : public ::testing::TestWithParam<std::tuple<Across, EvenWindow, Index>> {};

TEST_P(Response, MatchesItsFormulaAndItsDerivative) {
  const auto [across, even_window, size] = GetParam();
  const LocalResponseNormOptions o{1.5, 0.75, 0.8, across, even_window};
  Values x = numbers(1), y(kSize), dx(kSize);
  const Values dy = numbers(2);
  local_response_norm(view(std::as_const(x)), size, view(y), o);
  expect_near(y, response_formula(x, size, o), 1e-13);
  local_response_norm_backward(view(dy), view(std::as_const(x)), size, view(dx), o);
  auto loss = [&, n = size] { return dot(dy, response_formula(x, n, o)); };  // Clang 14 asks for n
  expect_near(dx, slopes(x, loss), 1e-8);
}

INSTANTIATE_TEST_SUITE_P(Windows, Response,
                         ::testing::Combine(::testing::Values(Across::kChannels, Across::kSpace),
                                            ::testing::Values(EvenWindow::kTorch,
                                                              EvenWindow::kOnnx),
                                            ::testing::Values(1, 3, 4, 9)));

TEST(LocalDivisiveNorm, MatchesItsFormulaAndItsDerivative) {
  Parameters p;
  const LocalDivisiveNormOptions o{{3}, {5}};
  Values x = numbers(3), y(kSize);
  const Values dy = numbers(4);
  local_divisive_norm(view(std::as_const(x)), p.view(p.sigma), p.view(p.weight), p.view(p.bias),
                      view(y), o);
  expect_near(y, divisive_formula(x, p, 3, 5), 1e-13);

  Values dx(kSize), dsigma(kC), dweight(kC), dbias(kC);
  auto vector = [](Values& v) { return Tensor(v.data(), {kC}); };
  local_divisive_norm_backward(view(dy), view(std::as_const(x)), p.view(p.sigma), p.view(p.weight),
                               {view(dx), vector(dsigma), vector(dweight), vector(dbias)}, o);
  auto loss = [&] { return dot(dy, divisive_formula(x, p, 3, 5)); };
  expect_near(dx, slopes(x, loss), 1e-7);
  expect_near(dsigma, slopes(p.sigma, loss), 1e-7);
  expect_near(dweight, slopes(p.weight, loss), 1e-7);
  expect_near(dbias, slopes(p.bias, loss), 1e-7);
}

TEST(LocalNorms, HaveTheSameBitsForAnyNumberOfThreadsAndAllocateNothing) {
  constexpr Index kSide = 67, kChannels = 21, kAll = 5 * kChannels * kSide * kSide;
  Random random(5);
  std::vector<float> x(kAll);
  for (float& v : x) v = float(random.normal());
  const float sigma = 0.5f;
  const ConstTensor in(x.data(), {5, kChannels, kSide, kSide});
  auto run = [&](std::vector<float>& out, int threads) {
    const Context context{.threads = threads};
    auto part = [&](Index i) {
      return Tensor(out.data() + i * kAll, {5, kChannels, kSide, kSide});
    };
    const LocalDivisiveNormOptions windows{{5}, {3}};
    local_response_norm(in, 5, part(0), {}, context);
    local_response_norm_backward(in, in, 5, part(1), {.across = Across::kSpace}, context);
    local_divisive_norm(in, {&sigma, {}}, {}, {}, part(2), windows, context);
    local_divisive_norm_backward(in, in, {&sigma, {}}, {}, {part(3), {}, {}, {}}, windows, context);
  };
  std::vector<float> want(4 * kAll), got(4 * kAll);
  run(want, 1);
  for (const int threads : {2, 3}) {
    run(got, threads);
    EXPECT_EQ(got, want) << threads << " threads";
  }
  EXPECT_EQ(testing::allocations_of([&] { run(got, 1); }), 0);
}

TEST(LocalNorms, RefuseWhatDoesNotFit) {
  float x[24] = {}, y[24];
  std::fill_n(y, 24, 7.f);
  const ConstTensor in(x, {2, 3, 4}), one(x, {});
  const Tensor out(y, {2, 3, 4});
  EXPECT_THROW(local_response_norm(in, 0, out), value_error);
  EXPECT_THROW(local_response_norm(in, 3, Tensor(y, {2, 3})), value_error);
  EXPECT_THROW(local_response_norm(in, 3, out, {.alpha = -1}), value_error);
  EXPECT_THROW(local_response_norm(in, 3, out, {.channel_axis = 0}), value_error);
  EXPECT_THROW(
      local_response_norm(ConstTensor(x, {4, 6}), 3, Tensor(y, {4, 6}), {.across = Across::kSpace}),
      value_error);
  EXPECT_THROW(local_response_norm_backward({}, in, 3, out), type_error);
  EXPECT_THROW(local_divisive_norm(in, {}, {}, {}, out, {{3}, {3}}), type_error);
  EXPECT_THROW(local_divisive_norm(in, one, {}, {}, out, {{2}, {3}}), value_error);
  EXPECT_THROW(local_divisive_norm(in, one, {}, {}, out, {{3}, {3, 3}}), value_error);
  EXPECT_THROW(local_divisive_norm(in, one, ConstTensor(x, {4}), {}, out, {{3}, {3}}), value_error);
  EXPECT_THROW(local_divisive_norm(in, one, {}, {}, out, {{3}, {3}}, {.device = Device::kCuda}),
               value_error);
  for (const float v : y) EXPECT_EQ(v, 7);
}

}  // namespace
}  // namespace normcore
