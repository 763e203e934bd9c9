// Pooled statistics: from the table of cell moments to what a method reads, and back from a
// method's gradients to every cell. Counts are uniform, so pooling is Chan's merge in a fixed
// order.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "normcore/method.h"
#include "plan/plan.h"

namespace normcore {

// What the elements of a pool count: the sum of their weights, and the divisor of an unbiased
// variance. Both are of the kind of a weight: a factor common to all weights changes no statistics.
struct Weighed {
  double sum, divisor;  // sum w - sum w^2 / sum w; n - 1 where all weights are 1

  NORMCORE_HD static Weighed elements(double n) { return {n, n > 1 ? n - 1 : 0}; }
  // From the sums over parts of their sums of weights, of the products of all pairs of weights
  // within a part, and of the squares of their sums. Those of a single part are its own.
  NORMCORE_HD static Weighed of_parts(double sum, double pairs, double squares) {
    pairs += std::fmax(0.0, sum * sum - squares) / 2;
    return {sum, sum > 0 ? 2 * pairs / sum : 0};
  }
  // What a part gives to these sums.
  static constexpr int kParts = 3;
  NORMCORE_HD void put_parts(double* parts) const {
    parts[0] = sum;
    parts[1] = sum * divisor / 2;
    parts[2] = sum * sum;
  }
  // Of two parts; no product of weights leaves the range.
  NORMCORE_HD static Weighed joined(const Weighed& a, const Weighed& b) {
    const double sum = a.sum + b.sum;
    if (!(sum > 0)) return {sum, 0};
    const double share = b.sum / sum;
    return {sum, a.divisor * (a.sum / sum) + b.divisor * share + 2 * (a.sum * share)};
  }
  // Of the unbiased variance to the biased one. Where one element is all that counts there is no
  // unbiased one; by less than this others are no more than its rounding.
  NORMCORE_HD double bessel() const { return divisor > 1e-12 * sum ? sum / divisor : 1; }
};

// What a pool of all samples counts. `there`: where that is in memory of a device, which a mask or
// other processes decide; nothing of it is known here then.
struct Counted {
  Weighed here{};
  const Weighed* there = nullptr;

  // Where `there` can be read.
  NORMCORE_HD Weighed value() const { return there ? *there : here; }
};

// The statistics of one pool over a block of the table: rows x cols entries.
struct PoolTable {
  Extent extent;
  Index rows, cols;
  Index row_step, cell_div;  // block cell (o, k) belongs to entry o * row_step + k / cell_div
  double count;
  double* mean;
  double* var;

  // f(entry, cell) for every cell of a block of `block_rows` rows.
  template <class F>
  void for_cells(Index block_rows, F f) const {
    Index cell = 0;
    for (Index o = 0; o < block_rows; ++o) {
      for (Index j = 0; j < cols; ++j) {
        const Index e = o * row_step + j;
        for (const Index end = cell + cell_div; cell < end; ++cell) f(e, cell);
      }
    }
  }
};

// The neighbouring cells of an entry, and the elements of one.
inline Index cells_across(Extent extent, const Plan& plan) {
  return extent == Extent::row     ? plan.cells
         : extent == Extent::group ? plan.cells / plan.groups
                                   : 1;
}
inline double elements_of(Extent extent, const Plan& plan) {
  return double(plan.cell_elements()) * double(cells_across(extent, plan)) *
         double(extent == Extent::column ? plan.outer : 1);
}

// Shape of a pool over a block of `on` x `kn` cells, closed under it. The table has one row, and
// `merged` of them behind it, where all pools are columns.
inline PoolTable pool_shape(Extent extent, const Plan& plan, Index on, Index kn) {
  PoolTable t{};
  t.extent = extent;
  t.cell_div = cells_across(extent, plan);
  t.cols = kn / t.cell_div;
  t.rows = extent == Extent::column ? 1 : on;
  t.row_step = extent == Extent::column ? 0 : t.cols;
  t.count = elements_of(extent, plan);
  return t;
}

// Chan's merge of n pairs of moments whose counts differ: a <- a + b.
NORMCORE_HD inline void merge_weighted(Index n, double* count_a, double* mean_a, double* m2_a,
                                       const double* count_b, const double* mean_b,
                                       const double* m2_b) {
  for (Index k = 0; k < n; ++k) {
    const double total = count_a[k] + count_b[k];
    if (count_b[k] == 0) continue;
    const double delta = mean_b[k] - mean_a[k], share = count_b[k] / total;
    mean_a[k] += delta * share;
    m2_a[k] += m2_b[k] + delta * delta * (count_a[k] * share);
    count_a[k] = total;
  }
}

// Fills t from cell moments [rows, kn], each over `cell_count` elements.
template <class Backend>
void pool_moments(const Backend& be, const double* mean, const double* m2, Index rows, Index kn,
                  double cell_count, PoolTable& t) {
  const Index entries = t.rows * t.cols;
  const double count = t.count;
  if (rows == 0) {  // no elements: what they add to those of other processes
    for (Index e = 0; e < entries; ++e) t.mean[e] = t.var[e] = 0;
    return;
  }
  if (t.extent == Extent::cell) {
    for (Index e = 0; e < entries; ++e) t.mean[e] = mean[e];
    for (Index e = 0; e < entries; ++e) t.var[e] = m2[e] / count;
    return;
  }
  if (t.extent == Extent::column) {
    for (Index o = 0; o < rows; ++o) {
      if (o == 0) {
        for (Index k = 0; k < kn; ++k) t.mean[k] = mean[k], t.var[k] = m2[k];
      } else {
        be.merge(kn, double(o) * cell_count, t.mean, t.var, cell_count, mean + o * kn, m2 + o * kn);
      }
    }
  } else {
    const double share = 1 / double(t.cell_div);
    for (Index e = 0; e < entries; ++e) {
      const double* means = mean + e * t.cell_div;  // rows * kn cells, cell_div to an entry
      const double* m2s = m2 + e * t.cell_div;
      // From the first mean on: equal means have exactly themselves for a mean.
      double m = 0, within = 0, between = 0;
      for (Index j = 1; j < t.cell_div; ++j) m += (means[j] - means[0]) * share;
      m += means[0];
      for (Index j = 0; j < t.cell_div; ++j) {
        within += m2s[j];
        between += (means[j] - m) * (means[j] - m);
      }
      t.mean[e] = m;
      t.var[e] = within + cell_count * between;
    }
  }
  for (Index e = 0; e < entries; ++e) t.var[e] /= count;
}

// Largest power of two not above |a|, kept within the normal range of C; 1 where a is not finite.
template <class C = float>
NORMCORE_HD double unit_of(double a) {
  constexpr double kMost = sizeof(C) == 4 ? 0x1p126 : 0x1p1000;
  const double size = std::fabs(a);
  double bounded = size < 1 / kMost ? 1 / kMost : size;
  bounded = bounded > kMost ? kMost : bounded;
  bounded = size <= std::numeric_limits<double>::max() ? bounded : 1;
  constexpr std::uint64_t kExponent = 0x7ff0000000000000;
  return std::bit_cast<double>(std::bit_cast<std::uint64_t>(bounded) & kExponent);
}
// 1 / unit, as exact and without a division: the exponent's distance from that of 1, turned round.
NORMCORE_HD inline double inverse_of_unit(double unit) {
  return std::bit_cast<double>((std::uint64_t{2046} << 52) - std::bit_cast<std::uint64_t>(unit));
}

}  // namespace normcore
