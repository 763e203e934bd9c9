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

template <class C, class V>
SI bool all_safe(V sums_of_squares) {
  using E = decltype(sums_of_squares[0] + sums_of_squares[0]);
  return !any_lane(
      ~((sums_of_squares > E(kLeastSafeSquares<C>)) & (sums_of_squares < E(kMostSafeSquares<C>))));
}

// The largest |x - mean| of a row; a NaN is passed over.
template <class T>
[[gnu::noinline]] Compute<T> largest_deviation(const T* x, Index n, Compute<T> mean) {
  using C = Compute<T>;
  Vec<C> top[4] = {};
  fold<C>(n, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
    top[j] = max_abs<C>(top[j], keep<C>(load(x + i, tag) - splat(mean), tag));
  });
  return largest_lane<C>(top);
}

// Sum of (x - mean)^2 where the plain sum left the safe range: scaled by the largest deviation.
template <class T>
[[gnu::noinline]] double scaled_squares(const T* x, Index stride, Index n, Compute<T> mean,
                                        Compute<T> plain, Compute<T> largest) {
  using C = Compute<T>;
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
    double d = double(load(x + i * stride, Part{1})[0] - mean) / double(largest);
    sum += d * d;  // of a quotient, as the inverse may be infinite
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

// Mean and second moment from sums of d = x - center; largest() is called where they need it.
template <bool kCentred, class T, class F>
SI void finish_moments(const T* x, Index stride, Index n, Compute<T> center, Compute<T> rest,
                       Compute<T> squares, F largest, double* mean, double* m2) {
  const double inverse = 1 / double(n);
  const double delta = double(rest) * inverse;
  const double q =
      safe(squares) ? double(squares) : scaled_squares(x, stride, n, center, squares, largest());
  const double around_mean = q - delta * double(rest);
  if (kCentred && sizeof(Compute<T>) == 4 && around_mean - around_mean != 0) {
    return wide_moments(x, stride, n, mean, m2);
  }
  *mean = double(center) + delta;
  // Rounding may leave less than nothing; a NaN stays.
  *m2 = around_mean < 0 ? 0 : around_mean;
}

// By reference: Clang warns of vectors returned that are wider than the instruction set's.
template <int R, class C>
SI void widen(typename VecOf<double, R>::reg& to, const C* from) {
  to = __builtin_convertvector(*(const typename VecOf<C, R>::mem*)from,
                               typename VecOf<double, R>::reg);
}

// The same of R neighbouring cells. Sums in the safe range are all of finite numbers; of other
// cells again(k) finishes cell k.
template <int R, class C, class F>
SI void finish_cells(Index n, const C* center, const C* rest, const C* squares, double* mean,
                     double* m2, F again) {
  using Doubles = VecOf<double, R>;
  typename Doubles::reg centers, sum, size;
  widen<R>(centers, center);
  widen<R>(sum, rest);
  widen<R>(size, squares);
  const typename Doubles::reg zero{}, delta = sum * (1 / double(n));
  const typename Doubles::reg around_mean = size - delta * sum;
  *(typename Doubles::mem*)mean = centers + delta;
  *(typename Doubles::mem*)m2 = around_mean < 0 ? zero : around_mean;
  bool done = true;
  if constexpr (R == kLanes<double>) {
    done = all_safe<C>(size);
  } else {
    for (int k = 0; k < R; ++k) done &= safe(squares[k]);
  }
  for (int k = 0; !done && k < R; ++k) again(k);
}
template <bool kCentred, int R, class T>
SI void finish_rows(In x, Index r, Index cols, const Compute<T> (&center)[R],
                    const Compute<T> (&rest)[R], const Compute<T> (&squares)[R], double* mean,
                    double* m2) {
  finish_cells<R>(
      cols, center, rest, squares, mean + r, m2 + r, [&](int k) __attribute__((always_inline)) {
        const T* p = row<T>(x, r + k);
        finish_moments<kCentred>(
            p, 1, cols, center[k], rest[k], squares[k],
            [&] { return largest_deviation(p, cols, center[k]); }, mean + r + k, m2 + r + k);
      });
}

// The sums of R rows of more than four vectors each, around centres taken from their first
// elements, row by row or strip by strip; what is done with the lanes in the end is done for all of
// them.
template <class T, bool kCentred, int R>
struct RowMoments {
  using C = Compute<T>;
  static constexpr Index N = kLanes<C>;
  In x;
  Index r, cols;
  C center[R] = {};
  Vec<C> rest[R], squares[R];

  SI RowMoments(In tile, Index first, Index n) : x(tile), r(first), cols(n) {
    if constexpr (kCentred) {
      const Index m = n < kSampleElements ? n : kSampleElements;
      Vec<C> samples[R];
      for (int k = 0; k < R; ++k) {
        const T* p = row<T>(x, r + k);
        Vec<C> sample[4] = {};
        fold<C>(m, [&](Index i, int j, auto tag)
                       __attribute__((always_inline)) { sample[j] += load(p + i, tag); });
        samples[k] = join<C>(sample);
      }
      sum_rows<C, R>(samples, center);
      const C inverse = C(1) / C(m);
      for (int k = 0; k < R; ++k) center[k] *= inverse;
    }
  }

  // Of a row so far.
  struct Sums {
    Vec<C> rest[4] = {}, squares[4] = {};
  };
  // Adds what is in [i, end) of row k: four vectors after each call of beside() that is true, and
  // what is then left; whole fours but for the end of the row.
  template <class F>
  SI void add(int k, Index i, Index end, Sums& sums, F beside) const {
    const T* p = row<T>(x, r + k);
    const Vec<C> c = splat(center[k]);
    auto add = [&](Index i, int j, auto tag) __attribute__((always_inline)) {
      if (x.ahead != 0) prefetch(p + i + x.ahead);
      Vec<C> d = load(p + i, tag);
      if constexpr (kCentred) {
        d = keep<C>(d - c, tag);
        sums.rest[j] += d;
      }
      sums.squares[j] = fma<C>(d, d, sums.squares[j]);
    };
    for (; i + 4 * N <= end && beside(); i += 4 * N) four_from<C, true>(i, add);
    fold_from<C, true>(i, end, add);
  }
  SI void take(int k, const Sums& sums) {
    rest[k] = join<C>(sums.rest);
    squares[k] = join<C>(sums.squares);
  }
  template <class F>
  SI void sum(int k, F beside) {
    Sums sums;
    add(k, 0, cols, sums, beside);
    take(k, sums);
  }

  SI void finish(double* mean, double* m2) {
    C rest_sum[R] = {}, squares_sum[R];
    if constexpr (kCentred) sum_rows<C, R>(rest, rest_sum);
    sum_rows<C, R>(squares, squares_sum);
    finish_rows<kCentred, R, T>(x, r, cols, center, rest_sum, squares_sum, mean, m2);
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
      finish_rows<kCentred, R, T>(x, r, cols, center, rest, squares, mean, m2);
    });
    return;
  }
  auto group = [&]<int R>(Index r) __attribute__((always_inline)) {
    RowMoments<T, kCentred, R> moments(x, r, cols);
    for (int k = 0; k < R; ++k) moments.sum(k, [] { return false; });
    moments.finish(mean, m2);
  };
  Index r = 0;
  for (; r + 4 <= rows; r += 4) group.template operator()<4>(r);
  for (; r < rows; ++r) group.template operator()<1>(r);
}

