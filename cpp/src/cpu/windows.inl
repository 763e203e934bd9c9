// Sums over windows, and what divides by them. A window's sum adds up its
// elements each time, or in halves: nothing is ever subtracted, so nothing cancels.
#pragma once

#include "drivers.inl"
#include "special/divisive_formulas.h"
#include "special/response_formulas.h"
#include "vector_math.h"

namespace normcore::cpu::NORMCORE_ISA {
namespace {

// ---- sums

template <class T>
Compute<T> window_squares(In x, Index rows, Index cols, Compute<T>* out, Index stride) {
  using C = Compute<T>;
  Vec<C> top[4] = {};
  for (Index r = 0; r < rows; ++r) {
    const T* p = row<T>(x, r);
    C* to = out + r * stride;
    fold<C>(cols, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
      const Vec<C> v = load(p + i, tag), square = v * v;
      store(to + i, square, tag);
      top[j] = max_abs<C>(top[j], square);
    });
  }
  return largest_lane<C>(top);
}

// a[at] + a[at + step] + ..., n terms.
template <class C, class Tag>
SI Vec<C> window_at(const C* a, Index step, Index n, Tag tag) {
  Vec<C> sum = load(a, tag);
  for (Index k = 1; k < n; ++k) sum += load(a += step, tag);
  return sum;
}

template <class C>
void window_sums(C* a, C* out, Index count, Index step, Index n) {
  if (n <= kDirectWindow) {
    sweep_from_start<C>(count, [=](Index i, auto tag) __attribute__((always_inline)) {
      store(out + i, window_at<C>(a + i, step, n, tag), tag);
    });
    return;
  }
  // a[t] becomes the sum of 1, 2, 4 ... elements from t on; those that n is made of are added up.
  Index done = 0;
  for (Index width = 1;; width *= 2) {
    if (n & width) {
      const C* part = a + done * step;
      const bool first = done == 0;
      sweep_from_start<C>(count, [=](Index i, auto tag) __attribute__((always_inline)) {
        const Vec<C> v = load(part + i, tag);
        store(out + i, first ? v : load(out + i, tag) + v, tag);
      });
      done += width;
    }
    if (done == n) return;
    const C* other = a + width * step;
    sweep_from_start<C>(count + (n - 2 * width) * step,
                        [=](Index i, auto tag) __attribute__((always_inline)) {
                          store(a + i, load(a + i, tag) + load(other + i, tag), tag);
                        });
  }
}

// ---- x * s^-beta, s = k + scale * the window's sum of squares

using response::Exponent;

// 1 / sqrt(v) to 11 bits, where there is an instruction for it.
#if defined(NORMCORE_X86)
constexpr bool kEstimates = true;
SI F32 inverse_sqrt_estimate(F32 v) {
#if defined(__AVX512F__)
  return (F32)_mm512_rsqrt14_ps((__m512)v);
#elif defined(__AVX2__)
  return (F32)_mm256_rsqrt_ps((__m256)v);
#else
  return (F32)_mm_rsqrt_ps((__m128)v);
#endif
}
#else
constexpr bool kEstimates = false;
SI F32 inverse_sqrt_estimate(F32 v) { return v; }
#endif

template <Exponent kExponent, class C>
SI response::Powers<VectorMath<C>> inverse_powers(Vec<C> s, C beta) {
  constexpr bool kHalf = kExponent == Exponent::kHalf;
  if constexpr (kEstimates && sizeof(C) == 4 && (kHalf || kExponent == Exponent::kThreeQuarters)) {
    const Vec<C> one = splat(C(1));
    // An estimate q of s^-1/2 or s^-1/4, and by how much it is off: s * q^2 or s * q^4 = 1 - h.
    // Then s^-beta is its power times (1 - h)^-beta, whose series is exact to h^3: two square roots
    // and a division would take four times as long.
    Vec<C> q = inverse_sqrt_estimate(s), square = q * q;
    if constexpr (kHalf) {
      const Vec<C> h = fma<C>(-(s * q), q, one);
      return {fma<C>(q * h, fma<C>(splat(C(0.375)), h, splat(C(0.5))), q),
              fma<C>(square, fma<C>(h, h, h), square)};
    } else {
      q = inverse_sqrt_estimate(s * q);
      square = q * q;
      const Vec<C> h = fma<C>(-(s * square), square, one);
      const Vec<C> cube = square * q, fourth = square * square;
      return {fma<C>(cube * h, fma<C>(splat(C(0.65625)), h, splat(C(0.75))), cube),
              fma<C>(fourth, fma<C>(h, h, h), fourth)};
    }
  } else {
    return response::powers<VectorMath<C>, kExponent>(s, beta);
  }
}

// The windows of rows r .. r + R - 1 of an array: of N elements across the rows, or with N = 0 as w
// says, of one row.
template <int R, int N, class C>
struct Windows {
  const C* first;
  const Window& w;
  SI Windows(const C* values, const Window& window, Index r)
      : first(values + r * window.stride), w(window) {}
  template <class Tag>
  SI void sums(Index i, Tag tag, Vec<C> (&out)[R]) const {
    if constexpr (N > 0) {
      // They share what they load; the order of summation is the same.
      Vec<C> v[R + N - 1];
      for (int j = 0; j < R + N - 1; ++j) v[j] = load(first + j * w.stride + i, tag);
      for (int j = 0; j < R; ++j) {
        out[j] = v[j];
        for (int k = 1; k < N; ++k) out[j] += v[j + k];
      }
    } else {
      static_assert(R == 1);
      out[0] = window_at<C>(first + i, w.step, w.n, tag);
    }
  }
};
// f.template operator()<rows that are taken together, N>(): what is common is compiled for itself,
// and loads less than half as much.
template <class F>
SI void with_windows(const Window& w, F f) {
  if (w.n == 5 && w.step == w.stride) return f.template operator()<4, 5>();
  f.template operator()<1, 0>();
}

// f.template operator()<kind of exponent, rows, N>()
template <class C, class F>
SI void with_response(C beta, const Window& w, F f) {
  response::with_exponent(beta, [&]<Exponent kExponent>() __attribute__((always_inline)) {
    if constexpr (kExponent == Exponent::kThreeQuarters) {
      with_windows(w, [&]<int G, int N>() __attribute__((always_inline)) {
        f.template operator()<kExponent, G, N>();
      });
    } else {
      f.template operator()<kExponent, 1, 0>();
    }
  });
}

template <class T>
void response(In x, Out y, Index rows, Index cols, const Compute<T>* squares, Window w,
              Response<Compute<T>> f) {
  using C = Compute<T>;
  auto all = [&]<Exponent kExponent, int G, int N>() __attribute__((always_inline)) {
    auto group = [&]<int R>(Index r, auto run) __attribute__((always_inline)) {
      const Rows<T, R> xr(x, r);
      const Windows<R, N, C> windows(squares, w, r);
      run([&](Index i, auto tag) __attribute__((always_inline)) {
        Vec<C> sum[R];
        windows.sums(i, tag, sum);
        Vectors<C, R> out;
        for (int j = 0; j < R; ++j) {
          const Vec<C> s = response::divisor<VectorMath<C>>(sum[j], f.scale, f.k);
          out.at[j] = xr.load(j, i, tag) * inverse_powers<kExponent, C>(s, f.beta).power;
        }
        return out;
      });
    };
    sweep_tile<G, T>(y, rows, cols, group);
  };
  with_response<C>(f.beta, w, all);
}

template <class T>
void response_terms(In dy, In x, Index rows, Index cols, const Compute<T>* squares, Window w,
                    Response<Compute<T>> f, Compute<T>* direct, Compute<T>* terms) {
  using C = Compute<T>;
  auto all = [&]<Exponent kExponent, int G, int N>() __attribute__((always_inline)) {
    auto group = [&]<int R>(Index r) __attribute__((always_inline)) {
      const Rows<T, R> xr(x, r), dyr(dy, r);
      const Windows<R, N, C> windows(squares, w, r);
      sweep_from_start<C>(cols, [&](Index i, auto tag) __attribute__((always_inline)) {
        Vec<C> sum[R];
        windows.sums(i, tag, sum);
        for (int j = 0; j < R; ++j) {
          const Vec<C> s = response::divisor<VectorMath<C>>(sum[j], f.scale, f.k);
          const auto t = response::terms<VectorMath<C>>(dyr.load(j, i, tag), xr.load(j, i, tag),
                                                        inverse_powers<kExponent, C>(s, f.beta));
          const Index at = (r + j) * w.stride + i;
          store(direct + at, t.direct, tag);
          store(terms + at, t.shared, tag);
        }
      });
    };
    Index r = 0;
    for (; r + G <= rows; r += G) group.template operator()<G>(r);
    for (; r < rows; ++r) group.template operator()<1>(r);
  };
  with_response<C>(f.beta, w, all);
}

template <class T>
void response_grad(In x, Out dx, Index rows, Index cols, const Compute<T>* direct,
                   const Compute<T>* terms, Window w, Compute<T> scale) {
  using C = Compute<T>;
  with_windows(w, [&]<int G, int N>() __attribute__((always_inline)) {
    auto group = [&]<int R>(Index r, auto run) __attribute__((always_inline)) {
      const Rows<T, R> xr(x, r);
      const Rows<C, R> directr({direct, w.stride}, r);
      const Windows<R, N, C> windows(terms, w, r);
      run([&](Index i, auto tag) __attribute__((always_inline)) {
        Vec<C> sum[R];
        windows.sums(i, tag, sum);
        Vectors<C, R> out;
        for (int j = 0; j < R; ++j) {
          out.at[j] = response::grad<VectorMath<C>>(directr.load(j, i, tag), xr.load(j, i, tag),
                                                    scale, sum[j]);
        }
        return out;
      });
    };
    sweep_tile<G, T>(dx, rows, cols, group);
  });
}

// ---- u / sqrt((sigma * unit)^2 + variance), u = (x - center) * unit - rest

template <Orientation O, class C>
struct DivisorOf {
  Coefficient<O, 1, C> center, rest, unit, variance;
  Parameter<O, 1, C> sigma, weight;
  SI DivisorOf(const Divisor<C>& f, Index r)
      : center(f.center, r),
        rest(f.rest, r),
        unit(f.unit, r),
        variance(f.variance, r),
        sigma(f.sigma, r),
        weight(f.weight, r) {}
  using Divided = divisive::Divided<VectorMath<C>>;
  // Of the elements at i, whose values are x.
  template <class Tag>
  SI Divided at(Index i, Vec<C> x, Tag tag) const {
    const Vec<C> scale = unit_at(i, tag), mean = center.at(0, center.along(i, tag));
    return {(x - mean) * scale - rest.at(0, rest.along(i, tag)),
            sigma.at(0, sigma.along(i, tag)) * scale, variance.at(0, variance.along(i, tag))};
  }
  template <class Tag>
  SI Vec<C> unit_at(Index i, Tag tag) const {
    return unit.at(0, unit.along(i, tag));
  }
  template <class Tag>
  SI Vec<C> weight_at(Index i, Tag tag) const {
    return weight.at(0, weight.along(i, tag));
  }
};

template <class T, Orientation O>
void divide(In x, Out y, Index rows, Index cols, Divisor<Compute<T>> f, const Compute<T>* bias) {
  using C = Compute<T>;
  sweep_tile<1, T>(y, rows, cols, [&]<int R>(Index r, auto run) __attribute__((always_inline)) {
    const T* xr = row<T>(x, r);
    const DivisorOf<O, C> divisor(f, r);
    const Parameter<O, 1, C> shift(bias, r);
    run([&](Index i, auto tag) __attribute__((always_inline)) {
      const auto d = divisor.at(i, load(xr + i, tag), tag);
      const Vec<C> s = shift.at(0, shift.along(i, tag));
      return one(d.y(divisor.weight_at(i, tag), s));
    });
  });
}

// The five sums of a vector's elements: two of its cells, three of its channels.
template <class C>
struct DividedTerms {
  Vec<C> direct, slope, dsigma, dweight, dbias;
};
template <Orientation O, class T, class Tag>
SI DividedTerms<Compute<T>> divided_terms(const DivisorOf<O, Compute<T>>& divisor, const T* x,
                                          const T* dy, Index i, Tag tag) {
  using C = Compute<T>;
  const auto d = divisor.at(i, load(x + i, tag), tag);
  DividedTerms<C> t;
  t.dbias = load(dy + i, tag);
  t.dweight = d.dweight(t.dbias);
  t.direct = d.direct(t.dbias, divisor.weight_at(i, tag));
  t.slope = d.slope(t.direct);
  t.dsigma = d.dsigma(t.slope) * divisor.unit_at(i, tag);
  return t;
}

template <class T, Orientation O>
void divided_sums(In dy, In x, Index rows, Index cols, Divisor<Compute<T>> f, double* direct,
                  double* slope, ChannelSums sums) {
  using C = Compute<T>;
  // What runs along the rows is kept for a strip of columns, what each row has is summed.
  constexpr bool kCells = O == kCols;  // whether cells run along the rows
  alignas(64) C along[3][kStrip];
  for (Index r = 0; !kCells && r < rows; ++r) direct[r] = slope[r] = 0;
  for (Index j0 = 0; j0 < cols; j0 += kStrip) {
    const Index n = cols - j0 < kStrip ? cols - j0 : kStrip;
    for (auto& values : along) {
      for (Index j = 0; j < n; ++j) values[j] = 0;
    }
    auto add = [&](int k, Index i, Vec<C> v, auto tag) __attribute__((always_inline)) {
      store(along[k] + i, load(along[k] + i, tag) + v, tag);
    };
    for (Index r = 0; r < rows; ++r) {
      const DivisorOf<O, C> divisor(f, r);
      const T *xr = row<T>(x, r), *dyr = row<T>(dy, r);
      Vec<C> acc[3][4] = {};
      fold<C>(n, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
        const DividedTerms<C> t = divided_terms<O, T>(divisor, xr, dyr, j0 + i, tag);
        if constexpr (kCells) {
          add(0, i, t.direct, tag);
          add(1, i, t.slope, tag);
          acc[0][j] += keep<C>(t.dsigma, tag);
          acc[1][j] += keep<C>(t.dweight, tag);
          acc[2][j] += keep<C>(t.dbias, tag);
        } else {
          add(0, i, t.dsigma, tag);
          add(1, i, t.dweight, tag);
          add(2, i, t.dbias, tag);
          acc[0][j] += keep<C>(t.direct, tag);
          acc[1][j] += keep<C>(t.slope, tag);
        }
      });
      if constexpr (kCells) {
        sums.dsigma[r] += double(total<C>(acc[0]));
        sums.dweight[r] += double(total<C>(acc[1]));
        sums.dbias[r] += double(total<C>(acc[2]));
      } else {
        direct[r] += double(total<C>(acc[0]));
        slope[r] += double(total<C>(acc[1]));
      }
    }
    for (Index j = 0; j < n; ++j) {
      if constexpr (kCells) {
        direct[j0 + j] = double(along[0][j]);
        slope[j0 + j] = double(along[1][j]);
      } else {
        sums.dsigma[j0 + j] += double(along[0][j]);
        sums.dweight[j0 + j] += double(along[1][j]);
        sums.dbias[j0 + j] += double(along[2][j]);
      }
    }
  }
}

