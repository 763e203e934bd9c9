// Divisive norm and GDN through the public headers, against their formulas in double: every element
// type and instruction set, tiles that end anywhere, and what a call must not do: allocate in the
// steady state, depend on the number of threads, write before it refuses.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "allocations.h"
#include "support.h"

namespace normcore {
namespace {

using testing::Array;
using testing::Random;

// x [samples, channels, space], in the order of memory that the strides say.
struct Problem {
  Index samples, channels, space;
  Array x, dy, y, dx, offset, mixing, gain, doffset, dmixing, dgain;

  Problem(DType t, Index n, Index c, Index s, bool channels_last)
      : samples(n),
        channels(c),
        space(s),
        x(make(t, channels_last)),
        dy(make(t, channels_last)),
        y(make(t, channels_last)),
        dx(make(t, channels_last)),
        offset(DType::kFloat32, {c}),
        mixing(DType::kFloat32, {c, c}),
        gain(DType::kFloat32, {c}),
        doffset(DType::kFloat64, {c}),
        dmixing(DType::kFloat64, {c, c}),
        dgain(DType::kFloat64, {c}) {
    Random random(5);
    x.fill(random, 0, 1);
    dy.fill(random, 0.2, 1);
    offset.assign(uniform(random, c, 0.3, 1.3));
    mixing.assign(uniform(random, c * c, 0, 2.0 / double(c)));
    gain.assign(uniform(random, c, 0.5, 1.5));
  }
  Array make(DType t, bool channels_last) const {
    if (!channels_last) return Array(t, {samples, channels, space});
    return Array(t, {samples, channels, space}, {channels * space, 1, channels});
  }
  static std::vector<double> uniform(Random& random, Index n, double low, double high) {
    std::vector<double> v;
    for (Index i = 0; i < n; ++i) v.push_back(low + (high - low) * random.uniform());
    return v;
  }
  Index at(Index n, Index c, Index s) const { return (n * channels + c) * space + s; }
};

// y = g sgn(x) |x|^p D^-e with D = b + W |x|^a, and the sums of its gradients.
struct Want {
  std::vector<double> y, dx, dmixing, doffset, dgain;

