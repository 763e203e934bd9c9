// exp, log and pow of every instruction set against the C library in long double: dense samples of
// all exponents, subnormal results, and the ends of the range. Hunts digits lost in a reduction,
// a polynomial that is asked beyond its interval, wrong special values, and results that depend on
// an element's place in a vector.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "cpu/dispatch.h"
#include "probes.h"
#include "support.h"

namespace normcore::cpu {
namespace {

// As vector_math.h states it.
constexpr double kUlps = 2;

const probes::Elementary<float>& elementary(float) { return probes::probes().f32; }
const probes::Elementary<double>& elementary(double) { return probes::probes().f64; }

// How far `got` is from `want`, in units of the last place of `want`. Infinity counts as the number
// after the largest finite one, which it is to rounding.
template <class C>
double ulps(C got, long double want) {
  using Limits = std::numeric_limits<C>;
  if (std::isnan(got) || std::isnan(want))
    return std::isnan(got) && std::isnan(want) ? 0 : INFINITY;
  const long double top = std::ldexp(1.0L, Limits::max_exponent);
  const long double is = std::clamp((long double)(got), -top, top);
  const long double should_be = std::clamp(want, -top, top);
  const int exponent = std::clamp(want == 0 ? Limits::min_exponent : std::ilogb(should_be),
                                  Limits::min_exponent - 1, Limits::max_exponent - 1);
  return double(std::abs(is - should_be) / std::ldexp(1.0L, exponent - (Limits::digits - 1)));
}

// Numbers of all exponents, of few digits and of many, and those around 1.
template <class C>
std::vector<C> positive_numbers(testing::Random& random) {
  using Limits = std::numeric_limits<C>;
  std::vector<C> x;
  for (int e = Limits::min_exponent - Limits::digits; e < Limits::max_exponent; ++e) {
    for (double m : {1.0, 1.4142135, 1.4142136, 1.5, 2 - std::ldexp(1, 1 - Limits::digits)}) {
      x.push_back(C(std::ldexp(m, e)));
    }
    for (int i = 0; i < 20; ++i) x.push_back(C(std::ldexp(1 + random.uniform(), e)));
  }
  for (int e = -Limits::digits; e < -1; ++e) {
    for (int i = 0; i < 20; ++i) {
      const double d = std::ldexp(1 + random.uniform(), e);
      x.push_back(C(1 + d));
      x.push_back(C(1 - d));
    }
  }
  for (int i = 0; i < 20000; ++i) x.push_back(C(0.5 + 1.5 * random.uniform()));
  std::erase(x, C(0));
  return x;
}

class VectorMath : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { set_isa(GetParam()); }
  void TearDown() override { set_isa(available_isas().front()); }
  testing::Random random_{11};

  template <class C>
  void check_exp() {
    // Beyond where results are 0 and infinite.
    const double end = sizeof(C) == 4 ? 106 : 750;
    std::vector<C> x = {C(0), C(-0.0)};
    for (int i = 0; i < 40000; ++i) x.push_back(C((2 * random_.uniform() - 1) * end));
    for (int i = 0; i < 40000; ++i) {
      x.push_back(C(std::ldexp(2 * random_.uniform() - 1, -int(random_.integer(0, 40)))));
    }
    // Where the reduction goes from one power of two to the next.
    for (int n = -160; n < 130; ++n) {
      const C half = C((n + 0.5) * 0.69314718055994530942L);
      x.insert(x.end(), {half, std::nextafter(half, C(1e4)), std::nextafter(half, C(-1e4))});
    }
    std::vector<C> y(x.size());
    elementary(C()).exp(x.data(), y.data(), Index(x.size()));
    for (std::size_t i = 0; i < x.size(); ++i) {
      ASSERT_LE(ulps(y[i], std::exp((long double)(x[i]))), kUlps) << x[i];
    }
  }

  template <class C>
  void check_log() {
    const std::vector<C> x = positive_numbers<C>(random_);
    std::vector<C> y(x.size());
    elementary(C()).log(x.data(), y.data(), Index(x.size()));
    for (std::size_t i = 0; i < x.size(); ++i) {
      ASSERT_LE(ulps(y[i], std::log((long double)(x[i]))), kUlps) << x[i];
    }
  }

  template <class C>
  void check_pow() {
    const std::vector<C> x = positive_numbers<C>(random_);
    std::vector<C> y(x.size());
    std::vector<double> exponents = {0.5, 1, 2, 3, 0.75, -0.5, -1, -0.25, 1.0 / 3, 1e-30, 17};
    for (int i = 0; i < 30; ++i) exponents.push_back(6 * random_.uniform() - 3);
    // Those that take numbers near 1 to the ends of the range.
    for (int i = 0; i < 60; ++i) {
      exponents.push_back(std::ldexp(2 * random_.uniform() - 1, int(random_.integer(2, 60))));
    }
    for (double exponent : exponents) {
      const C e = C(exponent);
      elementary(C()).pow(x.data(), e, y.data(), Index(x.size()));
      // A few of the numbers for each exponent: the C library takes its time.
      for (std::size_t i = std::size_t(random_.integer(0, 9)); i < x.size(); i += 10) {
        ASSERT_LE(ulps(y[i], std::pow((long double)(x[i]), (long double)(e))), kUlps)
            << x[i] << " ^ " << e;
      }
    }
  }