template <class T, Orientation O>
void divided_grad(In dy, In x, Out dx, Index rows, Index cols, Divisor<Compute<T>> f,
                  const Compute<T>* q, const Compute<T>* shift_) {
  using C = Compute<T>;
  sweep_tile<1, T>(dx, rows, cols, [&]<int R>(Index r, auto run) __attribute__((always_inline)) {
    const T *xr = row<T>(x, r), *dyr = row<T>(dy, r);
    const DivisorOf<O, C> divisor(f, r);
    const Coefficient<O, 1, C> slope(q, r), shift(shift_, r);
    run([&](Index i, auto tag) __attribute__((always_inline)) {
      const auto d = divisor.at(i, load(xr + i, tag), tag);
      const Vec<C> direct = d.direct(load(dyr + i, tag), divisor.weight_at(i, tag));
      const Vec<C> rest =
          fma<C>(slope.at(0, slope.along(i, tag)), d.u, shift.at(0, shift.along(i, tag)));
      return one(fma<C>(direct, divisor.unit_at(i, tag), rest));
    });
  });
}

template <class T>
constexpr WindowKernels<Compute<T>> kWindowKernels = {
    window_squares<T>,
    window_sums<Compute<T>>,
    response<T>,
    response_terms<T>,
    response_grad<T>,
    {divide<T, kRows>, divide<T, kCols>},
    {divided_sums<T, kRows>, divided_sums<T, kCols>},
    {divided_grad<T, kRows>, divided_grad<T, kCols>},
};

}  // namespace
}  // namespace normcore::cpu::NORMCORE_ISA
