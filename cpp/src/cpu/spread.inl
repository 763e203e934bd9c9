// Spread that is no variance.
#pragma once

#include "drivers.inl"
#include "vector_math.h"

namespace normcore::cpu::NORMCORE_ISA {
namespace {

// The spread's coefficients over rows r .. r + R - 1 of a tile.
template <Orientation O, int R, class C>
struct SpreadOf {
  Coefficient<O, R, C> center, low, unit, threshold, tie;
  bool largest;
  C order;
  SI SpreadOf(const Spread<C>& f, Index r)
      : center(f.center, r),
        low(f.low, r),
        unit(f.unit, r),
        threshold(f.order == 0 ? f.threshold : f.unit, r),
        tie(f.order == 0 && f.tie ? f.tie : f.unit, r),
        largest(f.order == 0),
        order(f.order) {}
  // u of row r + j, whose elements at i are v.
  template <class Tag>
  SI Vec<C> centred(int j, Index i, Vec<C> v, Tag tag) const {
    const Vec<C> d = v - center.at(j, center.along(i, tag)) - low.at(j, low.along(i, tag));
    return d * unit.at(j, unit.along(i, tag));
  }
  template <class Tag>
  SI Vec<C> slope(int j, Index i, Vec<C> u, Tag tag) const {
    const Vec<C> m = abs_of<C>(u), s = sign_of<C>(u);
    if (!largest) return s * power<C>(m, order - 1);
    const Vec<C> t = threshold.at(j, threshold.along(i, tag)), zero{};
    return s * (m > t ? splat(C(1)) : (m == t ? tie.at(j, tie.along(i, tag)) : zero));
  }
  // K sums' terms.
  template <int K, class Tag>
  SI void terms(int j, Index i, Vec<C> u, Tag tag, Vec<C> (&out)[K]) const {
    const Vec<C> m = abs_of<C>(u), s = sign_of<C>(u), zero{}, one = splat(C(1));
    if constexpr (K == kOrderSums) {
      const Vec<C> slope = power<C>(m, order - 1);
      out[0] = slope * m;
      out[1] = s * slope;
    } else {
      const Vec<C> t = threshold.at(j, threshold.along(i, tag));
      out[0] = m > t ? one : zero;
      out[1] = m > t ? m : zero;
      out[2] = m > t ? s : zero;
      out[3] = m == t ? one : zero;
      out[4] = m == t ? s : zero;
    }
    for (Vec<C>& v : out) v = keep<C>(v, tag);
  }
};

template <class T, int K, Orientation O>
SI void tally_impl(In x, Index rows, Index cols, const Spread<Compute<T>>& f, double* const* sums) {
  using C = Compute<T>;
  if constexpr (O == kRows) {
    for (Index r = 0; r < rows; ++r) {
      const SpreadOf<O, 1, C> spread(f, r);
      const T* p = row<T>(x, r);
      Vec<C> acc[K][4] = {};
      fold<C>(cols, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
        Vec<C> v[K];
        spread.terms(0, i, spread.centred(0, i, load(p + i, tag), tag), tag, v);
        // Counts are exact in one accumulator, and five times four would not fit the registers.
        for (int k = 0; k < K; ++k) acc[k][K == kOrderSums ? j : 0] += v[k];
      });
      for (int k = 0; k < K; ++k) sums[k][r] = double(total<C>(acc[k]));
    }
  } else {
    alignas(64) C acc[K][kStrip];
    for (Index j0 = 0; j0 < cols; j0 += kStrip) {
      const Index n = cols - j0 < kStrip ? cols - j0 : kStrip;
      for (int k = 0; k < K; ++k) {
        for (Index j = 0; j < n; ++j) acc[k][j] = 0;
      }
      const SpreadOf<O, 1, C> spread(f, 0);
      row_blocks<C>(rows, n, [&]<int R>(Index r, Index i, auto tag) __attribute__((always_inline)) {
        Vec<C> of_rows[K] = {};  // of these alone, as in moments
        for (int j = 0; j < R; ++j) {
          const Vec<C> value = load(row<T>(x, r + j) + j0 + i, tag);
          Vec<C> v[K];
          spread.terms(0, j0 + i, spread.centred(0, j0 + i, value, tag), tag, v);
          for (int k = 0; k < K; ++k) of_rows[k] += v[k];
        }
        for (int k = 0; k < K; ++k) store(acc[k] + i, load(acc[k] + i, tag) + of_rows[k], tag);
      });
      for (int k = 0; k < K; ++k) {
        for (Index j = 0; j < n; ++j) sums[k][j0 + j] = double(acc[k][j]);
      }
    }
  }
}
template <class T, Orientation O>
void tally(In x, Index rows, Index cols, Spread<Compute<T>> f, double* const* sums) {
  if (f.order == 0) {
    tally_impl<T, kLargestSums, O>(x, rows, cols, f, sums);
  } else {
    tally_impl<T, kOrderSums, O>(x, rows, cols, f, sums);
  }
}

template <class T, Orientation O>
void peak(In x, Index rows, Index cols, Spread<Compute<T>> f, double* largest) {
  using C = Compute<T>;
  f.order = 1;  // there is no threshold yet
  if constexpr (O == kRows) {
    for (Index r = 0; r < rows; ++r) {
      const SpreadOf<O, 1, C> spread(f, r);
      const T* p = row<T>(x, r);
      Vec<C> top[4] = {};
      fold<C>(cols, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
        top[j] = max_abs<C>(top[j], keep<C>(spread.centred(0, i, load(p + i, tag), tag), tag));
      });
      largest[r] = double(largest_lane<C>(top));
    }
  } else {
    for (Index j = 0; j < cols; ++j) largest[j] = 0;
    const SpreadOf<O, 1, C> spread(f, 0);
    alignas(64) C top[kStrip];
    for (Index j0 = 0; j0 < cols; j0 += kStrip) {
      const Index n = cols - j0 < kStrip ? cols - j0 : kStrip;
      for (Index j = 0; j < n; ++j) top[j] = 0;
      row_blocks<C>(rows, n, [&]<int R>(Index r, Index i, auto tag) __attribute__((always_inline)) {
        Vec<C> most = load(top + i, tag);
        for (int j = 0; j < R; ++j) {
          const Vec<C> value = load(row<T>(x, r + j) + j0 + i, tag);
          most = max_abs<C>(most, spread.centred(0, j0 + i, value, tag));
        }
        store(top + i, most, tag);
      });
      for (Index j = 0; j < n; ++j) largest[j0 + j] = double(top[j]);
    }
  }
}