  template <class C>
  void check_special_values() {
    using Limits = std::numeric_limits<C>;
    const C inf = Limits::infinity(), nan = Limits::quiet_NaN();
    const auto one = [](auto f, C x) {
      C y;
      f(&x, &y, Index(1));
      return y;
    };
    const auto& f = elementary(C());
    EXPECT_EQ(one(f.exp, inf), inf);
    EXPECT_EQ(one(f.exp, -inf), 0);
    EXPECT_EQ(one(f.exp, Limits::max()), inf);
    EXPECT_EQ(one(f.exp, Limits::lowest()), 0);
    EXPECT_EQ(one(f.exp, 0), 1);
    EXPECT_TRUE(std::isnan(one(f.exp, nan)));
    EXPECT_EQ(one(f.log, 0), -inf);
    EXPECT_EQ(one(f.log, C(-0.0)), -inf);
    EXPECT_EQ(one(f.log, 1), 0);
    EXPECT_EQ(one(f.log, inf), inf);
    EXPECT_TRUE(std::isnan(one(f.log, -1)));
    EXPECT_TRUE(std::isnan(one(f.log, -Limits::denorm_min())));
    EXPECT_TRUE(std::isnan(one(f.log, nan)));
    const auto pow = [&](C x, C e) {
      C y;
      f.pow(&x, e, &y, 1);
      return y;
    };
    for (C e : {C(0.5), C(3), C(1e30), Limits::denorm_min(), inf}) {
      EXPECT_EQ(pow(0, e), 0);
      EXPECT_EQ(pow(0, -e), inf);
      EXPECT_EQ(pow(inf, e), inf);
      EXPECT_EQ(pow(inf, -e), 0);
      EXPECT_EQ(pow(1, e), 1);
      EXPECT_TRUE(std::isnan(pow(nan, e)));
      EXPECT_TRUE(std::isnan(pow(-1, e)));
    }
    for (C x : {C(0), C(1), Limits::denorm_min(), Limits::max(), inf}) EXPECT_EQ(pow(x, 0), 1);
    EXPECT_EQ(pow(C(0.999), C(1e30)), 0);
    EXPECT_EQ(pow(C(1.001), C(1e30)), inf);
    EXPECT_EQ(pow(C(1.001), -inf), 0);
    EXPECT_EQ(pow(Limits::max(), 1), Limits::max());
    EXPECT_EQ(pow(Limits::denorm_min(), 1), Limits::denorm_min());
  }

  // In place, from every place in a line, of every length.
  template <class C>
  void check_places() {
    constexpr Index kMost = 70;
    std::vector<C> x;
    for (Index i = 0; i < kMost; ++i) x.push_back(C(3 * random_.uniform()));
    std::vector<C> want(kMost), got(kMost + 16);
    const auto& f = elementary(C());
    f.pow(x.data(), C(0.7), want.data(), kMost);
    for (Index offset = 0; offset < 16; ++offset) {
      for (Index n = 0; n <= kMost; ++n) {
        std::fill(got.begin(), got.end(), C(-7));
        std::copy(x.begin(), x.begin() + n, got.begin() + offset);
        f.pow(got.data() + offset, C(0.7), got.data() + offset, n);
        for (Index i = 0; i < Index(got.size()); ++i) {
          const bool inside = i >= offset && i < offset + n;
          ASSERT_EQ(got[std::size_t(i)], inside ? want[std::size_t(i - offset)] : C(-7));
        }
      }
    }
  }
};

TEST_P(VectorMath, ExpIsWithinTwoUlps) { check_exp<float>(), check_exp<double>(); }
TEST_P(VectorMath, LogIsWithinTwoUlps) { check_log<float>(), check_log<double>(); }
TEST_P(VectorMath, PowIsWithinTwoUlps) { check_pow<float>(), check_pow<double>(); }
TEST_P(VectorMath, ZerosInfinitiesAndNaN) {
  check_special_values<float>();
  check_special_values<double>();
}
TEST_P(VectorMath, AnElementDoesNotDependOnItsPlace) {
  check_places<float>();
  check_places<double>();
}

INSTANTIATE_TEST_SUITE_P(All, VectorMath, ::testing::ValuesIn(available_isas()),
                         [](const auto& info) { return testing::test_name(info.param); });

}  // namespace
}  // namespace normcore::cpu
