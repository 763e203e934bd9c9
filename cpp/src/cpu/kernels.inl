// The kernels, written once and compiled once per ISA by kernels_<isa>.cc, which defines
// NORMCORE_ISA and NORMCORE_ISA_NAME. The drivers `sweep` and `fold` own tails, alignment and
// streaming; a kernel is what happens to one vector. Partial sums are kept in the compute type within
// a tile (the caller keeps tiles short) and leave it as double.
#include "kernels.h"
#include "simd.h"

namespace normcore::cpu::NORMCORE_ISA {
namespace {

template <class T>
SI const T* row(In x, Index r) {
  return static_cast<const T*>(x.data) + r * x.stride;
}
template <class T>
SI T* row(Out y, Index r) {
  return static_cast<T*>(y.data) + r * y.stride;
}

// ---- drivers

// Calls f(i, tag) over [0, n). With kStream the vectors in between are aligned to `y` for streaming.
template <bool kStream, class T, class F>
SI void sweep(T* y, Index n, F f) {
  constexpr Index N = kLanes<Compute<T>>;
  Index i = 0;
  if constexpr (kStream) {
    // Elements before the first one whose vector is aligned.
    Index head = Index((0 - reinterpret_cast<std::uintptr_t>(y)) / sizeof(T)) & (N - 1);
    if (head > n) head = n;
    if (head > 0) {
      f(Index(0), Part{int(head)});
      i = head;
    }
#pragma GCC unroll 4
    for (; i + N <= n; i += N) f(i, Stream{});
  } else {
#pragma GCC unroll 4
    for (; i + N <= n; i += N) f(i, Full{});
  }
  if (i < n) f(i, Part{int(n - i)});
}

// The same step, stored through the caches.
template <class Tag>
SI Tag near(Tag tag) {
  return tag;
}
SI Full near(Stream) { return {}; }

// For every row r of an output tile, f(r) gives what is to happen to one vector of it.
template <class T, class F>
SI void sweep_tile(Out y, Index rows, Index cols, F f) {
  if (y.stream) {
    for (Index r = 0; r < rows; ++r) {
      sweep<true>(row<T>(y, r), cols, f(r));
    }
    stream_fence();
  } else {
    for (Index r = 0; r < rows; ++r) {
      sweep<false>(row<T>(y, r), cols, f(r));
    }
  }
}

// Calls f(i, j, tag) over [0, n), with j in 0..3 naming one of four independent accumulators.
template <class C, class F>
SI void fold(Index n, F f) {
  constexpr Index N = kLanes<C>;
  Index i = 0;
  for (; i + 4 * N <= n; i += 4 * N) {
    f(i, 0, Full{});
    f(i + N, 1, Full{});
    f(i + 2 * N, 2, Full{});
    f(i + 3 * N, 3, Full{});
  }
  if (i + N <= n) f(i, 0, Full{}), i += N;
  if (i + N <= n) f(i, 1, Full{}), i += N;
  if (i + N <= n) f(i, 2, Full{}), i += N;
  if (i < n) f(i, 3, Part{int(n - i)});
}
template <class C>
SI C total(const Vec<C> (&acc)[4]) {
  return hsum<C>((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

// Calls f.template operator()<G>(j, tag) for columns in groups of G vectors: four, then one at a time.
template <class C, class F>
SI void column_groups(Index cols, F f) {
  constexpr Index N = kLanes<C>;
  Index j = 0;
  for (; j + 4 * N <= cols; j += 4 * N) f.template operator()<4>(j, Full{});
  for (; j + N <= cols; j += N) f.template operator()<1>(j, Full{});
  if (j < cols) f.template operator()<1>(j, Part{int(cols - j)});
}
template <class C>
SI void put_doubles(double* p, Vec<C> v, Full) {
  for (int i = 0; i < kLanes<C>; ++i) p[i] = double(v[i]);
}
template <class C>
SI void put_doubles(double* p, Vec<C> v, Part t) {
  for (int i = 0; i < t.lanes; ++i) p[i] = double(v[i]);
}

// ---- second moments of any magnitude

// Whether a sum of squares lost nothing to overflow or to subnormals.
SI bool safe(float sum_of_squares) { return sum_of_squares > 1e-25f && sum_of_squares < 1e36f; }
SI bool safe(double sum_of_squares) { return sum_of_squares > 1e-250 && sum_of_squares < 1e300; }

template <class C>
SI Vec<C> max_abs(Vec<C> a, Vec<C> v) {
  Vec<C> w = v < 0 ? -v : v;
  return w > a ? w : a;
}

// Sum of (x - mean)^2 where the plain sum left the safe range: scaled by the largest deviation.
template <class T>
[[gnu::noinline]] double scaled_squares(const T* x, Index stride, Index n, Compute<T> mean) {
  using C = Compute<T>;
  C largest = 0;
  auto at = [&](Index i) __attribute__((always_inline)) {
    return load(x + i * stride, Part{1})[0] - mean;
  };
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
  // All zero, or all NaN (which the maximum passes over): the plain sum says which.
  if (largest == 0) {
    C plain = 0;
    for (Index i = 0; i < n; ++i) plain += at(i);
    return plain * C(0);
  }
  double sum = 0;
  const double unit = 1.0 / double(largest);
  if (stride == 1 && largest > C(0x1p-120) && largest < C(0x1p120)) {
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
    double d = double(at(i)) * unit;
    sum += d * d;
  }
  return sum * double(largest) * double(largest);
}

// ---- moments

template <class T>
void moments_rows(In x, Index rows, Index cols, double* mean, double* m2) {
  using C = Compute<T>;
  for (Index r = 0; r < rows; ++r) {
    const T* p = row<T>(x, r);
    Vec<C> sum[4] = {};
    fold<C>(cols, [&](Index i, int j, auto tag)
                      __attribute__((always_inline)) { sum[j] += load(p + i, tag); });
    const C center = C(double(total<C>(sum)) / double(cols));
    Vec<C> rest[4] = {}, squares[4] = {};
    fold<C>(cols, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
      Vec<C> d = keep<C>(load(p + i, tag) - splat(center), tag);
      rest[j] += d;
      squares[j] += d * d;
    });
    // The deviations' own mean is what rounding left in the first pass.
    const double delta = double(total<C>(rest)) / double(cols);
    const C q = total<C>(squares);
    const double sum_of_squares = safe(q) ? double(q) : scaled_squares(p, 1, cols, center);
    const double corrected = sum_of_squares - delta * delta * double(cols);
    mean[r] = double(center) + delta;
    m2[r] = corrected < 0 ? 0 : corrected;
  }
}

template <class T>
void squares_rows(In x, Index rows, Index cols, double* mean, double* m2) {
  using C = Compute<T>;
  for (Index r = 0; r < rows; ++r) {
    const T* p = row<T>(x, r);
    Vec<C> squares[4] = {};
    fold<C>(cols, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
      Vec<C> v = load(p + i, tag);
      squares[j] += v * v;
    });
    const C q = total<C>(squares);
    mean[r] = 0;
    m2[r] = safe(q) ? double(q) : scaled_squares(p, 1, cols, C(0));
  }
}

template <class T, bool kCentred>
void moments_cols_impl(In x, Index rows, Index cols, double* mean, double* m2) {
  using C = Compute<T>;
  constexpr Index N = kLanes<C>;
  const C inverse = C(1) / C(rows);
  column_groups<C>(cols, [&]<int G>(Index j, auto tag) __attribute__((always_inline)) {
    Vec<C> center[G] = {}, rest[G] = {}, squares[G] = {};
    if constexpr (kCentred) {
      for (Index r = 0; r < rows; ++r) {
        for (int g = 0; g < G; ++g) center[g] += load(row<T>(x, r) + j + g * N, tag);
      }
      for (int g = 0; g < G; ++g) center[g] *= inverse;
    }
    for (Index r = 0; r < rows; ++r) {
      for (int g = 0; g < G; ++g) {
        Vec<C> d = load(row<T>(x, r) + j + g * N, tag) - center[g];
        if constexpr (kCentred) rest[g] += d;
        squares[g] += d * d;
      }
    }
    for (int g = 0; g < G; ++g) {
      const Index k = j + g * N;
      int lanes = int(cols - k < N ? cols - k : N);
      for (int l = 0; l < lanes; ++l) {
        const C q = squares[g][l];
        double sum_of_squares =
            safe(q) ? double(q)
                    : scaled_squares(row<T>(x, 0) + k + l, x.stride, rows, C(center[g][l]));
        const double delta = kCentred ? double(rest[g][l]) / double(rows) : 0.0;
        sum_of_squares -= delta * delta * double(rows);
        mean[k + l] = double(center[g][l]) + delta;
        m2[k + l] = sum_of_squares < 0 ? 0 : sum_of_squares;
      }
    }
  });
}
template <class T>
void moments_cols(In x, Index rows, Index cols, double* mean, double* m2) {
  moments_cols_impl<T, true>(x, rows, cols, mean, m2);
}
template <class T>
void squares_cols(In x, Index rows, Index cols, double* mean, double* m2) {
  moments_cols_impl<T, false>(x, rows, cols, mean, m2);
}

// ---- apply

// A coefficient of the tile at (row r, column i): one number per row, or a vector along the columns.
template <Orientation kCells, class C>
struct Coefficient {
  const C* values;
  Vec<C> in_row;
  SI Coefficient(const C* v, Index r) : values(v) {
    if constexpr (kCells == kRows) in_row = splat(v[r]);
  }
  template <class Tag>
  SI Vec<C> at(Index i, Tag tag) const {
    if constexpr (kCells == kRows) {
      return in_row;
    } else {
      return load(values + i, tag);
    }
  }
};
// Elementwise parameters run the other way: along the columns where cells are rows.
template <Orientation kCells, class C>
using Parameter = Coefficient<kCells == kRows ? kCols : kRows, C>;

template <class T, Orientation O>
void affine(In x, Out y, Index rows, Index cols, Affine<Compute<T>> f) {
  using C = Compute<T>;
  sweep_tile<T>(y, rows, cols, [&](Index r) __attribute__((always_inline)) {
    const T* xr = row<T>(x, r);
    T* yr = row<T>(y, r);
    const Coefficient<O, C> a(f.a, r), center(f.center, r), b(f.b, r);
    return [=](Index i, auto tag) __attribute__((always_inline)) {
      store(yr + i, a.at(i, tag) * (load(xr + i, tag) - center.at(i, tag)) + b.at(i, tag), tag);
    };
  });
}

template <class T, Orientation O>
void scale(In x, Out y, Index rows, Index cols, Affine<Compute<T>> f, const Compute<T>* weight,
           const Compute<T>* bias) {
  using C = Compute<T>;
  sweep_tile<T>(y, rows, cols, [&](Index r) __attribute__((always_inline)) {
    const T* xr = row<T>(x, r);
    T* yr = row<T>(y, r);
    const Coefficient<O, C> a(f.a, r), center(f.center, r), b(f.b, r);
    const Parameter<O, C> w(weight, r), shift(bias, r);
    return [=](Index i, auto tag) __attribute__((always_inline)) {
      Vec<C> xhat = a.at(i, tag) * (load(xr + i, tag) - center.at(i, tag)) + b.at(i, tag);
      store(yr + i, w.at(i, tag) * xhat + shift.at(i, tag), tag);
    };
  });
}

// ---- backward: reductions

template <class T, bool kWeighted>
SI void sums_rows_impl(In dy, In x, Index rows, Index cols, Centering<Compute<T>> f,
                       const Compute<T>* weight, double* dy_u, double* dy_1) {
  using C = Compute<T>;
  for (Index r = 0; r < rows; ++r) {
    const T* dyr = row<T>(dy, r);
    const T* xr = row<T>(x, r);
    const Vec<C> center = splat(f.center[r]), unit = splat(f.unit[r]);
    Vec<C> products[4] = {}, sum[4] = {};
    fold<C>(cols, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
      Vec<C> g = load(dyr + i, tag);
      if constexpr (kWeighted) g *= load(weight + i, tag);
      products[j] += g * ((load(xr + i, tag) - center) * unit);
      sum[j] += g;
    });
    dy_u[r] = double(total<C>(products));
    dy_1[r] = double(total<C>(sum));
  }
}

template <class T, bool kWeighted>
SI void sums_cols_impl(In dy, In x, Index rows, Index cols, Centering<Compute<T>> f,
                       const Compute<T>* weight, double* dy_u, double* dy_1) {
  using C = Compute<T>;
  constexpr Index N = kLanes<C>;
  column_groups<C>(cols, [&]<int G>(Index j, auto tag) __attribute__((always_inline)) {
    Vec<C> center[G], unit[G], products[G] = {}, sum[G] = {};
    for (int g = 0; g < G; ++g) {
      center[g] = load(f.center + j + g * N, tag);
      unit[g] = load(f.unit + j + g * N, tag);
    }
    for (Index r = 0; r < rows; ++r) {
      for (int g = 0; g < G; ++g) {
        Vec<C> d = load(row<T>(dy, r) + j + g * N, tag);
        if constexpr (kWeighted) d *= weight[r];
        products[g] += d * ((load(row<T>(x, r) + j + g * N, tag) - center[g]) * unit[g]);
        sum[g] += d;
      }
    }
    for (int g = 0; g < G; ++g) {
      put_doubles<C>(dy_u + j + g * N, products[g], tag);
      put_doubles<C>(dy_1 + j + g * N, sum[g], tag);
    }
  });
}

template <class T, Orientation O>
void sums(In dy, In x, Index rows, Index cols, Centering<Compute<T>> f, double* dy_u,
          double* dy_1) {
  if constexpr (O == kRows) {
    sums_rows_impl<T, false>(dy, x, rows, cols, f, nullptr, dy_u, dy_1);
  } else {
    sums_cols_impl<T, false>(dy, x, rows, cols, f, nullptr, dy_u, dy_1);
  }
}
template <class T, Orientation O>
void weighted_sums(In dy, In x, Index rows, Index cols, Centering<Compute<T>> f,
                   const Compute<T>* weight, double* dy_u, double* dy_1) {
  if constexpr (O == kRows) {
    sums_rows_impl<T, true>(dy, x, rows, cols, f, weight, dy_u, dy_1);
  } else {
    sums_cols_impl<T, true>(dy, x, rows, cols, f, weight, dy_u, dy_1);
  }
}

// ---- backward: apply

template <class T, Orientation O>
void grad(In dy, In x, Out dx, Index rows, Index cols, Gradient<Compute<T>> f) {
  using C = Compute<T>;
  sweep_tile<T>(dx, rows, cols, [&](Index r) __attribute__((always_inline)) {
    const T* dyr = row<T>(dy, r);
    const T* xr = row<T>(x, r);
    T* dxr = row<T>(dx, r);
    const Coefficient<O, C> p(f.p, r), q(f.q, r), c(f.r, r);
    const Coefficient<O, C> center(f.x.center, r), unit(f.x.unit, r);
    return [=](Index i, auto tag) __attribute__((always_inline)) {
      Vec<C> u = (load(xr + i, tag) - center.at(i, tag)) * unit.at(i, tag);
      store(dxr + i, p.at(i, tag) * load(dyr + i, tag) + (q.at(i, tag) * u + c.at(i, tag)), tag);
    };
  });
}

// Where cells are rows the parameters' gradients run along the row, and are added to memory.
template <class T, bool kStream, bool kResidual>
SI void grad_scale_rows(In dy, In x, In dh, Out dx, Index rows, Index cols,
                        Gradient<Compute<T>> f, Normalized<Compute<T>> xhat,
                        const Compute<T>* weight, Compute<T>* dweight, Compute<T>* dbias) {
  using C = Compute<T>;
  for (Index r = 0; r < rows; ++r) {
    const T* dyr = row<T>(dy, r);
    const T* xr = row<T>(x, r);
    const T* dhr = kResidual ? row<T>(dh, r) : nullptr;
    T* dxr = row<T>(dx, r);
    const Vec<C> p = splat(f.p[r]), q = splat(f.q[r]), c = splat(f.r[r]);
    const Vec<C> center = splat(f.x.center[r]), unit = splat(f.x.unit[r]);
    const Vec<C> a = splat(xhat.a[r]), b = splat(xhat.b[r]);
    sweep<kStream>(dxr, cols, [=](Index i, auto tag) __attribute__((always_inline)) {
      Vec<C> g = load(dyr + i, tag);
      Vec<C> u = (load(xr + i, tag) - center) * unit;
      Vec<C> d = p * (g * load(weight + i, tag)) + (q * u + c);
      if constexpr (kResidual) d += load(dhr + i, tag);
      store(dxr + i, d, tag);
      // The parameters' gradients stay in cache: never streamed.
      store(dweight + i, load(dweight + i, tag) + g * (a * u + b), near(tag));
      store(dbias + i, load(dbias + i, tag) + g, near(tag));
    });
  }
}

// Where cells are columns each row has one weight, and its gradient is a sum along the row.
template <class T, bool kStream, bool kResidual>
SI void grad_scale_cols(In dy, In x, In dh, Out dx, Index rows, Index cols,
                        Gradient<Compute<T>> f, Normalized<Compute<T>> xhat,
                        const Compute<T>* weight, Compute<T>* dweight, Compute<T>* dbias) {
  using C = Compute<T>;
  for (Index r = 0; r < rows; ++r) {
    const T* dyr = row<T>(dy, r);
    const T* xr = row<T>(x, r);
    const T* dhr = kResidual ? row<T>(dh, r) : nullptr;
    T* dxr = row<T>(dx, r);
    const Vec<C> w = splat(weight[r]);
    Vec<C> dw{}, db{};
    sweep<kStream>(dxr, cols, [&](Index i, auto tag) __attribute__((always_inline)) {
      Vec<C> g = load(dyr + i, tag);
      Vec<C> u = (load(xr + i, tag) - load(f.x.center + i, tag)) * load(f.x.unit + i, tag);
      Vec<C> d = load(f.p + i, tag) * (g * w) + (load(f.q + i, tag) * u + load(f.r + i, tag));
      if constexpr (kResidual) d += load(dhr + i, tag);
      store(dxr + i, d, tag);
      dw += g * keep<C>(load(xhat.a + i, tag) * u + load(xhat.b + i, tag), tag);
      db += g;
    });
    dweight[r] += hsum<C>(dw);
    dbias[r] += hsum<C>(db);
  }
}

template <class T, Orientation O>
void grad_scale(In dy, In x, In dh, Out dx, Index rows, Index cols, Gradient<Compute<T>> f,
                Normalized<Compute<T>> xhat, const Compute<T>* weight, Compute<T>* dweight,
                Compute<T>* dbias) {
  auto run = [&]<bool kStream, bool kResidual>() __attribute__((always_inline)) {
    if constexpr (O == kRows) {
      grad_scale_rows<T, kStream, kResidual>(dy, x, dh, dx, rows, cols, f, xhat, weight, dweight,
                                             dbias);
    } else {
      grad_scale_cols<T, kStream, kResidual>(dy, x, dh, dx, rows, cols, f, xhat, weight, dweight,
                                             dbias);
    }
  };
  if (dh.data) {
    dx.stream ? run.template operator()<true, true>() : run.template operator()<false, true>();
  } else {
    dx.stream ? run.template operator()<true, false>() : run.template operator()<false, false>();
  }
  if (dx.stream) stream_fence();
}

// ---- the rest

template <class T>
void add(In x, In residual, Out h, Index rows, Index cols) {
  sweep_tile<T>(h, rows, cols, [&](Index r) __attribute__((always_inline)) {
    const T* xr = row<T>(x, r);
    const T* rr = row<T>(residual, r);
    T* hr = row<T>(h, r);
    return [=](Index i, auto tag) __attribute__((always_inline)) {
      store(hr + i, load(xr + i, tag) + load(rr + i, tag), tag);
    };
  });
}

template <class T>
void load_array(const void* src, Compute<T>* dst, Index n) {
  const T* s = static_cast<const T*>(src);
  sweep<false>(dst, n, [=](Index i, auto tag)
                           __attribute__((always_inline)) { store(dst + i, load(s + i, tag), tag); });
}
template <class T>
void store_array(const Compute<T>* src, void* dst, Index n) {
  T* d = static_cast<T*>(dst);
  sweep<false>(d, n, [=](Index i, auto tag)
                         __attribute__((always_inline)) { store(d + i, load(src + i, tag), tag); });
}

void merge(Index n, double count_a, double* mean_a, double* m2_a, double count_b,
           const double* mean_b, const double* m2_b) {
  const double share = count_b / (count_a + count_b);
  const Vec<double> f = splat(share), g = splat(count_a * share);
  sweep<false>(mean_a, n, [=](Index i, auto tag) __attribute__((always_inline)) {
    Vec<double> mean = load(mean_a + i, tag);
    Vec<double> d = load(mean_b + i, tag) - mean;
    store(mean_a + i, mean + d * f, tag);
    store(m2_a + i, load(m2_a + i, tag) + load(m2_b + i, tag) + d * d * g, tag);
  });
}

void copy(const void* src, void* dst, std::size_t bytes, bool stream) {
  const Index n = Index(bytes / sizeof(float));
  const float* s = static_cast<const float*>(src);
  float* d = static_cast<float*>(dst);
  auto move = [=](Index i, auto tag)
                  __attribute__((always_inline)) { store(d + i, load(s + i, tag), tag); };
  if (stream) {
    sweep<true>(d, n, move);
    stream_fence();
  } else {
    sweep<false>(d, n, move);
  }
  const std::size_t done = std::size_t(n) * sizeof(float);
  for (std::size_t i = done; i < bytes; ++i) {
    static_cast<char*>(dst)[i] = static_cast<const char*>(src)[i];
  }
}

template <class T>
constexpr KernelSet<Compute<T>> kSet = {
    {moments_rows<T>, moments_cols<T>},
    {squares_rows<T>, squares_cols<T>},
    {affine<T, kRows>, affine<T, kCols>},
    {scale<T, kRows>, scale<T, kCols>},
    {sums<T, kRows>, sums<T, kCols>},
    {weighted_sums<T, kRows>, weighted_sums<T, kCols>},
    {grad<T, kRows>, grad<T, kCols>},
    {grad_scale<T, kRows>, grad_scale<T, kCols>},
    add<T>,
    load_array<T>,
    store_array<T>,
};

}  // namespace

extern const KernelTable kTable;
const KernelTable kTable = {NORMCORE_ISA_NAME, kSet<float>,  kSet<BF16>, kSet<F16>,
                            kSet<double>,      merge,        copy};

}  // namespace normcore::cpu::NORMCORE_ISA
