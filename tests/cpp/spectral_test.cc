// Spectral norm and the power method through the public headers, against plain double arithmetic.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "allocations.h"
#include "support.h"

namespace normcore {
namespace {

using testing::Random;

// W[rows, cols] with an outstanding singular value, and vectors in double.
struct Case {
  Index rows, cols;
  std::vector<float> w, u;

  Case(Index r, Index c) : rows(r), cols(c), w(std::size_t(r * c)), u(std::size_t(r)) {
    Random random(5);
    for (Index i = 0; i < r; ++i) {
      for (Index j = 0; j < c; ++j) at(i, j) = float(random.normal() + 1);
    }
    for (float& v : u) v = float(random.normal() + 0.5);
  }
  float& at(Index i, Index j) { return w[std::size_t(i * cols + j)]; }
  double at(Index i, Index j) const { return double(w[std::size_t(i * cols + j)]); }
  ConstTensor matrix() const { return {w.data(), {rows, cols}}; }

  struct Triplet {
    double sigma;
    std::vector<double> u, v;
  };
  Triplet iterate(int n) const {
    Triplet t{0, {u.begin(), u.end()}, std::vector<double>(std::size_t(cols))};
    for (int k = 0; k < n; ++k) {
      for (Index j = 0; j < cols; ++j) {
        double sum = 0;
        for (Index i = 0; i < rows; ++i) sum += at(i, j) * t.u[std::size_t(i)];
        t.v[std::size_t(j)] = sum;
      }
      unit(t.v);
      for (Index i = 0; i < rows; ++i) {
        double sum = 0;
        for (Index j = 0; j < cols; ++j) sum += at(i, j) * t.v[std::size_t(j)];
        t.u[std::size_t(i)] = sum;
      }
      t.sigma = unit(t.u);
    }
    return t;
  }
  static double unit(std::vector<double>& x) {
    double squares = 0;
    for (const double v : x) squares += v * v;
    for (double& v : x) v /= std::sqrt(squares);
    return std::sqrt(squares);
  }
};

// Blocks of columns and of rows, short and long rows.
const Index kShapes[][2] = {{5, 7}, {64, 128}, {300, 33}, {257, 4100}};

TEST(SpectralNorm, MatchesItsDefinition) {
  for (const auto& [rows, cols] : kShapes) {
    const Case c(rows, cols);
    for (const int n : {1, 3}) {
      const Case::Triplet want = c.iterate(n);
      std::vector<float> out(c.w.size()), u(c.u.size());
      std::vector<double> v(want.v.size());
      const double sigma =
          spectral_norm(c.matrix(), {{c.u.data(), {rows}}, {}},
                        {{out.data(), {rows, cols}}, {u.data(), {rows}}, {v.data(), {cols}}},
                        {.n_power_iterations = n});
      // Some roundings of sums in float.
      ASSERT_NEAR(sigma, want.sigma, 1e-5 * want.sigma);
      for (std::size_t i = 0; i < u.size(); ++i) ASSERT_NEAR(double(u[i]), want.u[i], 1e-5);
      for (std::size_t j = 0; j < v.size(); ++j) ASSERT_NEAR(v[j], want.v[j], 1e-5);
      for (std::size_t i = 0; i < out.size(); ++i) {
        ASSERT_NEAR(double(out[i]), double(c.w[i]) / want.sigma, 1e-5);
      }
    }
  }
}

TEST(SpectralNorm, TransposedMemoryIsTheTransposedMatrix) {
  for (const auto& [rows, cols] : kShapes) {
    const Case c(rows, cols);
    // The same memory as W^T[cols, rows]: iterations that begin with v are those of W.
    const ConstTensor turned(c.w.data(), {cols, rows}, {1, cols});
    std::vector<float> out(c.w.size()), other(c.w.size());
    const double one = spectral_norm(c.matrix(), {{c.u.data(), {rows}}, {}},
                                     {{out.data(), {rows, cols}}, {}, {}}, {});
    const double two =
        spectral_norm(turned, {{}, {c.u.data(), {rows}}},
                      {{other.data(), {cols, rows}, {1, cols}}, {}, {}}, {.u_first = true});
    EXPECT_EQ(one, two);
    EXPECT_EQ(std::memcmp(out.data(), other.data(), out.size() * sizeof(float)), 0);
    EXPECT_EQ(spectral_norm(turned, {{c.u.data(), {rows}}, {}},
                            {{other.data(), {cols, rows}, {1, cols}}, {}, {}}, {.axis = 1}),
              one)
        << "axis 1";
  }
}

TEST(SpectralNorm, BackwardMatchesItsDefinition) {
  const Index rows = 40, cols = 300;
  const Case c(rows, cols), g(rows, cols);
  std::vector<float> w(c.w.size()), u(rows), v(cols), dw(c.w.size());
  for (const double bound : {0.0, 0.5, 1e9}) {
    SpectralNormOptions o{.n_power_iterations = 2};
    if (bound > 0) o.bound = bound;
    const double sigma =
        spectral_norm(c.matrix(), {{c.u.data(), {rows}}, {}},
                      {{w.data(), {rows, cols}}, {u.data(), {rows}}, {v.data(), {cols}}}, o);
    spectral_norm_backward(g.matrix(), ConstTensor(w.data(), {rows, cols}), sigma,
                           ConstTensor(u.data(), {rows}), ConstTensor(v.data(), {cols}),
                           Tensor(dw.data(), {rows, cols}), o);
    const bool divided = bound == 0 || sigma > bound;
    double inner = 0;
    for (std::size_t i = 0; i < w.size(); ++i) inner += double(g.w[i]) * double(c.w[i]) / sigma;
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < cols; ++j) {
        const double rank_one = inner * double(u[std::size_t(i)]) * double(v[std::size_t(j)]);
        const double want =
            divided ? (bound > 0 ? bound : 1) / sigma * (g.at(i, j) - rank_one) : g.at(i, j);
        ASSERT_NEAR(double(dw[std::size_t(i * cols + j)]), want, 1e-5);
      }
    }
  }
}

