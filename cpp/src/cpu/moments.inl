// Mean and sum of squared deviations of the cells of a tile, in double, and the merge of two of
// them.
//
// One pass over x, around a centre taken from its first elements. With m of n elements in the
// sample the sum of squares is at most 1 + n / m times the one around the mean, whatever the data.
#pragma once

#include "../plan/safe_squares.h"
#include "drivers.inl"
#include "vector_math.h"

namespace normcore::cpu::NORMCORE_ISA {
namespace {

// Whether a sum of squares lost nothing to overflow or to subnormals.
template <class C>
SI bool safe(C sum_of_squares) {
  return sum_of_squares > kLeastSafeSquares<C> && sum_of_squares < kMostSafeSquares<C>;
}

// Sum of (x - mean)^2 where the plain sum left the safe range: scaled by the largest deviation.
template <class T>
[[gnu::noinline]] double scaled_squares(const T* x, Index stride, Index n, Compute<T> mean,
                                        Compute<T> plain) {
  using C = Compute<T>;
  C largest = 0;
  auto at = [&](Index i)
                __attribute__((always_inline)) { return load(x + i * stride, Part{1})[0] - mean; };
  if (stride == 1) {
    Vec<C> top[4] = {};
    fold<C>(n, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
      top[j] = max_abs<C>(top[j], keep<C>(load(x + i, tag) - splat(mean), tag));
    });
    for (auto& v : top) {
      for (int l = 0; l < kLanes<C>; ++l) largest = v[l] > largest ? v[l] : largest;
    }
  } else {
    for (Index i = 0; i < n; ++i) {
      C d = at(i);
      d = d < 0 ? -d : d;
      largest = d > largest ? d : largest;
    }
  }
  // All zero, or infinite, or NaN, which the maximum passes over: the plain sum says which.
  if (largest == 0 || !(largest < C(__builtin_inf()))) return double(plain);
  double sum = 0;
  if (stride == 1 && largest > C(0x1p-120) && largest < C(0x1p120)) {
    const double unit = 1.0 / double(largest);
    Vec<C> acc[4] = {};
    const Vec<C> scale = splat(C(unit)), center = splat(mean);
    fold<C>(n, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
      Vec<C> d = keep<C>((load(x + i, tag) - center) * scale, tag);
      acc[j] += d * d;
    });
    sum = double(total<C>(acc));
    return sum / double(C(unit)) / double(C(unit));
  }
  for (Index i = 0; i < n; ++i) {
    double d = double(at(i)) / double(largest);  // whose inverse may be infinite
    sum += d * d;
  }
  return sum * double(largest) * double(largest);
}

constexpr Index kSampleElements = 64;
constexpr Index kSampleRows = 8;

// The moments of floats whose sums or differences left the range of float: in double none does.
template <class T>
[[gnu::noinline]] void wide_moments(const T* x, Index stride, Index n, double* mean, double* m2) {
  auto at = [&](Index i)
                __attribute__((always_inline)) { return double(load(x + i * stride, Part{1})[0]); };
  double sum = 0, squares = 0;
  for (Index i = 0; i < n; ++i) sum += at(i);
  *mean = sum / double(n);
  for (Index i = 0; i < n; ++i) squares += (at(i) - *mean) * (at(i) - *mean);
  *m2 = squares;
}

// Mean and second moment from sums of d = x - center.
template <bool kCentred, class T>
SI void finish_moments(const T* x, Index stride, Index n, Compute<T> center, Compute<T> rest,
                       Compute<T> squares, double* mean, double* m2) {
  const double inverse = 1 / double(n);
  const double delta = double(rest) * inverse;
  const double q = safe(squares) ? double(squares) : scaled_squares(x, stride, n, center, squares);
  const double around_mean = q - delta * double(rest);
  if (kCentred && sizeof(Compute<T>) == 4 && around_mean - around_mean != 0) {
    return wide_moments(x, stride, n, mean, m2);
  }
  *mean = double(center) + delta;
  // Rounding may leave less than nothing; a NaN stays.
  *m2 = around_mean < 0 ? 0 : around_mean;
}

// The sums of a row, around a centre taken from its first elements.
template <class T, bool kCentred>
struct RowMoments {
  using C = Compute<T>;
  const T* p;
  Index cols, ahead;
  C center = 0;
  Vec<C> rest[4] = {}, squares[4] = {};

  SI RowMoments(const T* row, Index n, Index asked = 0) : p(row), cols(n), ahead(asked) {
    if constexpr (kCentred) {
      Vec<C> sample[4] = {};
      const Index m = n < kSampleElements ? n : kSampleElements;
      fold<C>(m, [&](Index i, int j, auto tag)
                     __attribute__((always_inline)) { sample[j] += load(p + i, tag); });
      center = total<C>(sample) / C(m);
    }
  }
  template <class Tag>
  SI void add(Index i, int j, Tag tag) {
    if (ahead != 0) prefetch(p + i + ahead);
    Vec<C> d = load(p + i, tag);
    if constexpr (kCentred) {
      d = keep<C>(d - splat(center), tag);
      rest[j] += d;
    }
    squares[j] = fma<C>(d, d, squares[j]);
  }
  // From element i on, a multiple of four vectors.
  SI void finish(Index i, double* mean, double* m2) {
    fold_from<C>(i, cols, [&](Index at, int j, auto tag) __attribute__((always_inline)) {
      add(at, j, tag);
    });
    finish_moments<kCentred>(p, 1, cols, center, kCentred ? total<C>(rest) : C(0),
                             total<C>(squares), mean, m2);
  }
};

