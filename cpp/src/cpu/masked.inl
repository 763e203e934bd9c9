// Elements that count by a weight, and where that is 0 not at all, whatever
// they hold.
#pragma once

#include "arrays.inl"
#include "drivers.inl"
#include "moments.inl"

namespace normcore::cpu::NORMCORE_ISA {
namespace {

// Sum of m * (x - center)^2 for data of any magnitude, one element at a time.
template <class T>
double masked_squares(const T* x, Index x_stride, const Compute<T>* mask, Index mask_stride,
                      Index n, Compute<T> center) {
  using C = Compute<T>;
  auto distance = [&](Index i) {
    C value;
    load_array<T>(x + i * x_stride, &value, 1);
    return __builtin_fabs(double(value) - double(center));
  };
  double largest = 0;
  for (Index i = 0; i < n; ++i) {
    if (!(mask[i * mask_stride] > 0)) continue;
    const double d = distance(i);
    if (!(d < __builtin_inf())) return __builtin_nan("");
    largest = d > largest ? d : largest;
  }
  double sum = 0;
  for (Index i = 0; largest > 0 && i < n; ++i) {
    if (!(mask[i * mask_stride] > 0)) continue;
    const double d = distance(i) / largest;
    sum += double(mask[i * mask_stride]) * d * d;
  }
  return sum * largest * largest;
}

// The moments of floats whose sums or differences left the range of float.
template <class T>
[[gnu::noinline]] void wide_masked(const T* x, Index x_stride, const float* mask, Index mask_stride,
                                   Index n, double* mean, double* m2) {
  auto each = [&](auto f) __attribute__((always_inline)) {
    for (Index i = 0; i < n; ++i) {
      const double w = mask[i * mask_stride];
      float value;
      load_array<T>(x + i * x_stride, &value, 1);
      if (w > 0) f(w, double(value));
    }
  };
  double weight = 0, sum = 0, squares = 0;
  each([&](double w, double v) { weight += w, sum += w * v; });
  const double center = sum / weight;
  each([&](double w, double v) { squares += w * (v - center) * (v - center); });
  *mean = center;
  *m2 = squares;
}

// From sums of m, m * d and m * d^2, d = x - center.
template <class T>
void finish_masked(const T* x, Index x_stride, const Compute<T>* mask, Index mask_stride, Index n,
                   Compute<T> sum, Compute<T> center, Compute<T> rest, Compute<T> squares,
                   double* weight, double* mean, double* m2) {
  *weight = double(sum);
  *mean = *m2 = 0;
  if (sum == 0) return;
  const double delta = double(rest) / double(sum);
  const double q =
      safe(squares) ? double(squares) : masked_squares(x, x_stride, mask, mask_stride, n, center);
  const double around_mean = q - delta * double(rest);
  if constexpr (sizeof(Compute<T>) == 4) {
    if (around_mean - around_mean != 0) {
      return wide_masked(x, x_stride, mask, mask_stride, n, mean, m2);
    }
  }
  *mean = double(center) + delta;
  // Rounding may leave less than nothing; a NaN stays.
  *m2 = around_mean < 0 ? 0 : around_mean;
}

template <class C>
SI Vec<C> counted(Vec<C> mask, Vec<C> value) {
  return mask > 0 ? value : Vec<C>{};
}

// Two sweeps over the tile, in cache: the mean of what counts, and moments around it.
template <class T, Orientation O>
void masked_moments(In x, In mask, Index rows, Index cols, double* weight, double* mean,
                    double* m2) {
  using C = Compute<T>;
  if constexpr (O == kRows) {
    for (Index r = 0; r < rows; ++r) {
      const T* p = row<T>(x, r);
      const C* m = row<C>(mask, r);
      Vec<C> weights[4] = {}, sums[4] = {}, rest[4] = {}, squares[4] = {};
      fold<C>(cols, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
        const Vec<C> w = load(m + i, tag);
        weights[j] += w;
        sums[j] += counted<C>(w, w * load(p + i, tag));
      });
      const C sum = total<C>(weights), center = sum > 0 ? total<C>(sums) / sum : C(0);
      fold<C>(cols, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
        const Vec<C> w = load(m + i, tag);
        const Vec<C> d = counted<C>(w, load(p + i, tag) - splat(center));
        rest[j] = fma<C>(w, d, rest[j]);
        squares[j] = fma<C>(w * d, d, squares[j]);
      });
      finish_masked(p, 1, m, 1, cols, sum, center, total<C>(rest), total<C>(squares), weight + r,
                    mean + r, m2 + r);
    }
  } else {
    alignas(64) C sum[kStrip], center[kStrip], rest[kStrip], squares[kStrip];
    for (Index j0 = 0; j0 < cols; j0 += kStrip) {
      const Index n = cols - j0 < kStrip ? cols - j0 : kStrip;
      const T* p = row<T>(x, 0) + j0;
      const C* m = row<C>(mask, 0) + j0;
      for (Index j = 0; j < n; ++j) sum[j] = center[j] = rest[j] = squares[j] = 0;
      row_blocks<C>(rows, n, [&]<int R>(Index r, Index i, auto tag) __attribute__((always_inline)) {
        Vec<C> s{}, c{};  // of these rows alone, as in moments
        for (int k = 0; k < R; ++k) {
          const Vec<C> w = load(m + (r + k) * mask.stride + i, tag);
          s += w;
          c += counted<C>(w, w * load(p + (r + k) * x.stride + i, tag));
        }
        store(sum + i, load(sum + i, tag) + s, tag);
        store(center + i, load(center + i, tag) + c, tag);
      });
      for (Index j = 0; j < n; ++j) center[j] = sum[j] > 0 ? center[j] / sum[j] : C(0);
      row_blocks<C>(rows, n, [&]<int R>(Index r, Index i, auto tag) __attribute__((always_inline)) {
        const Vec<C> c = load(center + i, tag);
        Vec<C> s{}, q{};
        for (int k = 0; k < R; ++k) {
          const Vec<C> w = load(m + (r + k) * mask.stride + i, tag);
          const Vec<C> d = counted<C>(w, load(p + (r + k) * x.stride + i, tag) - c);
          s = fma<C>(w, d, s);
          q = fma<C>(w * d, d, q);
        }
        store(rest + i, load(rest + i, tag) + s, tag);
        store(squares + i, load(squares + i, tag) + q, tag);
      });
      for (Index j = 0; j < n; ++j) {
        finish_masked(p + j, x.stride, m + j, mask.stride, rows, sum[j], center[j], rest[j],
                      squares[j], weight + j0 + j, mean + j0 + j, m2 + j0 + j);
      }
    }
  }
}

