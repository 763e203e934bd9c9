// Spectral norm and the power method on the emulated device through the C++ API, against the CPU.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <vector>

#include "normcore/normcore.h"

namespace normcore {
namespace {

constexpr Index kRows = 12, kCols = 20;
const Context kThere{Device::kCuda};

struct Matrix {
  std::vector<float> w, dw, u;

  Matrix() : w(kRows * kCols), dw(w.size()), u(kRows) {
    for (std::size_t i = 0; i < w.size(); ++i) w[i] = float(i * 37 % 61) / 30 - 0.5f;
    for (std::size_t i = 0; i < w.size(); ++i) dw[i] = float(i * 11 % 23) / 10 - 1;
    for (std::size_t i = 0; i < u.size(); ++i) u[i] = 1 + float(i % 3);
  }
};

struct Result {
  std::vector<float> w = std::vector<float>(kRows * kCols, NAN), dw = w;
  std::vector<float> u = std::vector<float>(kRows, NAN), v = std::vector<float>(kCols, NAN);
  double sigma = NAN;
};

ConstTensor matrix(const std::vector<float>& m) { return {m.data(), {kRows, kCols}}; }
Tensor matrix(std::vector<float>& m) { return {m.data(), {kRows, kCols}}; }
Tensor vector(std::vector<float>& v) { return {v.data(), {Index(v.size())}}; }

TEST(CudaSpectralNorm, IsWhatItIsOnTheCpu) {
  const Matrix m;
  SpectralNormOptions options;
  options.n_power_iterations = 3;
  const ConstTensor u(m.u.data(), {kRows});
  Result want, got;
  const double sigma =
      spectral_norm(matrix(m.w), {u, {}},
                    {matrix(want.w), vector(want.u), vector(want.v), {&want.sigma, {}}}, options);
  EXPECT_EQ(want.sigma, sigma);
  EXPECT_TRUE(std::isnan(spectral_norm(
      matrix(m.w), {u, {}}, {matrix(got.w), vector(got.u), vector(got.v), {&got.sigma, {}}},
      options, kThere)));
  EXPECT_NEAR(got.sigma, sigma, 1e-6 * sigma);
  for (std::size_t i = 0; i < m.w.size(); ++i) EXPECT_NEAR(got.w[i], want.w[i], 1e-6);
  for (std::size_t i = 0; i < m.u.size(); ++i) EXPECT_NEAR(got.u[i], want.u[i], 1e-6);

  spectral_norm_backward(matrix(m.dw), matrix(want.w), sigma, vector(want.u), vector(want.v),
                         matrix(want.dw));
  spectral_norm_backward(matrix(m.dw), matrix(want.w), ConstTensor(&sigma, {}), vector(want.u),
                         vector(want.v), matrix(got.dw), {}, kThere);
  for (std::size_t i = 0; i < m.w.size(); ++i) EXPECT_NEAR(got.dw[i], want.dw[i], 1e-6);
  Result again;
  spectral_norm_backward(matrix(m.dw), matrix(want.w), sigma, vector(want.u), vector(want.v),
                         matrix(again.dw), {}, kThere);
  EXPECT_EQ(again.dw, got.dw);
}

// All iterations of a matrix that a cluster holds are one launch.
TEST(CudaSpectralNorm, LaunchesNoMoreForMoreIterations) {
  const Matrix m;
  const ConstTensor u(m.u.data(), {kRows});
  auto launches = [&](Index iterations) {
    SpectralNormOptions options;
    options.n_power_iterations = iterations;
    Result r;
    const int before = emulation::launches;
    spectral_norm(matrix(m.w), {u, {}}, {matrix(r.w), vector(r.u), vector(r.v), {&r.sigma, {}}},
                  options, kThere);
    return emulation::launches - before;
  };
  EXPECT_LE(launches(1), 6);
  EXPECT_EQ(launches(20), launches(1));
}

TEST(CudaSpectralNorm, MovesItsVectorsInPlace) {
  Matrix m;
  Result want;
  std::vector<double> u(m.u.begin(), m.u.end());  // another dtype: by way of a copy
  spectral_norm(matrix(m.w), {vector(m.u), {}}, {matrix(want.w), vector(want.u), {}}, {}, kThere);
  const std::vector<float> w = m.w;
  spectral_norm(matrix(w), {vector(m.u), {}}, {matrix(m.w), vector(m.u), {}}, {}, kThere);
  EXPECT_EQ(m.u, want.u);
  Result wide;
  const Tensor u_wide(u.data(), {kRows});
  spectral_norm(matrix(w), {u_wide, {}}, {matrix(wide.w), u_wide, {}}, {}, kThere);
  for (std::size_t i = 0; i < u.size(); ++i) EXPECT_EQ(u[i], double(want.u[i]));
}

TEST(CudaSpectralNorm, RefusesBeforeItWrites) {
  const Matrix m;
  Result r;
  std::vector<float> shorter(kRows - 1, 1);
  EXPECT_THROW(
      spectral_norm(matrix(m.w), {vector(shorter), {}}, {matrix(r.w), vector(r.u), {}}, {}, kThere),
      std::invalid_argument);
  double two[2];
  EXPECT_THROW(spectral_norm(matrix(m.w), {ConstTensor(m.u.data(), {kRows}), {}},
                             {matrix(r.w), vector(r.u), {}, {two, {2}}}, {}, kThere),
               std::invalid_argument);
  // What is read may not be written.
  EXPECT_THROW(spectral_norm(matrix(m.w), {vector(r.v), {}}, {matrix(r.w), {}, {}}, {}, kThere),
               std::invalid_argument);
  for (const float v : r.w) EXPECT_TRUE(std::isnan(v));
  for (const float v : r.u) EXPECT_TRUE(std::isnan(v));
}

TEST(CudaPowerMethod, LeavesItsNumbersOnTheDevice) {
  const Matrix m;
  Result want, got;
  const PowerMethodResult cpu = power_method(matrix(m.w), {}, vector(want.u), vector(want.v));
  ASSERT_TRUE(cpu.converged);
  double sigma = NAN, count = NAN;
  float converged = NAN;
  PowerMethodOptions options;
  options.max_iterations = cpu.n_iterations + 4;
  const PowerMethodResult there =
      power_method(matrix(m.w), {}, vector(got.u), vector(got.v), options, kThere,
                   {{&sigma, {}}, {&count, {}}, {&converged, {}}});
  EXPECT_TRUE(std::isnan(there.sigma));
  EXPECT_NEAR(sigma, cpu.sigma, 1e-6 * cpu.sigma);
  EXPECT_NEAR(count, double(cpu.n_iterations), 1);  // a rounding may decide on the last one
  EXPECT_EQ(converged, 1);
  for (std::size_t i = 0; i < got.v.size(); ++i) EXPECT_NEAR(got.v[i], want.v[i], 2e-6);
}

}  // namespace
}  // namespace normcore