template <class T, bool kCentred>
SI void moments_rows_impl(In x, Index rows, Index cols, double* mean, double* m2) {
  using C = Compute<T>;
  constexpr Index N = kLanes<C>;
  if (cols <= 4 * N) {
    short_rows<C>(rows, cols, [&]<int J, int R>(Index r, auto last) __attribute__((always_inline)) {
      C center[R] = {};
      Vec<C> acc[R];
      if constexpr (kCentred) {
        for (int k = 0; k < R; ++k) {
          const T* p = row<T>(x, r + k);
          acc[k] =
              add_vectors<J, C>(last, [&](int, Index i, auto tag) __attribute__((always_inline)) {
                return load(p + i, tag);
              });
        }
        sum_rows<C, R>(acc, center);
        const C inverse = C(1) / C(cols);
        for (int k = 0; k < R; ++k) center[k] *= inverse;
      }
      C rest[R] = {}, squares[R];
      Vec<C> squares_acc[R];
      for (int k = 0; k < R; ++k) {
        const T* p = row<T>(x, r + k);
        Vec<C> d[4] = {};
        acc[k] =
            add_vectors<J, C>(last, [&](int j, Index i, auto tag) __attribute__((always_inline)) {
              return d[j] = keep<C>(load(p + i, tag) - splat(center[k]), tag);
            });
        squares_acc[k] = add_vectors<J, C>(
            last, [&](int j, Index, auto) __attribute__((always_inline)) { return d[j] * d[j]; });
      }
      if constexpr (kCentred) sum_rows<C, R>(acc, rest);
      sum_rows<C, R>(squares_acc, squares);
      for (int k = 0; k < R; ++k) {
        finish_moments<kCentred>(row<T>(x, r + k), 1, cols, center[k], rest[k], squares[k],
                                 mean + r + k, m2 + r + k);
      }
    });
    return;
  }
  for (Index r = 0; r < rows; ++r) {
    RowMoments<T, kCentred>(row<T>(x, r), cols).finish(0, mean + r, m2 + r);
  }
}

template <class T, bool kCentred>
SI void moments_cols_impl(In x, Index rows, Index cols, double* mean, double* m2) {
  using C = Compute<T>;
  alignas(64) C center[kStrip], rest[kStrip], squares[kStrip];
  for (Index j0 = 0; j0 < cols; j0 += kStrip) {
    const Index n = cols - j0 < kStrip ? cols - j0 : kStrip;
    const T* p = row<T>(x, 0) + j0;
    for (Index j = 0; j < n; ++j) center[j] = rest[j] = squares[j] = 0;
    if constexpr (kCentred) {
      const Index sample = rows < kSampleRows ? rows : kSampleRows;
      row_blocks<C>(sample, n,
                    [&]<int R>(Index r, Index i, auto tag) __attribute__((always_inline)) {
                      Vec<C> sum = load(center + i, tag);
                      for (int k = 0; k < R; ++k) sum += load(p + (r + k) * x.stride + i, tag);
                      store(center + i, sum, tag);
                    });
      const C inverse = C(1) / C(sample);
      for (Index j = 0; j < n; ++j) center[j] *= inverse;
    }
    row_blocks<C>(rows, n, [&]<int R>(Index r, Index i, auto tag) __attribute__((always_inline)) {
      const Vec<C> c = load(center + i, tag);
      Vec<C> s = load(rest + i, tag), q = load(squares + i, tag);
      for (int k = 0; k < R; ++k) {
        Vec<C> d = load(p + (r + k) * x.stride + i, tag);
        if constexpr (kCentred) {
          d -= c;
          s += d;
        }
        q = fma<C>(d, d, q);
      }
      if constexpr (kCentred) store(rest + i, s, tag);
      store(squares + i, q, tag);
    });
    bool all_safe = true;
    const double inverse = 1 / double(rows);
    for (Index j = 0; j < n; ++j) {
      all_safe &= safe(squares[j]);
      const double delta = double(rest[j]) * inverse;
      const double around_mean = double(squares[j]) - delta * double(rest[j]);
      mean[j0 + j] = double(center[j]) + delta;
      m2[j0 + j] = around_mean < 0 ? 0 : around_mean;
    }
    for (Index j = 0; !all_safe && j < n; ++j) {
      finish_moments<kCentred>(p + j, x.stride, rows, center[j], rest[j], squares[j], mean + j0 + j,
                               m2 + j0 + j);
    }
  }
}

template <class T, Orientation O>
void moments(In x, Index rows, Index cols, double* mean, double* m2) {
  if constexpr (O == kRows) {
    moments_rows_impl<T, true>(x, rows, cols, mean, m2);
  } else {
    moments_cols_impl<T, true>(x, rows, cols, mean, m2);
  }
}
template <class T, Orientation O>
void squares(In x, Index rows, Index cols, double* mean, double* m2) {
  if constexpr (O == kRows) {
    moments_rows_impl<T, false>(x, rows, cols, mean, m2);
  } else {
    moments_cols_impl<T, false>(x, rows, cols, mean, m2);
  }
}

void merge(Index n, double count_a, double* mean_a, double* m2_a, double count_b,
           const double* mean_b, const double* m2_b) {
  const double share = count_b / (count_a + count_b);
  const Vec<double> f = splat(share), g = splat(count_a * share);
  sweep_from_start<double>(n, [=](Index i, auto tag) __attribute__((always_inline)) {
    Vec<double> mean = load(mean_a + i, tag);
    Vec<double> d = load(mean_b + i, tag) - mean;
    store(mean_a + i, fma<double>(d, f, mean), tag);
    store(m2_a + i, load(m2_a + i, tag) + load(m2_b + i, tag) + d * d * g, tag);
  });
}

}  // namespace
}  // namespace normcore::cpu::NORMCORE_ISA