template <class T, Orientation O>
Index outliers(In x, Index rows, Index cols, Spread<Compute<T>> f, Compute<T>* u, Index* cell,
               Index room) {
  using C = Compute<T>;
  Index found = 0;
  for (Index r = 0; r < rows && found <= room; ++r) {
    const SpreadOf<O, 1, C> spread(f, O == kRows ? r : 0);
    const T* p = row<T>(x, r);
    sweep_from_start<C>(cols, [&](Index i, auto tag) __attribute__((always_inline)) {
      const Vec<C> at = keep<C>(spread.centred(0, i, load(p + i, tag), tag), tag);
      const Vec<C> size = abs_of<C>(at);
      // Lanes beyond the row are 0 on both sides.
      const auto out =
          (size >= spread.threshold.at(0, spread.threshold.along(i, tag))) & (size > 0);
      if (!any_lane(out)) return;
      for (int l = 0; l < kLanes<C> && found <= room; ++l) {
        if (!out[l]) continue;
        if (found < room) {
          u[found] = at[l];
          cell[found] = O == kRows ? r : i + l;
        }
        ++found;
      }
    });
  }
  return found;
}

template <class T, Orientation O>
void slope_grad(In dy, In x, Out dx, Index rows, Index cols, Gradient<Compute<T>> f,
                Spread<Compute<T>> s) {
  using C = Compute<T>;
  sweep_tile<1, T>(dx, rows, cols, [&]<int R>(Index r, auto run) __attribute__((always_inline)) {
    const Rows<T, 1> dyr(dy, r), xr(x, r);
    const Coefficient<O, 1, C> p(f.p, r), q(f.q, r), c(f.r, r);
    const SpreadOf<O, 1, C> spread(s, r);
    run([&](Index i, auto tag) __attribute__((always_inline)) {
      const Vec<C> u = spread.centred(0, i, xr.load(0, i, tag), tag);
      const Vec<C> h = spread.slope(0, i, u, tag);
      const Vec<C> rest = fma<C>(q.at(0, q.along(i, tag)), h, c.at(0, c.along(i, tag)));
      return one(fma<C>(p.at(0, p.along(i, tag)), dyr.load(0, i, tag), rest));
    });
  });
}

}  // namespace
}  // namespace normcore::cpu::NORMCORE_ISA
