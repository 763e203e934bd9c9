// The kernels, written once and compiled once per ISA by kernels_<isa>.cc, which defines
// NORMCORE_ISA and NORMCORE_ISA_NAME. The drivers `sweep` and `fold` own tails, alignment and
// streaming; a kernel is what happens to one vector. Partial sums are kept in the compute type
// within a tile (the caller keeps tiles short) and leave it as double.
#include "kernels.h"
#include "simd.h"
#include "vector_math.h"

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

// Rows from this many vectors on are worth aligning to their output.
constexpr Index kAlignVectors = 16;

// What a step of a sweep gives: one vector for each of R rows.
template <class C, int R>
struct Vectors {
  Vec<C> at[R];
};
SI Vectors<float, 1> one(Vec<float> v) { return {{v}}; }
SI Vectors<double, 1> one(Vec<double> v) { return {{v}}; }

template <class T, class C, int R, class Tag>
SI void put_pair(T* y, Index stride, const Vectors<C, R>& a, const Vectors<C, R>& b, Tag tag) {
  for (int j = 0; j < R; ++j) store_pair(y + j * stride, a.at[j], b.at[j], tag);
}

// Stores what f(i, tag) gives over [0, n) of rows that are `stride` apart. The vectors of a
// streamed or long row are aligned to `y`, so f must not care where they begin.
template <bool kStream, class T, class F>
SI void sweep(T* y, Index stride, Index n, F f) {
  using C = Compute<T>;
  constexpr Index N = kLanes<C>;
  auto put = [=]<int R>(Index i, const Vectors<C, R>& v, auto tag) __attribute__((always_inline)) {
    for (int j = 0; j < R; ++j) store(y + j * stride + i, v.at[j], tag);
  };
  Index i = 0;
  if (kStream || n >= kAlignVectors * N) {
    // Elements before the first one whose vector is aligned.
    Index head = Index((0 - reinterpret_cast<std::uintptr_t>(y)) / sizeof(T)) & (N - 1);
    if (head > n) head = n;
    if (head > 0) {
      const Part part{int(head)};
      put(0, f(Index(0), part), part);
      i = head;
    }
    if (sizeof(T) < sizeof(C) && i + N <= n && reinterpret_cast<std::uintptr_t>(y + i) % kBytes) {
      put(i, f(i, Full{}), Full{});
      i += N;
    }
  }
  auto steps = [&](auto tag) __attribute__((always_inline)) {
    if constexpr (sizeof(T) < sizeof(C)) {
      for (; i + 2 * N <= n; i += 2 * N) put_pair(y + i, stride, f(i, tag), f(i + N, tag), tag);
      if (i + N <= n) put(i, f(i, Full{}), Full{}), i += N;
    } else {
#pragma GCC unroll 2
      for (; i + N <= n; i += N) put(i, f(i, tag), tag);
    }
  };
  if constexpr (kStream) {
    steps(Stream{});
  } else {
    steps(Full{});
  }
  if (i < n) {
    const Part part{int(n - i)};
    put(i, f(i, part), part);
  }
}

// Sweeps the rows of an output tile: f.template operator()<R>(r, run) handles rows r .. r + R - 1,
// R being G or 1, and gives run a step for them. Rows taken together share their loads of what runs
// along them; streamed rows can where they are aligned alike.
template <int G, class T, class F>
SI void sweep_tile(Out y, Index rows, Index cols, F f) {
  Index r = 0;
  // A line shared by two rows would be written twice, once past the caches: short rows only stream
  // where no line is shared.
  const Index row_bytes = y.stride * Index(sizeof(T));
  const bool aligned =
      (reinterpret_cast<std::uintptr_t>(y.data) | std::uintptr_t(row_bytes)) % 64 == 0;
  if (y.stream && (aligned || cols >= kAlignVectors * kLanes<Compute<T>>)) {
    auto run = [&](auto step) __attribute__((always_inline)) {
      sweep<true>(row<T>(y, r), y.stride, cols, step);
    };
    if (row_bytes % kBytes == 0) {
      for (; r + G <= rows; r += G) f.template operator()<G>(r, run);
    }
    for (; r < rows; ++r) f.template operator()<1>(r, run);
    stream_fence();
  } else {
    auto run = [&](auto step) __attribute__((always_inline)) {
      sweep<false>(row<T>(y, r), y.stride, cols, step);
    };
    for (; r + G <= rows; r += G) f.template operator()<G>(r, run);
    for (; r < rows; ++r) f.template operator()<1>(r, run);
  }
}