template <class T, Orientation O>
void masked_grad(In dy, In x, In mask, Out dx, Index rows, Index cols, Gradient<Compute<T>> f) {
  using C = Compute<T>;
  sweep_tile<1, T>(dx, rows, cols, [&]<int R>(Index r, auto run) __attribute__((always_inline)) {
    const Rows<T, 1> dyr(dy, r), xr(x, r);
    const Rows<C, 1> mr(mask, r);
    const Coefficient<O, 1, C> p(f.p, r), q(f.q, r), c(f.r, r);
    const Coefficient<O, 1, C> center(f.x.center, r), unit(f.x.unit, r);
    run([&](Index i, auto tag) __attribute__((always_inline)) {
      const Vec<C> m = mr.load(0, i, tag);
      const Vec<C> d = xr.load(0, i, tag) - center.at(0, center.along(i, tag));
      const Vec<C> u = d * unit.at(0, unit.along(i, tag));
      const Vec<C> of_statistics = fma<C>(q.at(0, q.along(i, tag)), u, c.at(0, c.along(i, tag)));
      const Vec<C> of_y = p.at(0, p.along(i, tag)) * dyr.load(0, i, tag);
      return one(of_y + counted<C>(m, m * of_statistics));
    });
  });
}

}  // namespace
}  // namespace normcore::cpu::NORMCORE_ISA
