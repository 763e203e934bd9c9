// Backward: the sums of dy and of dy * u over each cell, dx from them, and the gradients of
// elementwise parameters.
#pragma once

#include "drivers.inl"

namespace normcore::cpu::NORMCORE_ISA {
namespace {

// Where the gradients of elementwise parameters are added up, of normalized elements a * (x -
// center) + b.
template <class C>
struct ParameterSums {
  Affine<C> xhat;
  C *dweight, *dbias;
};
// Rows that are summed at a time: those that share sums of parameters, as their accumulators stay
// in registers. Without these two more streams of memory cost a third of what is in the shared
// cache.
template <bool kParameters>
constexpr int kSumGroup = kParameters && kBytes == 64 ? 2 : 1;

// Of R rows of more than four vectors each.
template <class T, bool kWeighted, bool kParameters, int R>
SI void long_sums(In dy, In x, Index r, Index cols, Centering<Compute<T>> f,
                  const Compute<T>* weight, const ParameterSums<Compute<T>>& to, double* dy_u,
                  double* dy_1) {
  using C = Compute<T>;
  const Rows<T, R> dyr(dy, r), xr(x, r);
  const Coefficient<kRows, R, C> center(f.center, r), unit(f.unit, r);
  const Coefficient<kRows, R, C> a(kParameters ? to.xhat.a : f.unit, r);
  const Coefficient<kRows, R, C> b(kParameters ? to.xhat.b : f.unit, r);
  Vec<C> products[R][4] = {}, sums[R][4] = {};
  fold<C, !kWeighted && !kParameters>(
      cols, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
        Vec<C> w{}, dw{}, db{};
        if constexpr (kWeighted) w = load(weight + i, tag);
        if constexpr (kParameters) dw = load(to.dweight + i, tag), db = load(to.dbias + i, tag);
        for (int k = 0; k < R; ++k) {
          Vec<C> g = dyr.load(k, i, tag);
          const Vec<C> d = xr.load(k, i, tag) - center.in_row[k];
          if constexpr (kParameters) {
            dw = fma<C>(g, fma<C>(a.in_row[k], d, b.in_row[k]), dw);
            db += g;
          }
          if constexpr (kWeighted) g *= w;
          // Beyond the row it is a centre times the unit, which may be infinite, and 0 times that
          // is NaN.
          products[k][j] = fma<C>(g, keep<C>(d * unit.in_row[k], tag), products[k][j]);
          sums[k][j] += g;
        }
        if constexpr (kParameters) store(to.dweight + i, dw, tag), store(to.dbias + i, db, tag);
      });
  Vec<C> lanes[4] = {};
  for (int k = 0; k < R; ++k) {
    lanes[2 * k] = join<C>(products[k]);
    lanes[2 * k + 1] = join<C>(sums[k]);
  }
  C all[4];
  hsum4<C>(lanes, all);
  for (int k = 0; k < R; ++k) {
    dy_u[r + k] = double(all[2 * k]);
    dy_1[r + k] = double(all[2 * k + 1]);
  }
}
template <class T, bool kWeighted, bool kParameters>
SI void long_sums_of(In dy, In x, Index rows, Index cols, Centering<Compute<T>> f,
                     const Compute<T>* weight, const ParameterSums<Compute<T>>& to, double* dy_u,
                     double* dy_1) {
  Index r = 0;
  constexpr int G = kSumGroup<kParameters>;
  for (; r + G <= rows; r += G) {
    long_sums<T, kWeighted, kParameters, G>(dy, x, r, cols, f, weight, to, dy_u, dy_1);
  }
  for (; r < rows; ++r) {
    long_sums<T, kWeighted, kParameters, 1>(dy, x, r, cols, f, weight, to, dy_u, dy_1);
  }
}

// Of rows of up to four vectors each.
template <class T, bool kWeighted, bool kParameters>
SI void short_sums_of(In dy, In x, Index rows, Index cols, Centering<Compute<T>> f,
                      const Compute<T>* weight, const ParameterSums<Compute<T>>& to, double* dy_u,
                      double* dy_1) {
  using C = Compute<T>;
  constexpr Index N = kLanes<C>;
  short_rows<C>(rows, cols, [&]<int J, int R>(Index r, auto last) __attribute__((always_inline)) {
    Vec<C> dw[J], db[J];
    auto each = [&](auto of_vector) __attribute__((always_inline)) {
      for (int j = 0; j < J - 1; ++j) of_vector(j, Full{});
      of_vector(J - 1, last);
    };
    if constexpr (kParameters) {
      each([&](int j, auto tag) __attribute__((always_inline)) {
        dw[j] = load(to.dweight + j * N, tag);
        db[j] = load(to.dbias + j * N, tag);
      });
    }
    const Rows<T, R> dyr(dy, r), xr(x, r);
    Vec<C> g_acc[R], product_acc[R];
#pragma GCC unroll 4
    for (int k = 0; k < R; ++k) {
      const Vec<C> center = splat(f.center[r + k]), unit = splat(f.unit[r + k]);
      Vec<C> a{}, b{};
      if constexpr (kParameters) a = splat(to.xhat.a[r + k]), b = splat(to.xhat.b[r + k]);
      Vec<C> products[4] = {};
      g_acc[k] =
          add_vectors<J, C>(last, [&](int j, Index i, auto tag) __attribute__((always_inline)) {
            Vec<C> g = dyr.load(k, i, tag);
            const Vec<C> d = xr.load(k, i, tag) - center;
            if constexpr (kParameters) {
              dw[j] = fma<C>(g, fma<C>(a, d, b), dw[j]);
              db[j] += g;
            }
            if constexpr (kWeighted) g *= load(weight + i, tag);
            products[j] = fma<C>(g, keep<C>(d * unit, tag), products[j]);
            return g;
          });
      product_acc[k] = join<C>(products);
    }
    if constexpr (kParameters) {
      each([&](int j, auto tag) __attribute__((always_inline)) {
        store(to.dweight + j * N, dw[j], tag);
        store(to.dbias + j * N, db[j], tag);
      });
    }
    C g[R], product[R];
    sum_rows<C, R>(g_acc, g);
    sum_rows<C, R>(product_acc, product);
#pragma GCC unroll 4
    for (int k = 0; k < R; ++k) dy_u[r + k] = double(product[k]);
#pragma GCC unroll 4
    for (int k = 0; k < R; ++k) dy_1[r + k] = double(g[k]);
  });
}
template <class T, bool kWeighted, bool kParameters>
SI void sums_of_rows(In dy, In x, Index rows, Index cols, Centering<Compute<T>> f,
                     const Compute<T>* weight, const ParameterSums<Compute<T>>& to, double* dy_u,
                     double* dy_1) {
  if (cols > 4 * kLanes<Compute<T>>) {
    long_sums_of<T, kWeighted, kParameters>(dy, x, rows, cols, f, weight, to, dy_u, dy_1);
  } else {
    short_sums_of<T, kWeighted, kParameters>(dy, x, rows, cols, f, weight, to, dy_u, dy_1);
  }
}

template <class T, bool kWeighted>
SI void sums_cols(In dy, In x, Index rows, Index cols, Centering<Compute<T>> f,
                  const Compute<T>* weight, double* dy_u, double* dy_1) {
  using C = Compute<T>;
  alignas(64) C products[kStrip], sums[kStrip];
  for (Index j0 = 0; j0 < cols; j0 += kStrip) {
    const Index n = cols - j0 < kStrip ? cols - j0 : kStrip;
    const T* xp = row<T>(x, 0) + j0;
    const T* dyp = row<T>(dy, 0) + j0;
    for (Index j = 0; j < n; ++j) products[j] = sums[j] = 0;
    auto group = [&]<int R, int J, bool kRolled>(Index r, Index first,
                                                 auto tag) __attribute__((always_inline)) {
      Vec<C> products_of[J] = {}, sums_of[J] = {};  // of these rows alone, as in moments
      const T* xr = xp + r * x.stride + first;
      const T* dyr = dyp + r * dy.stride + first;
      each_row<R, kRolled>([&](int k) __attribute__((always_inline)) {
        for (int j = 0; j < J; ++j) {
          const Index i = j * kLanes<C>;
          if (x.ahead != 0) prefetch(xr + i + x.ahead), prefetch(dyr + i + dy.ahead);
          Vec<C> g = load(dyr + i, tag);
          if constexpr (kWeighted) g *= splat(weight[r + k]);
          const Vec<C> center = load(f.center + j0 + first + i, tag);
          const Vec<C> u = (load(xr + i, tag) - center) * load(f.unit + j0 + first + i, tag);
          products_of[j] = fma<C>(g, u, products_of[j]);
          sums_of[j] += g;
        }
        xr += x.stride;
        dyr += dy.stride;
      });
      for (int j = 0; j < J; ++j) {
        const Index i = first + j * kLanes<C>;
        store(products + i, load(products + i, tag) + products_of[j], tag);
        store(sums + i, load(sums + i, tag) + sums_of[j], tag);
      }
    };
    // Without a gap: backward channels-last 256 channels 0.92 to 0.97. (Moments 1.0 to 1.03.)
    row_groups<C>(share_places<T>(x) || x.stride == cols, rows, n, group);
    for (Index j = 0; j < n; ++j) {
      dy_u[j0 + j] = double(products[j]);
      dy_1[j0 + j] = double(sums[j]);
    }
  }
}

template <class T, Orientation O>
void sums(In dy, In x, Index rows, Index cols, Centering<Compute<T>> f, double* dy_u,
          double* dy_1) {
  if constexpr (O == kRows) {
    sums_of_rows<T, false, false>(dy, x, rows, cols, f, nullptr, {}, dy_u, dy_1);
  } else {
    sums_cols<T, false>(dy, x, rows, cols, f, nullptr, dy_u, dy_1);
  }
}
template <class T, Orientation O>
void weighted_sums(In dy, In x, Index rows, Index cols, Centering<Compute<T>> f,
                   const Compute<T>* weight, double* dy_u, double* dy_1) {
  if constexpr (O == kRows) {
    sums_of_rows<T, true, false>(dy, x, rows, cols, f, weight, {}, dy_u, dy_1);
  } else {
    sums_cols<T, true>(dy, x, rows, cols, f, weight, dy_u, dy_1);
  }
}

template <class T, Orientation O, bool kWeighted, bool kResidual>
SI void grad_impl(In dy, In x, In dh, Out dx, Index rows, Index cols, Gradient<Compute<T>> f,
                  const Compute<T>* weight) {
  using C = Compute<T>;
  sweep_tile<kGroup<O>, T, kShortGroup<O>>(
      dx, rows, cols, [&]<int R>(Index r, auto run) __attribute__((always_inline)) {
        const Rows<T, R> dyr(dy, r), xr(x, r), dhr(kResidual ? dh : x, r);
        const Coefficient<O, R, C> p(f.p, r), q(f.q, r), c(f.r, r);
        const Coefficient<O, R, C> center(f.x.center, r), unit(f.x.unit, r);
        const Parameter<kWeighted ? O : kRows, R, C> w(kWeighted ? weight : f.p, r);
        run([&](Index i, auto tag) __attribute__((always_inline)) {
          const Vec<C> p_i = p.along(i, tag), q_i = q.along(i, tag), r_i = c.along(i, tag);
          const Vec<C> c_i = center.along(i, tag), u_i = unit.along(i, tag);
          Vec<C> w_i{};
          if constexpr (kWeighted) w_i = w.along(i, tag);
          Vectors<C, R> out;
          for (int j = 0; j < R; ++j) {
            Vec<C> g = dyr.load(j, i, tag);
            if constexpr (kWeighted) g *= w.at(j, w_i);
            const Vec<C> u = (xr.load(j, i, tag) - center.at(j, c_i)) * unit.at(j, u_i);
            Vec<C> d;
            if constexpr (kWeighted) {
              // Centred before it is scaled: equal gradients leave 0, and not a rounding.
              d = fma<C>(p.at(j, p_i), g - c.at(j, r_i), q.at(j, q_i) * u);
            } else {
              d = fma<C>(p.at(j, p_i), g, fma<C>(q.at(j, q_i), u, c.at(j, r_i)));
            }
            if constexpr (kResidual) d += dhr.load(j, i, tag);
            out.at[j] = d;
          }
          return out;
        });
      });
}
template <class T, Orientation O, bool kWeighted, bool kResidual>
[[gnu::noinline]] void grad_tile(In dy, In x, In dh, Out dx, Index rows, Index cols,
                                 Gradient<Compute<T>> f, const Compute<T>* weight) {
  if constexpr (O == kRows) {
    auto tile = [&](Index r, Index n, Out to) __attribute__((always_inline)) {
      grad_impl<T, O, kWeighted, kResidual>(
          from<T>(dy, r * dy.stride), from<T>(x, r * x.stride),
          kResidual ? from<T>(dh, r * dh.stride) : dh, to, n, cols,
          {f.p + r, f.q + r, f.r + r, {f.x.center + r, f.x.unit + r}}, weight);
    };
    if (stream_through_room<T>(dx, rows, cols, tile)) return;
  }
  grad_impl<T, O, kWeighted, kResidual>(dy, x, dh, dx, rows, cols, f, weight);
}
template <class T, Orientation O>
void grad(In dy, In x, Out dx, Index rows, Index cols, Gradient<Compute<T>> f) {
  if constexpr (O == kCols) {
    auto tile = [&](Index at, Index n, Index width, bool stream, const Compute<T>* const* v) {
      grad_tile<T, O, false, false>(from<T>(dy, at), from<T>(x, at), {}, from<T>(dx, at, stream), n,
                                    width, {v[0], v[1], v[2], {v[3], v[4]}}, nullptr);
    };
    if (dy.stride == cols && x.stride == cols &&
        turn_rows<T, 5>(dx, rows, cols, {f.p, f.q, f.r, f.x.center, f.x.unit}, tile)) {
      return;
    }
  }
  grad_tile<T, O, false, false>(dy, x, {}, dx, rows, cols, f, nullptr);
}
template <class T, Orientation O>
void weighted_grad(In dy, In x, In dh, Out dx, Index rows, Index cols, Gradient<Compute<T>> f,
                   const Compute<T>* weight) {
  if (dh.data) {
    grad_tile<T, O, true, true>(dy, x, dh, dx, rows, cols, f, weight);
  } else {
    grad_tile<T, O, true, false>(dy, x, dh, dx, rows, cols, f, weight);
  }
}

// The gradients of elementwise parameters: where cells are rows they run along the rows and are
// added to memory, R rows at a time; where cells are columns each row has one, a sum along it.
template <class T, Orientation O>
void parameter_sums(In dy, In x, Index rows, Index cols, Affine<Compute<T>> xhat,
                    Compute<T>* dweight, Compute<T>* dbias) {
  using C = Compute<T>;
  if constexpr (O == kRows) {
    // The sums may alias the coefficients as far as a compiler knows: load those first.
    auto block = [&]<int R>(Index r) __attribute__((always_inline)) {
      const Rows<T, R> dyr(dy, r), xr(x, r);
      const Coefficient<kRows, R, C> a(xhat.a, r), center(xhat.center, r), b(xhat.b, r);
      sweep_from_start<C>(cols, [&](Index i, auto tag) __attribute__((always_inline)) {
        Vec<C> dw = load(dweight + i, tag), db = load(dbias + i, tag);
        for (int k = 0; k < R; ++k) {
          const Vec<C> g = dyr.load(k, i, tag);
          const Vec<C> d = xr.load(k, i, tag) - center.in_row[k];
          dw = fma<C>(g, fma<C>(a.in_row[k], d, b.in_row[k]), dw);
          db += g;
        }
        store(dweight + i, dw, tag);
        store(dbias + i, db, tag);
      });
    };
    Index r = 0;
    for (; r + 4 <= rows; r += 4) block.template operator()<4>(r);
    for (; r < rows; ++r) block.template operator()<1>(r);
  } else {
    for (Index r = 0; r < rows; ++r) {
      const T* dyr = row<T>(dy, r);
      const T* xr = row<T>(x, r);
      Vec<C> dw[4] = {}, db[4] = {};
      fold<C>(cols, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
        const Vec<C> g = load(dyr + i, tag);
        const Vec<C> d = load(xr + i, tag) - load(xhat.center + i, tag);
        const Vec<C> normalized = fma<C>(load(xhat.a + i, tag), d, load(xhat.b + i, tag));
        dw[j] = fma<C>(g, keep<C>(normalized, tag), dw[j]);
        db[j] += g;
      });
      dweight[r] += total<C>(dw);
      dbias[r] += total<C>(db);
    }
  }
}

// weighted_sums and parameter_sums of the same elements.
template <class T, Orientation O>
void sums_and_parameters(In dy, In x, Index rows, Index cols, Centering<Compute<T>> f,
                         const Compute<T>* weight, double* dy_u, double* dy_1,
                         Affine<Compute<T>> xhat, Compute<T>* dweight, Compute<T>* dbias) {
  if constexpr (O == kRows) {
    sums_of_rows<T, true, true>(dy, x, rows, cols, f, weight, {xhat, dweight, dbias}, dy_u, dy_1);
  } else {
    weighted_sums<T, O>(dy, x, rows, cols, f, weight, dy_u, dy_1);
    parameter_sums<T, O>(dy, x, rows, cols, xhat, dweight, dbias);
  }
}

}  // namespace
}  // namespace normcore::cpu::NORMCORE_ISA