TEST(SpectralNorm, ErrorsComeFirst) {
  const Case c(6, 4);
  std::vector<float> out(24, 7), v(4, 1);
  const Tensor w_out(out.data(), {6, 4});
  const ConstTensor u(c.u.data(), {6});
  EXPECT_THROW(spectral_norm(c.matrix(), {u, {}}, {w_out, {}, {}}, {.n_power_iterations = 0}),
               value_error);
  EXPECT_THROW(spectral_norm(c.matrix(), {{}, {}}, {w_out, {}, {}}), type_error);
  EXPECT_THROW(spectral_norm(c.matrix(), {u, {}}, {w_out, {v.data(), {4}}, {}}), value_error);
  EXPECT_THROW(
      spectral_norm(c.matrix(), {u, {}}, {w_out, {}, {}}, {}, Context{.device = Device::kCuda}),
      value_error);
  EXPECT_THROW(power_method(u, {}, {}, {}), value_error);
  for (const float value : out) EXPECT_EQ(value, 7);
}

TEST(PowerMethod, ConvergesAndSaysSo) {
  const Case c(70, 90);
  std::vector<double> u(70), v(90);
  const Tensor to_u(u.data(), {70}), to_v(v.data(), {90});
  const PowerMethodResult found = power_method(c.matrix(), {}, to_u, to_v);
  EXPECT_TRUE(found.converged);
  EXPECT_NEAR(found.sigma, c.iterate(100).sigma, 1e-5 * found.sigma);
  EXPECT_FALSE(power_method(c.matrix(), {}, to_u, to_v, {.n_iterations = 1}).converged);
  const std::vector<float> zeros(6300, 0);
  EXPECT_EQ(power_method(ConstTensor(zeros.data(), {70, 90}), {}, to_u, to_v).sigma, 0);
}

TEST(SpectralNorm, SteadyStateAllocatesNothing) {
  for (const auto& [rows, cols] : {std::pair<Index, Index>{64, 128}, {600, 700}, {40, 9000}}) {
    const Case c(rows, cols);
    std::vector<float> out(c.w.size()), u(c.u), v(static_cast<std::size_t>(cols), 1);
    const Tensor w_out(out.data(), {rows, cols}), u_out(u.data(), {rows}), v_out(v.data(), {cols});
    for (const int threads : {1, 2}) {
      for (const int n : {0, 2}) {
        EXPECT_EQ(testing::allocations_of([&] {
                    spectral_norm(c.matrix(), {u_out, v_out}, {w_out, u_out, v_out},
                                  {.n_power_iterations = n}, {.threads = threads});
                  }),
                  0)
            << rows << " x " << cols << ", threads " << threads << ", iterations " << n;
      }
      EXPECT_EQ(testing::allocations_of([&] {
                  spectral_norm_backward(c.matrix(), w_out, 2, u_out, v_out, w_out, {},
                                         {.threads = threads});
                }),
                0);
    }
  }
}

}  // namespace
}  // namespace normcore