// R rows of an input tile, and the lines to ask for while they are worked on.
template <class T, int R>
struct Rows {
  const T* at[R];
  Index ahead;
  SI Rows(In x, Index r) : ahead(x.ahead) {
    for (int j = 0; j < R; ++j) at[j] = row<T>(x, r + j);
  }
  template <class Tag>
  SI Vec<Compute<T>> load(int j, Index i, Tag tag) const {
    if (ahead != 0) prefetch(at[j] + i + ahead);
    return NORMCORE_ISA::load(at[j] + i, tag);
  }
};

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
SI Vec<C> join(const Vec<C> (&acc)[4]) {
  return (acc[0] + acc[1]) + (acc[2] + acc[3]);
}
template <class C>
SI C total(const Vec<C> (&acc)[4]) {
  return hsum<C>(join<C>(acc));
}

// Rows of up to four vectors are reduced four rows at a time. Calls f.template operator()<J, R>(r,
// tag) for J vectors, the last of them covered by tag, of rows r .. r + R - 1.
template <class C, class F>
SI void short_rows(Index rows, Index cols, F f) {
  constexpr Index N = kLanes<C>;
  auto run = [&]<int J>(auto tag) __attribute__((always_inline)) {
    Index r = 0;
    for (; r + 4 <= rows; r += 4) f.template operator()<J, 4>(r, tag);
    for (; r < rows; ++r) f.template operator()<J, 1>(r, tag);
  };
  const Part last{int(cols % N)};
  switch ((cols + N - 1) / N) {
    case 1:
      return last.lanes ? run.template operator()<1>(last) : run.template operator()<1>(Full{});
    case 2:
      return last.lanes ? run.template operator()<2>(last) : run.template operator()<2>(Full{});
    case 3:
      return last.lanes ? run.template operator()<3>(last) : run.template operator()<3>(Full{});
    default:
      return last.lanes ? run.template operator()<4>(last) : run.template operator()<4>(Full{});
  }
}
// Calls f(j, i, tag) for each of J vectors, and adds up what it gives.
template <int J, class C, class Tag, class F>
SI Vec<C> add_vectors(Tag last, F f) {
  constexpr Index N = kLanes<C>;
  Vec<C> v[4] = {};
  for (int j = 0; j < J - 1; ++j) v[j] = f(j, j * N, Full{});
  v[J - 1] = f(J - 1, (J - 1) * N, last);
  return join<C>(v);
}
template <class C, int R>
SI void sum_rows(const Vec<C> (&v)[R], C (&out)[R]) {
  if constexpr (R == 4) {
    hsum4<C>(v, out);
  } else {
    for (int r = 0; r < R; ++r) out[r] = hsum<C>(v[r]);
  }
}

// Columns per call of a kernel that keeps sums per column: their arrays live on the stack.
constexpr Index kStrip = 512;

// Calls f(i, tag) over [0, n) in vectors from the first element on.
template <class C, class F>
SI void sweep_from_start(Index n, F f) {
  constexpr Index N = kLanes<C>;
  Index i = 0;
  for (; i + N <= n; i += N) f(i, Full{});
  if (i < n) f(i, Part{int(n - i)});
}

