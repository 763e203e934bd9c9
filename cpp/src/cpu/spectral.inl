// Products of a matrix with vectors, and the sum of a matrix and one of
// rank 1.
#pragma once

#include "drivers.inl"
#include "vector_math.h"

namespace normcore::cpu::NORMCORE_ISA {
namespace {

// y[r] += sum of a[r, c] * x[c]; rows taken together share their loads of x.
template <class T, int R>
SI void dot_rows(In a, Index r, Index cols, const Compute<T>* x, double* y) {
  using C = Compute<T>;
  const Rows<T, R> ar(a, r);
  Vec<C> acc[R][2] = {};
  fold<C>(cols, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
    const Vec<C> v = load(x + i, tag);
    for (int k = 0; k < R; ++k) acc[k][j % 2] = fma<C>(ar.load(k, i, tag), v, acc[k][j % 2]);
  });
  Vec<C> both[R];
  C sums[R];
  for (int k = 0; k < R; ++k) both[k] = acc[k][0] + acc[k][1];
  sum_rows<C, R>(both, sums);
  for (int k = 0; k < R; ++k) y[r + k] += double(sums[k]);
}
template <class T>
void matrix_dot(In a, Index rows, Index cols, const Compute<T>* x, double* y) {
  Index r = 0;
  for (; r + 4 <= rows; r += 4) dot_rows<T, 4>(a, r, cols, x, y);
  for (; r < rows; ++r) dot_rows<T, 1>(a, r, cols, x, y);
}

template <class T>
void matrix_accumulate(In a, Index rows, Index cols, const Compute<T>* y, Compute<T>* x) {
  using C = Compute<T>;
  auto block = [&]<int R>(Index r) __attribute__((always_inline)) {
    const Rows<T, R> ar(a, r);
    const Coefficient<kRows, R, C> factor(y, r);  // before x is written, which may alias y
    sweep_from_start<C>(cols, [&](Index i, auto tag) __attribute__((always_inline)) {
      // Even and odd rows apart: half the chain of additions.
      Vec<C> sum[2] = {load(x + i, tag), Vec<C>{}};
      for (int k = 0; k < R; ++k) {
        sum[k % 2] = fma<C>(factor.in_row[k], ar.load(k, i, tag), sum[k % 2]);
      }
      store(x + i, sum[0] + sum[1], tag);
    });
  };
  Index r = 0;
  for (; r + 8 <= rows; r += 8) block.template operator()<8>(r);
  for (; r < rows; ++r) block.template operator()<1>(r);
}

// The power of two at or below |v|; 1 where there is none.
SI double power_of_two(double v) {
  std::uint64_t bits;
  __builtin_memcpy(&bits, &v, sizeof(bits));
  bits &= std::uint64_t(0x7ff) << 52;
  if (bits == 0 || bits == std::uint64_t(0x7ff) << 52) return 1;
  __builtin_memcpy(&v, &bits, sizeof(v));
  return v;
}

template <class C>
double narrow_scaled(const double* from, Index n, C* to) {
  Vec<double> top[4] = {};
  fold<double>(n, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
    top[j] = max_abs<double>(top[j], load(from + i, tag));
  });
  const double largest = largest_lane<double>(top);
  const double scale = power_of_two(largest), inverse = 1 / scale;
  for (Index i = 0; i < n; ++i) to[i] = C(from[i] * inverse);
  return scale;
}

template <class C>
void drain(C* from, Index n, double scale, double* to) {
  for (Index i = 0; i < n; ++i) {
    to[i] += scale * double(from[i]);
    from[i] = 0;
  }
}

template <class T>
void add_rank_one(In x, Out y, Index rows, Index cols, Compute<T> p, Compute<T> q,
                  const Compute<T>* left, const Compute<T>* right) {
  using C = Compute<T>;
  const Vec<C> first = splat(p), second = splat(q);
  sweep_tile<1, T>(y, rows, cols, [&]<int R>(Index r, auto run) __attribute__((always_inline)) {
    const Rows<T, 1> xr(x, r);
    if (left) {
      const Vec<C> factor = splat(left[r]);
      run([&](Index i, auto tag) __attribute__((always_inline)) {
        return one(fma<C>(factor, load(right + i, tag), xr.load(0, i, tag) * first * second));
      });
    } else {
      run([&](Index i, auto tag)
              __attribute__((always_inline)) { return one(xr.load(0, i, tag) * first * second); });
    }
  });
}

template <class T>
constexpr MatrixKernels<Compute<T>> kMatrix = {matrix_dot<T>, matrix_accumulate<T>,
                                               narrow_scaled<Compute<T>>, drain<Compute<T>>,
                                               add_rank_one<T>};

}  // namespace
}  // namespace normcore::cpu::NORMCORE_ISA