template <class T, bool kCentred>
SI void moments_cols_impl(In x, Index rows, Index cols, double* mean, double* m2) {
  using C = Compute<T>;
  alignas(64) C center[kStrip], rest[kStrip], squares[kStrip], largest[kStrip];
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
    auto group = [&]<int R, int J, bool kRolled>(Index r, Index first, auto tag)
                     __attribute__((always_inline)) {
                       // Of these rows alone: fewer roundings at the size of the whole sums.
                       Vec<C> s[J] = {}, q[J] = {};
                       const T* xr = p + r * x.stride;
                       each_row<R, kRolled>([&](int) __attribute__((always_inline)) {
                         for (int j = 0; j < J; ++j) {
                           const Index i = first + j * kLanes<C>;
                           if (x.ahead != 0) prefetch(xr + i + x.ahead);
                           Vec<C> d = load(xr + i, tag);
                           if constexpr (kCentred) {
                             d -= load(center + i, tag);
                             s[j] += d;
                           }
                           q[j] = fma<C>(d, d, q[j]);
                         }
                         xr += x.stride;
                       });
                       for (int j = 0; j < J; ++j) {
                         const Index i = first + j * kLanes<C>;
                         if constexpr (kCentred) store(rest + i, load(rest + i, tag) + s[j], tag);
                         store(squares + i, load(squares + i, tag) + q[j], tag);
                       }
                     };
    row_groups<C>(share_places<T>(x), rows, n, group);
    // Constant columns are common: channels that died, padding of zeros.
    bool done = true;
    Index tested = 0;
    for (; tested + kLanes<C> <= n; tested += kLanes<C>) {
      done &= all_safe<C>(load(squares + tested, Full{}));
    }
    for (; tested < n; ++tested) done &= safe(squares[tested]);
    if (!done) {
      for (Index j = 0; j < n; ++j) largest[j] = 0;
      row_blocks<C>(rows, n, [&]<int R>(Index r, Index i, auto tag) __attribute__((always_inline)) {
        const Vec<C> c = load(center + i, tag);
        Vec<C> top = load(largest + i, tag);
        for (int k = 0; k < R; ++k) {
          top = max_abs<C>(top, load(p + (r + k) * x.stride + i, tag) - c);
        }
        store(largest + i, top, tag);
      });
    }
    auto finish = [&]<int R>(Index j) __attribute__((always_inline)) {
      finish_cells<R>(rows, center + j, rest + j, squares + j, mean + j0 + j, m2 + j0 + j,
                      [&](int k) __attribute__((always_inline)) {
                        const Index i = j + k;
                        finish_moments<kCentred>(
                            p + i, x.stride, rows, center[i], rest[i], squares[i],
                            [&] { return largest[i]; }, mean + j0 + i, m2 + j0 + i);
                      });
    };
    constexpr Index kTogether = kLanes<double>;
    Index j = 0;
    for (; j + kTogether <= n; j += kTogether) finish.template operator()<kTogether>(j);
    for (; j < n; ++j) finish.template operator()<1>(j);
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
