// Pooled statistics: moments merged over any partition are those of the whole, and the unit that
// keeps products in range is a power of two for every double.
#include "plan/pool.h"

#include <gtest/gtest.h>

#include "cpu/dispatch.h"
#include "support.h"

namespace normcore {
namespace {

using testing::Random;

struct Moments {
  double count = 0, mean = 0, m2 = 0;
};
Moments moments_of(const std::vector<double>& x, std::size_t first, std::size_t last) {
  Moments m;
  m.count = double(last - first);
  for (std::size_t i = first; i < last; ++i) m.mean += x[i] / m.count;
  for (std::size_t i = first; i < last; ++i) m.m2 += (x[i] - m.mean) * (x[i] - m.mean);
  return m;
}

// What pool_moments wants of a backend.
struct Merger {
  void merge(Index n, double count_a, double* mean_a, double* m2_a, double count_b,
             const double* mean_b, const double* m2_b) const {
    cpu::kernels().merge(n, count_a, mean_a, m2_a, count_b, mean_b, m2_b);
  }
};

std::vector<double> numbers(Random& random, std::size_t n) {
  std::vector<double> x(n);
  for (double& v : x) v = 100 + random.normal();
  return x;
}

TEST(Merge, AnyPartitionGivesTheWhole) {
  Random random(1);
  for (int trial = 0; trial < 300; ++trial) {
    const std::vector<double> x = numbers(random, std::size_t(random.integer(1, 200)));
    const Moments whole = moments_of(x, 0, x.size());
    Moments sum;
    for (std::size_t first = 0; first < x.size();) {
      const std::size_t last = first + std::size_t(random.integer(1, Index(x.size() - first)));
      const Moments part = moments_of(x, first, last);
      if (first == 0) {
        sum = part;
      } else {
        Merger().merge(1, sum.count, &sum.mean, &sum.m2, part.count, &part.mean, &part.m2);
        sum.count += part.count;
      }
      first = last;
    }
    EXPECT_NEAR(sum.mean, whole.mean, 1e-12);
    EXPECT_NEAR(sum.m2, whole.m2, 1e-10);
  }
}

TEST(Pools, OfEveryExtentAreTheMomentsOfTheirMembers) {
  Random random(2);
  const Index kCount = 5;  // elements of a cell
  for (int trial = 0; trial < 200; ++trial) {
    Plan plan{};
    plan.groups = random.integer(1, 3);
    plan.cells = plan.groups * random.integer(1, 4);
    plan.outer = random.integer(1, 4);
    plan.count = kCount;
    const std::size_t cells = std::size_t(plan.outer * plan.cells);
    const std::vector<double> x = numbers(random, cells * std::size_t(kCount));
    std::vector<double> mean(cells), m2(cells);
    for (std::size_t i = 0; i < cells; ++i) {
      const Moments m = moments_of(x, i * std::size_t(kCount), (i + 1) * std::size_t(kCount));
      mean[i] = m.mean;
      m2[i] = m.m2;
    }
    for (const Extent extent : {Extent::cell, Extent::group, Extent::row, Extent::column}) {
      PoolTable t = pool_shape(extent, plan, plan.outer, plan.cells);
      ASSERT_EQ(t.rows, plan.pool_rows(extent));
      ASSERT_EQ(t.cols, plan.pool_cols(extent));
      std::vector<double> pool_mean(std::size_t(t.rows * t.cols)), pool_var(pool_mean.size());
      t.mean = pool_mean.data();
      t.var = pool_var.data();
      pool_moments(Merger(), mean.data(), m2.data(), plan.outer, plan.cells, double(kCount), t);

      std::vector<Index> entry_of(cells, -1);
      t.for_cells(plan.outer, [&](Index e, Index cell) { entry_of[std::size_t(cell)] = e; });
      // The members of every pool, by what a pool is.
      std::vector<std::vector<double>> members(pool_mean.size());
      const Index group = plan.cells / plan.groups;
      for (Index o = 0; o < plan.outer; ++o) {
        for (Index k = 0; k < plan.cells; ++k) {
          const Index pool = extent == Extent::cell     ? o * plan.cells + k
                             : extent == Extent::group  ? o * plan.groups + k / group
                             : extent == Extent::column ? k
                                                        : o;
          ASSERT_EQ(entry_of[std::size_t(o * plan.cells + k)], pool);
          for (Index s = 0; s < kCount; ++s) {
            members[std::size_t(pool)].push_back(x[std::size_t((o * plan.cells + k) * kCount + s)]);
          }
        }
      }
      for (std::size_t i = 0; i < members.size(); ++i) {
        const Moments want = moments_of(members[i], 0, members[i].size());
        EXPECT_EQ(t.count, want.count);
        EXPECT_NEAR(pool_mean[i], want.mean, 1e-12);
        EXPECT_NEAR(pool_var[i], want.m2 / want.count, 1e-11);
      }
    }
  }
}

TEST(UnitOf, IsTheLargestPowerOfTwoNotAbove) {
  for (int e = -126; e <= 126; ++e) {
    const double power = std::ldexp(1, e);
    EXPECT_EQ(unit_of(power), power);
    EXPECT_EQ(unit_of(std::nextafter(2 * power, 0)), power);
    EXPECT_EQ(unit_of(-1.5 * power), power);
    EXPECT_EQ(double(float(unit_of(power))), power);  // and is a normal float
    EXPECT_GE(float(unit_of(power)), 0x1p-126f);
  }
}

TEST(UnitOf, StaysWithinFloatsRange) {
  for (const double a : {0.0, -0.0, 5e-324, 1e-310, 1e-300, 0x1p-127}) {
    EXPECT_EQ(unit_of(a), 0x1p-126) << a;
    EXPECT_EQ(unit_of(-a), 0x1p-126) << a;
  }
  for (const double a : {0x1p127, 1e300, 0x1.fffffffffffffp1023}) {
    EXPECT_EQ(unit_of(a), 0x1p126) << a;
  }
}

TEST(UnitOf, IsOneWhereTheNumberIsNotFinite) {
  for (const double a : {double(INFINITY), double(NAN)}) {
    EXPECT_EQ(unit_of(a), 1);
    EXPECT_EQ(unit_of(-a), 1);
  }
}

}  // namespace
}  // namespace normcore
