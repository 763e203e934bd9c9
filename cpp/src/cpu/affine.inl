// What forward writes: y = a * (x - center) + b, with elementwise weight and bias or without, and
// the residual added before.
#pragma once

#include "drivers.inl"

namespace normcore::cpu::NORMCORE_ISA {
namespace {

// What happens to rows r .. r + R - 1 of a tile.
template <class T, Orientation O, bool kWeighted, int R>
struct AffineRows {
  using C = Compute<T>;
  Rows<T, R> x;
  Coefficient<O, R, C> a, center, b;
  Parameter<kWeighted ? O : kRows, R, C> w, shift;

  SI AffineRows(In xt, Index r, Affine<C> f, const C* weight, const C* bias)
      : x(xt, r),
        a(f.a, r),
        center(f.center, r),
        b(f.b, r),
        w(kWeighted ? weight : f.a, r),
        shift(kWeighted ? bias : f.a, r) {}
  template <class Tag>
  SI Vectors<C, R> operator()(Index i, Tag tag) const {
    const Vec<C> a_i = a.along(i, tag), c_i = center.along(i, tag), b_i = b.along(i, tag);
    Vec<C> w_i{}, s_i{};
    if constexpr (kWeighted) w_i = w.along(i, tag), s_i = shift.along(i, tag);
    Vectors<C, R> out;
    for (int j = 0; j < R; ++j) {
      const Vec<C> d = x.load(j, i, tag) - center.at(j, c_i);
      Vec<C> v = fma<C>(a.at(j, a_i), d, b.at(j, b_i));
      if constexpr (kWeighted) v = fma<C>(w.at(j, w_i), v, shift.at(j, s_i));
      out.at[j] = v;
    }
    return out;
  }
};

template <class T, Orientation O, bool kWeighted>
SI void affine_impl(In x, Out y, Index rows, Index cols, Affine<Compute<T>> f,
                    const Compute<T>* weight, const Compute<T>* bias) {
  sweep_tile<kGroup<O>, T, kShortGroup<O>>(
      y, rows, cols, [&]<int R>(Index r, auto run) __attribute__((always_inline)) {
        run(AffineRows<T, O, kWeighted, R>(x, r, f, weight, bias));
      });
}
template <class T, Orientation O, bool kWeighted>
[[gnu::noinline]] void affine_tile(In x, Out y, Index rows, Index cols, Affine<Compute<T>> f,
                                   const Compute<T>* weight, const Compute<T>* bias) {
  if constexpr (O == kRows) {
    auto tile = [&](Index r, Index n, Out to) __attribute__((always_inline)) {
      affine_impl<T, O, kWeighted>(from<T>(x, r * x.stride), to, n, cols,
                                   {f.a + r, f.center + r, f.b + r}, weight, bias);
    };
    if (stream_through_room<T>(y, rows, cols, tile)) return;
  }
  affine_impl<T, O, kWeighted>(x, y, rows, cols, f, weight, bias);
}
template <class T, Orientation O>
void affine(In x, Out y, Index rows, Index cols, Affine<Compute<T>> f) {
  if constexpr (O == kCols) {
    auto tile = [&](Index at, Index n, Index width, bool stream, const Compute<T>* const* v) {
      affine_tile<T, O, false>(from<T>(x, at), from<T>(y, at, stream), n, width, {v[0], v[1], v[2]},
                               nullptr, nullptr);
    };
    if (x.stride == cols && turn_rows<T, 3>(y, rows, cols, {f.a, f.center, f.b}, tile)) return;
  }
  affine_tile<T, O, false>(x, y, rows, cols, f, nullptr, nullptr);
}
template <class T, Orientation O>
void weighted_affine(In x, Out y, Index rows, Index cols, Affine<Compute<T>> f,
                     const Compute<T>* weight, const Compute<T>* bias) {
  affine_tile<T, O, true>(x, y, rows, cols, f, weight, bias);
}

template <class T>
void add(In x, In residual, Out h, Index rows, Index cols) {
  sweep_tile<1, T>(h, rows, cols, [&]<int R>(Index r, auto run) __attribute__((always_inline)) {
    const Rows<T, 1> xr(x, r), rr(residual, r);
    run([&](Index i, auto tag) __attribute__((always_inline)) {
      return one(xr.load(0, i, tag) + rr.load(0, i, tag));
    });
  });
}

}  // namespace
}  // namespace normcore::cpu::NORMCORE_ISA