  Want(const Problem& f, double q, double a, double p, double e, bool with_gain)
      : y(f.x.values.size()),
        dx(f.x.values.size()),
        dmixing(std::size_t(f.channels * f.channels)),
        doffset(std::size_t(f.channels)),
        dgain(std::size_t(f.channels)) {
    const Index c = f.channels;
    std::vector<double> t(static_cast<std::size_t>(c)), direct(t);
    for (Index n = 0; n < f.samples; ++n) {
      for (Index s = 0; s < f.space; ++s) {
        auto x = [&](Index k) { return f.x.values[std::size_t(f.at(n, k, s))]; };
        for (Index i = 0; i < c; ++i) {
          double d = std::pow(f.offset.values[std::size_t(i)], q);
          for (Index k = 0; k < c; ++k) {
            d += f.mixing.values[std::size_t(i * c + k)] * std::pow(std::abs(x(k)), a);
          }
          const double g = with_gain ? f.gain.values[std::size_t(i)] : 1;
          const double bare = std::copysign(std::pow(std::abs(x(i)), p), x(i)) * std::pow(d, -e);
          const std::size_t here = std::size_t(f.at(n, i, s));
          const double dy = f.dy.values[here];
          y[here] = g * bare;
          t[std::size_t(i)] = -e * dy * y[here] / d;
          direct[std::size_t(i)] = dy * g * p * std::pow(std::abs(x(i)), p - 1) * std::pow(d, -e);
          doffset[std::size_t(i)] += t[std::size_t(i)];
          dgain[std::size_t(i)] += dy * bare;
        }
        for (Index k = 0; k < c; ++k) {
          const double power = std::pow(std::abs(x(k)), a);
          double back = 0;
          for (Index i = 0; i < c; ++i) {
            back += f.mixing.values[std::size_t(i * c + k)] * t[std::size_t(i)];
            dmixing[std::size_t(i * c + k)] += t[std::size_t(i)] * power;
          }
          dx[std::size_t(f.at(n, k, s))] = direct[std::size_t(k)] + a * power / x(k) * back;
        }
      }
    }
  }
};

void expect_near(const Array& got, const std::vector<double>& want, double slack,
                 const char* what) {
  double size = 0;
  for (const double v : want) size = std::max(size, std::abs(v));
  const double rounding = testing::rounding(got.dtype);
  for (Index i = 0; i < got.size(); ++i) {
    const double exact = want[std::size_t(i)];
    ASSERT_NEAR(got.read(i), exact, rounding * std::abs(exact) + slack * size) << what << ' ' << i;
  }
}

struct Case {
  std::string isa;
  DType dtype;
};
class Divisive : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override { set_isa(GetParam().isa); }
  void TearDown() override { set_isa(available_isas().front()); }
};

TEST_P(Divisive, MatchesItsFormulaInEveryShape) {
  const DType t = GetParam().dtype;
  // Sums of some hundred rounded terms.
  const double slack = 60 * testing::compute_rounding(t);
  const Index shapes[][3] = {{1, 1, 1},    {2, 3, 50}, {3, 13, 4},
                             {1, 40, 137}, {5, 25, 7}, {1, 20, 600}};
  for (const auto& [n, c, s] : shapes) {
    for (const bool last : {false, true}) {
      Problem f(t, n, c, s, last);
      for (const bool inverse : {false, true}) {
        const GDNOptions o{inverse, inverse ? 1.3 : 2.0, inverse ? 0.7 : 0.5};
        gdn(f.x.tensor(), f.offset.tensor(), f.mixing.tensor(), f.y.tensor(), o);
        double dalpha = NAN, depsilon = NAN;
        gdn_backward(f.dy.tensor(), f.x.tensor(), f.offset.tensor(), f.mixing.tensor(),
                     {f.dx.tensor(), f.doffset.tensor(), f.dmixing.tensor(), &dalpha, &depsilon},
                     o);
        const Want want(f, 1, o.alpha, 1, inverse ? -o.epsilon : o.epsilon, false);
        expect_near(f.y, want.y, slack, "y");
        expect_near(f.dx, want.dx, slack, "dx");
        expect_near(f.doffset, want.doffset, slack, "dbeta");
        expect_near(f.dmixing, want.dmixing, slack, "dgamma");
        EXPECT_TRUE(std::isfinite(dalpha) && std::isfinite(depsilon));
      }
      for (const double power : {1.0, 2.0, 1.5}) {
        const DivisiveNormOptions o{2, power};
        divisive_norm(f.x.tensor(), f.mixing.tensor(), f.offset.tensor(), f.gain.tensor(),
                      f.y.tensor(), o);
        divisive_norm_backward(
            f.dy.tensor(), f.x.tensor(), f.mixing.tensor(), f.offset.tensor(), f.gain.tensor(),
            {f.dx.tensor(), f.dmixing.tensor(), f.doffset.tensor(), f.dgain.tensor()}, o);
        Want want(f, 2, 2, power, power / 2, true);
        for (Index i = 0; i < c; ++i) {
          want.doffset[std::size_t(i)] *= 2 * f.offset.values[std::size_t(i)];
        }
        expect_near(f.y, want.y, slack, "y");
        expect_near(f.dx, want.dx, slack, "dx");
        expect_near(f.dmixing, want.dmixing, slack, "dweights");
        expect_near(f.doffset, want.doffset, slack, "dsigma");
        expect_near(f.dgain, want.dgain, slack, "dgain");
      }
    }
  }
}

TEST_P(Divisive, InferenceAllocatesNothingInTheSteadyState) {
  for (const Index width : {3, 700}) {
    Problem f(GetParam().dtype, 4, 24, width, false);
    for (const int threads : {1, 2}) {
      const Context context{.threads = threads};
      EXPECT_EQ(testing::allocations_of([&] {
                  gdn(f.x.tensor(), f.offset.tensor(), f.mixing.tensor(), f.y.tensor(), {},
                      context);
                  divisive_norm(f.x.tensor(), f.mixing.tensor(), f.offset.tensor(), {},
                                f.y.tensor(), {}, context);
                }),
                0);
    }
  }
}

TEST_P(Divisive, GradientsDoNotKnowWhichOthersAreWanted) {
  // Few pixels, and enough for runs of them.
  for (const Index space : {137, 2100}) {
    Problem f(GetParam().dtype, 1, 20, space, false);
    auto run = [&](const Tensor& doffset, const Tensor& dmixing) {
      gdn_backward(f.dy.tensor(), f.x.tensor(), f.offset.tensor(), f.mixing.tensor(),
                   {f.dx.tensor(), doffset, dmixing});
    };
    run(f.doffset.tensor(), f.dmixing.tensor());
    const auto dx = f.dx.read(), doffset = f.doffset.read(), dmixing = f.dmixing.read();
    run({}, f.dmixing.tensor());
    EXPECT_EQ(f.dx.read(), dx);
    EXPECT_EQ(f.dmixing.read(), dmixing);
    run(f.doffset.tensor(), {});
    EXPECT_EQ(f.dx.read(), dx);
    EXPECT_EQ(f.doffset.read(), doffset);
    run({}, {});
    EXPECT_EQ(f.dx.read(), dx);
  }
}

TEST_P(Divisive, ThreadsDoNotChangeABit) {
  Problem f(GetParam().dtype, 7, 20, 531, false);
  std::vector<std::vector<double>> first;
  for (const int threads : {1, 2, 5}) {
    const Context context{.threads = threads};
    double dalpha, depsilon;
    gdn(f.x.tensor(), f.offset.tensor(), f.mixing.tensor(), f.y.tensor(), {}, context);
    gdn_backward(f.dy.tensor(), f.x.tensor(), f.offset.tensor(), f.mixing.tensor(),
                 {f.dx.tensor(), f.doffset.tensor(), f.dmixing.tensor(), &dalpha, &depsilon}, {},
                 context);
    const std::vector<std::vector<double>> results = {
        f.y.read(), f.dx.read(), f.doffset.read(), f.dmixing.read(), {dalpha, depsilon}};
    if (first.empty()) first = results;
    EXPECT_EQ(results, first) << threads;
  }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const std::string& isa : testing::every_isa()) {
    for (const DType t : testing::kDTypes) all.push_back({isa, t});
  }
  return all;
}
INSTANTIATE_TEST_SUITE_P(All, Divisive, ::testing::ValuesIn(cases()), [](const auto& info) {
  return testing::test_name(info.param.isa) + "_" + testing::test_name(info.param.dtype);
});

