// Pooled statistics: from the table of cell moments to what a method reads, and back from a
// method's gradients to every cell. Counts are uniform, so pooling is Chan's merge in a fixed
// order.
#pragma once

#include <bit>
#include <cstdint>

#include "normcore/method.h"
#include "plan.h"

namespace normcore {

// The statistics of one pool over a block of the table: rows x cols entries.
struct PoolTable {
  Extent extent;
  Index rows, cols;
  Index row_step, cell_div;  // entry of block cell (o, k): o * row_step + k / cell_div
  double count;
  double* mean;
  double* var;

  // The division is worth a branch: most pools have an entry per cell.
  Index entry(Index o, Index k) const { return o * row_step + (cell_div == 1 ? k : k / cell_div); }
};

// Shape of a pool over a block of `on` x `kn` cells, closed under it. The table has one row, and
// `merged` of them behind it, where all pools are columns.
inline PoolTable pool_shape(Extent extent, const Plan& plan, Index on, Index kn) {
  PoolTable t{};
  t.extent = extent;
  const Index group = plan.cells / plan.groups;
  t.cell_div = extent == Extent::group ? group : extent == Extent::row ? kn : 1;
  t.cols = kn / t.cell_div;
  t.rows = extent == Extent::column ? 1 : on;
  t.row_step = extent == Extent::column ? 0 : t.cols;
  t.count =
      double(plan.count) * double(t.cell_div) * double(extent == Extent::column ? plan.outer : 1);
  return t;
}

// Fills t from cell moments [rows, kn], each over `cell_count` elements.
template <class Backend>
void pool_moments(const Backend& be, const double* mean, const double* m2, Index rows, Index kn,
                  double cell_count, PoolTable& t) {
  const Index entries = t.rows * t.cols;
  if (t.extent == Extent::column) {
    for (Index o = 0; o < rows; ++o) {
      if (o == 0) {
        for (Index k = 0; k < kn; ++k) t.mean[k] = mean[k], t.var[k] = m2[k];
      } else {
        be.merge(kn, double(o) * cell_count, t.mean, t.var, cell_count, mean + o * kn, m2 + o * kn);
      }
    }
  } else {
    for (Index e = 0; e < entries; ++e) {
      const Index first = e * t.cell_div;  // rows * kn cells, cell_div to an entry
      double m = mean[first], q = m2[first];
      for (Index j = 1; j < t.cell_div; ++j) {
        const double d = mean[first + j] - m, share = 1 / double(j + 1);
        m += d * share;
        q += m2[first + j] + d * d * cell_count * double(j) * share;
      }
      t.mean[e] = m;
      t.var[e] = q;
    }
  }
  for (Index e = 0; e < entries; ++e) t.var[e] /= t.count;
}

// Largest power of two not above |a|, kept within float's normal range; 1 where a is not finite.
inline double unit_of(double a) {
  constexpr std::uint64_t kLow = 1023 - 126, kOne = 1023, kHigh = 1023 + 126;
  std::uint64_t exponent = std::bit_cast<std::uint64_t>(a) >> 52 & 0x7ff;
  exponent = exponent == 0x7ff  ? kOne
             : exponent < kLow  ? kLow
             : exponent > kHigh ? kHigh
                                : exponent;
  return std::bit_cast<double>(exponent << 52);
}

}  // namespace normcore