// Calls f.template operator()<R>(r, i, tag): eight rows at a time over each vector of a strip of
// columns, so that memory is read in streams along the rows.
template <class C, class F>
SI void row_blocks(Index rows, Index cols, F f) {
  auto block = [&]<int R>(Index r) __attribute__((always_inline)) {
    sweep_from_start<C>(cols, [&](Index i, auto tag) __attribute__((always_inline)) {
      f.template operator()<R>(r, i, tag);
    });
  };
  Index r = 0;
  for (; r + 8 <= rows; r += 8) block.template operator()<8>(r);
  for (; r < rows; ++r) block.template operator()<1>(r);
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

// ---- moments
//
// One pass over x, around a centre taken from its first elements. With m of n elements in the
// sample the sum of squares is at most 1 + n / m times the one around the mean, whatever the data.

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
    const T* p = row<T>(x, r);
    C center = 0;
    if constexpr (kCentred) {
      Vec<C> sample[4] = {};
      const Index n = cols < kSampleElements ? cols : kSampleElements;
      fold<C>(n, [&](Index i, int j, auto tag)
                     __attribute__((always_inline)) { sample[j] += load(p + i, tag); });
      center = total<C>(sample) / C(n);
    }
    Vec<C> rest[4] = {}, squares[4] = {};
    fold<C>(cols, [&](Index i, int j, auto tag) __attribute__((always_inline)) {
      Vec<C> d = load(p + i, tag);
      if constexpr (kCentred) {
        d = keep<C>(d - splat(center), tag);
        rest[j] += d;
      }
      squares[j] = fma<C>(d, d, squares[j]);
    });
    finish_moments<kCentred>(p, 1, cols, center, kCentred ? total<C>(rest) : C(0),
                             total<C>(squares), mean + r, m2 + r);
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

// ---- apply

// A coefficient of the tile over rows r .. r + R - 1: one number per row, or a vector along them.
template <Orientation kCells, int R, class C>
struct Coefficient {
  const C* values;
  Vec<C> in_row[R];
  SI Coefficient(const C* v, Index r) : values(v) {
    if constexpr (kCells == kRows) {
      for (int j = 0; j < R; ++j) in_row[j] = splat(v[r + j]);
    }
  }
  // At row r + j; `along` is what along(i, tag) gave for these columns.
  template <class Tag>
  SI Vec<C> along(Index i, Tag tag) const {
    if constexpr (kCells == kRows) {
      return Vec<C>{};
    } else {
      return load(values + i, tag);
    }
  }
  SI Vec<C> at(int j, Vec<C> along) const {
    if constexpr (kCells == kRows) {
      return in_row[j];
    } else {
      return along;
    }
  }
};
// Elementwise parameters run the other way: along the columns where cells are rows.
template <Orientation kCells, int R, class C>
using Parameter = Coefficient<kCells == kRows ? kCols : kRows, R, C>;

// Rows that an apply kernel takes together: what runs along all of them is worth sharing.
template <Orientation kCells, bool kAcross>
constexpr int kGroup = kCells == kCols ? 4
                       : kAcross       ? 2
                                       : 1;

template <class T, Orientation O, bool kScaled>
SI void affine_impl(In x, Out y, Index rows, Index cols, Affine<Compute<T>> f,
                    const Compute<T>* weight, const Compute<T>* bias) {
  using C = Compute<T>;
  sweep_tile<kGroup<O, kScaled>, T>(
      y, rows, cols, [&]<int R>(Index r, auto run) __attribute__((always_inline)) {
        const Rows<T, R> xr(x, r);
        const Coefficient<O, R, C> a(f.a, r), center(f.center, r), b(f.b, r);
        const Parameter<kScaled ? O : kRows, R, C> w(kScaled ? weight : f.a, r);
        const Parameter<kScaled ? O : kRows, R, C> shift(kScaled ? bias : f.a, r);
        run([&](Index i, auto tag) __attribute__((always_inline)) {
          const Vec<C> a_i = a.along(i, tag), c_i = center.along(i, tag), b_i = b.along(i, tag);
          Vec<C> w_i{}, s_i{};
          if constexpr (kScaled) w_i = w.along(i, tag), s_i = shift.along(i, tag);
          Vectors<C, R> out;
          for (int j = 0; j < R; ++j) {
            const Vec<C> d = xr.load(j, i, tag) - center.at(j, c_i);
            Vec<C> v = fma<C>(a.at(j, a_i), d, b.at(j, b_i));
            if constexpr (kScaled) v = fma<C>(w.at(j, w_i), v, shift.at(j, s_i));
            out.at[j] = v;
          }
          return out;
        });
      });
}
template <class T, Orientation O>
void affine(In x, Out y, Index rows, Index cols, Affine<Compute<T>> f) {
  affine_impl<T, O, false>(x, y, rows, cols, f, nullptr, nullptr);
}
template <class T, Orientation O>
void scale(In x, Out y, Index rows, Index cols, Affine<Compute<T>> f, const Compute<T>* weight,
           const Compute<T>* bias) {
  affine_impl<T, O, true>(x, y, rows, cols, f, weight, bias);
}

// ---- backward: reductions

template <class T, bool kWeighted>
SI void sums_rows(In dy, In x, Index rows, Index cols, Centering<Compute<T>> f,
                  const Compute<T>* weight, double* dy_u, double* dy_1) {
  using C = Compute<T>;
  constexpr Index N = kLanes<C>;
  // g = weight * dy of one vector; g * u is added to `product`.
  auto terms = [&](Index r, Index i, auto tag, Vec<C>& product) __attribute__((always_inline)) {
    Vec<C> g = load(row<T>(dy, r) + i, tag);
    if constexpr (kWeighted) g *= load(weight + i, tag);
    const Vec<C> u = (load(row<T>(x, r) + i, tag) - splat(f.center[r])) * splat(f.unit[r]);
    // Beyond the row it is a centre times the unit, which may be infinite, and 0 times that is NaN.
    product = fma<C>(g, keep<C>(u, tag), product);
    return g;
  };
  if (cols <= 4 * N) {
    short_rows<C>(rows, cols, [&]<int J, int R>(Index r, auto last) __attribute__((always_inline)) {
      Vec<C> g_acc[R], product_acc[R];
      for (int k = 0; k < R; ++k) {
        Vec<C> products[4] = {};
        g_acc[k] =
            add_vectors<J, C>(last, [&](int j, Index i, auto tag) __attribute__((always_inline)) {
              return terms(r + k, i, tag, products[j]);
            });
        product_acc[k] = join<C>(products);
      }
      C g[R], product[R];
      sum_rows<C, R>(g_acc, g);
      sum_rows<C, R>(product_acc, product);
      for (int k = 0; k < R; ++k) {
        dy_u[r + k] = double(product[k]);
        dy_1[r + k] = double(g[k]);
      }
    });
    return;
  }
  for (Index r = 0; r < rows; ++r) {
    Vec<C> products[4] = {}, sum[4] = {};
    fold<C>(cols, [&](Index i, int j, auto tag)
                      __attribute__((always_inline)) { sum[j] += terms(r, i, tag, products[j]); });
    dy_u[r] = double(total<C>(products));
    dy_1[r] = double(total<C>(sum));
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
    row_blocks<C>(rows, n, [&]<int R>(Index r, Index i, auto tag) __attribute__((always_inline)) {
      const Vec<C> center = load(f.center + j0 + i, tag), unit = load(f.unit + j0 + i, tag);
      // Even and odd rows apart: half the chain of additions.
      Vec<C> products_of[2] = {}, sums_of[2] = {};
      const T* xr = xp + r * x.stride + i;
      const T* dyr = dyp + r * dy.stride + i;
      for (int k = 0; k < R; ++k, xr += x.stride, dyr += dy.stride) {
        Vec<C> g = load(dyr, tag);
        if constexpr (kWeighted) g *= splat(weight[r + k]);
        const Vec<C> u = (load(xr, tag) - center) * unit;
        products_of[k % 2] = fma<C>(g, u, products_of[k % 2]);
        sums_of[k % 2] += g;
      }
      store(products + i, load(products + i, tag) + (products_of[0] + products_of[1]), tag);
      store(sums + i, load(sums + i, tag) + (sums_of[0] + sums_of[1]), tag);
    });
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
    sums_rows<T, false>(dy, x, rows, cols, f, nullptr, dy_u, dy_1);
  } else {
    sums_cols<T, false>(dy, x, rows, cols, f, nullptr, dy_u, dy_1);
  }
}
template <class T, Orientation O>
void weighted_sums(In dy, In x, Index rows, Index cols, Centering<Compute<T>> f,
                   const Compute<T>* weight, double* dy_u, double* dy_1) {
  if constexpr (O == kRows) {
    sums_rows<T, true>(dy, x, rows, cols, f, weight, dy_u, dy_1);
  } else {
    sums_cols<T, true>(dy, x, rows, cols, f, weight, dy_u, dy_1);
  }
}

// ---- backward: apply

template <class T, Orientation O, bool kWeighted, bool kResidual>
SI void grad_impl(In dy, In x, In dh, Out dx, Index rows, Index cols, Gradient<Compute<T>> f,
                  const Compute<T>* weight) {
  using C = Compute<T>;
  sweep_tile<kGroup<O, kWeighted>, T>(
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
template <class T, Orientation O>
void grad(In dy, In x, Out dx, Index rows, Index cols, Gradient<Compute<T>> f) {
  grad_impl<T, O, false, false>(dy, x, {}, dx, rows, cols, f, nullptr);
}
template <class T, Orientation O>
void weighted_grad(In dy, In x, In dh, Out dx, Index rows, Index cols, Gradient<Compute<T>> f,
                   const Compute<T>* weight) {
  if (dh.data) {
    grad_impl<T, O, true, true>(dy, x, dh, dx, rows, cols, f, weight);
  } else {
    grad_impl<T, O, true, false>(dy, x, dh, dx, rows, cols, f, weight);
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

// ---- the rest

template <class T>
void add(In x, In residual, Out h, Index rows, Index cols) {
  sweep_tile<1, T>(h, rows, cols, [&]<int R>(Index r, auto run) __attribute__((always_inline)) {
    const Rows<T, 1> xr(x, r), rr(residual, r);
    run([&](Index i, auto tag) __attribute__((always_inline)) {
      return one(xr.load(0, i, tag) + rr.load(0, i, tag));
    });
  });
}

template <class T>
void load_array(const void* src, Compute<T>* dst, Index n) {
  const T* s = static_cast<const T*>(src);
  sweep<false>(dst, 0, n, [=](Index i, auto tag) __attribute__((always_inline)) {
    return one(load(s + i, tag));
  });
}
template <class T>
void store_array(const Compute<T>* src, void* dst, Index n) {
  sweep<false>(static_cast<T*>(dst), 0, n, [=](Index i, auto tag) __attribute__((always_inline)) {
    return one(load(src + i, tag));
  });
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

void copy(const void* src, void* dst, std::size_t bytes, bool stream) {
  const Index n = Index(bytes / sizeof(float));
  const float* s = static_cast<const float*>(src);
  float* d = static_cast<float*>(dst);
  auto move = [=](Index i, auto tag)
                  __attribute__((always_inline)) { return one(load(s + i, tag)); };
  if (stream) {
    sweep<true>(d, 0, n, move);
    stream_fence();
  } else {
    sweep<false>(d, 0, n, move);
  }
  const std::size_t done = std::size_t(n) * sizeof(float);
  for (std::size_t i = done; i < bytes; ++i) {
    static_cast<char*>(dst)[i] = static_cast<const char*>(src)[i];
  }
}

double multiply_adds(Index n, float* out) {
  constexpr int kChains = 10;  // two units, each with results four cycles later, and some more
  F32 sum[kChains];
  for (int i = 0; i < kChains; ++i) sum[i] = splat(float(i));
  const F32 a = splat(0.999f), b = splat(*out);
  for (Index k = 0; k < n; ++k) {
    for (int i = 0; i < kChains; ++i) sum[i] = fma<float>(sum[i], a, b);
  }
  for (int i = 1; i < kChains; ++i) sum[0] += sum[i];
  *out = hsum<float>(sum[0]);
  return 2.0 * kChains * kLanes<float> * double(n);
}

template <class C>
constexpr Elementary<C> kElementary = {
    [](const C* x, C* y, Index n) {
      sweep<false>(y, 0, n, [=](Index i, auto tag) __attribute__((always_inline)) {
        return one(exp<C>(load(x + i, tag)));
      });
    },
    [](const C* x, C* y, Index n) {
      sweep<false>(y, 0, n, [=](Index i, auto tag) __attribute__((always_inline)) {
        return one(log<C>(load(x + i, tag)));
      });
    },
    [](const C* x, C exponent, C* y, Index n) {
      sweep<false>(y, 0, n, [=](Index i, auto tag) __attribute__((always_inline)) {
        return one(pow<C>(load(x + i, tag), exponent));
      });
    },
};

#include "masked.inl"
#include "spectral.inl"
#include "spread.inl"
// after the signs and moduli of spread.inl
#include "mixing.inl"
#include "windows.inl"

template <class T>
constexpr KernelSet<Compute<T>> kSet = {
    {moments<T, kRows>, moments<T, kCols>},
    {squares<T, kRows>, squares<T, kCols>},
    {masked_moments<T, kRows>, masked_moments<T, kCols>},
    {affine<T, kRows>, affine<T, kCols>},
    {scale<T, kRows>, scale<T, kCols>},
    {sums<T, kRows>, sums<T, kCols>},
    {weighted_sums<T, kRows>, weighted_sums<T, kCols>},
    {grad<T, kRows>, grad<T, kCols>},
    {masked_grad<T, kRows>, masked_grad<T, kCols>},
    {weighted_grad<T, kRows>, weighted_grad<T, kCols>},
    {parameter_sums<T, kRows>, parameter_sums<T, kCols>},
    {tally<T, kRows>, tally<T, kCols>},
    {peak<T, kRows>, peak<T, kCols>},
    {outliers<T, kRows>, outliers<T, kCols>},
    {slope_grad<T, kRows>, slope_grad<T, kCols>},
    add<T>,
    load_array<T>,
    store_array<T>,
    kMatrix<T>,
    {{load_pixels<T, kRows>, load_pixels<T, kCols>},
     {store_pixels<T, kRows>, store_pixels<T, kCols>}},
    kWindowKernels<T>,
};

}  // namespace

extern const KernelTable kTable;
const KernelTable kTable = {
    NORMCORE_ISA_NAME,   kSet<float>,   kSet<BF16>,     kSet<F16>,
    kSet<double>,        merge,         copy,           kElementary<float>,
    kElementary<double>, multiply_adds, kMixing<float>, kMixing<double>,
};

}  // namespace normcore::cpu::NORMCORE_ISA