TEST(DivisiveErrors, ComeBeforeAnythingIsWritten) {
  float x[6] = {1, 2, 3, 4, 5, 6}, y[6] = {7, 7, 7, 7, 7, 7};
  float beta[3] = {1, 1, 1}, gamma[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1}, negative[3] = {1, -1, 1};
  const ConstTensor in(x, {2, 3}), b(beta, {3}), g(gamma, {3, 3}), below(negative, {3});
  const Tensor out(y, {2, 3});
  EXPECT_THROW(gdn(in, ConstTensor(beta, {2}), g, out), value_error);
  EXPECT_THROW(gdn(in, b, ConstTensor(gamma, {3}), out), value_error);
  EXPECT_THROW(gdn(in, {}, g, out), value_error);
  EXPECT_THROW(gdn(in, below, g, out), value_error);
  EXPECT_THROW(gdn(in, b, g, out, {.alpha = 0}), value_error);
  EXPECT_THROW(gdn(in, b, g, out, {.epsilon = NAN}), value_error);
  EXPECT_THROW(gdn(in, b, g, out, {.channel_axis = 2}), value_error);
  EXPECT_THROW(gdn(in, b, g, Tensor(y, {3, 2})), value_error);
  EXPECT_THROW(gdn(in, b, g, out, {}, {.device = Device::kCuda}), value_error);
  EXPECT_THROW(divisive_norm(in, g, below, {}, out), value_error);
  EXPECT_THROW(divisive_norm(in, g, b, ConstTensor(beta, {2}), out), value_error);
  EXPECT_THROW(divisive_norm(in, g, b, {}, out, {.power = 0}), value_error);
  EXPECT_THROW(gdn_backward(ConstTensor(x, {3, 2}), in, b, g, {out}), value_error);
  for (const float v : y) EXPECT_EQ(v, 7);
}

TEST(DivisiveErrors, NothingInNothingOut) {
  float beta[3] = {1, 1, 1}, gamma[9] = {}, dbeta[3] = {7, 7, 7};
  const ConstTensor empty(beta, {0, 3}), b(beta, {3}), g(gamma, {3, 3});
  gdn(empty, b, g, Tensor(dbeta, {0, 3}));
  gdn_backward(empty, empty, b, g, {Tensor(gamma, {0, 3}), Tensor(dbeta, {3})});
  for (const float v : dbeta) EXPECT_EQ(v, 0);
}

}  // namespace
}  // namespace normcore
