// Cells of several columns: what was reduced by column, joined by cell, and coefficients of cells
// laid out by column.
#pragma once

#include "drivers.inl"

namespace normcore::cpu::NORMCORE_ISA {
namespace {

// Four cells at a time: what is done with the lanes in the end is done for all of them.
template <class F>
SI void cells_by_four(Index cells, F f) {
  Index k = 0;
  for (; k + 4 <= cells; k += 4) f.template operator()<4>(k);
  for (; k < cells; ++k) f.template operator()<1>(k);
}

// Sums f(cell, i, tag) over the columns of R cells.
template <int R, class F>
SI void sum_columns(Index columns, double (&out)[R], F f) {
  Vec<double> sums[R];
  for (int r = 0; r < R; ++r) {
    Vec<double> acc[4] = {};
    fold<double>(columns, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
      acc[j] += keep<double>(f(r, i, tag), tag);
    });
    sums[r] = join<double>(acc);
  }
  sum_rows<double, R>(sums, out);
}

void join_moments(Index cells, Index columns, double count, const double* mean, const double* m2,
                  double* to_mean, double* to_m2) {
  const double share = 1 / double(columns);
  cells_by_four(cells, [&]<int R>(Index k) __attribute__((always_inline)) {
    const double* const means = mean + k * columns;
    const double* const squares = m2 + k * columns;
    // From the first mean on: equal means have exactly themselves for a mean.
    double center[R], sum[R];
    sum_columns<R>(columns, sum, [&](int r, Index i, auto tag) __attribute__((always_inline)) {
      return load(means + r * columns + i, tag) - splat(means[r * columns]);
    });
    for (int r = 0; r < R; ++r) center[r] = means[r * columns] + sum[r] * share;
    for (int r = 0; r < R; ++r) {
      if (center[r] == center[r]) continue;
      center[r] = 0;  // infinite, or not a number: its own differences would be none
      for (Index i = 0; i < columns; ++i) center[r] += means[r * columns + i] * share;
    }
    sum_columns<R>(columns, sum, [&](int r, Index i, auto tag) __attribute__((always_inline)) {
      const Vec<double> d = load(means + r * columns + i, tag) - splat(center[r]);
      return fma<double>(d * d, splat(count), load(squares + r * columns + i, tag));
    });
    for (int r = 0; r < R; ++r) {
      to_mean[k + r] = center[r];
      to_m2[k + r] = sum[r];
    }
  });
}

void join_sums(Index cells, Index columns, const double* sums, double* to) {
  cells_by_four(cells, [&]<int R>(Index k) __attribute__((always_inline)) {
    double sum[R];
    sum_columns<R>(columns, sum, [&](int r, Index i, auto tag) __attribute__((always_inline)) {
      return load(sums + (k + r) * columns + i, tag);
    });
    for (int r = 0; r < R; ++r) to[k + r] = sum[r];
  });
}

// Whole vectors, each over what the one before left beyond its cell.
template <class C>
void repeat(const C* values, Index cells, Index columns, C* to) {
  for (Index k = 0; k < cells; ++k, to += columns) {
    const Vec<C> v = splat(values[k]);
    for (Index i = 0; i < columns; i += kLanes<C>) store(to + i, v, Full{});
  }
}

}  // namespace
}  // namespace normcore::cpu::NORMCORE_ISA
