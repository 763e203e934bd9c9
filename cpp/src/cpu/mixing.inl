// Channel mixing, y_i = g_i sgn(x_i) |x_i|^p D_i^(-e) of every pixel, with
// D_i = b_i + sum_j W_ij |x_j|^a over its channels. It happens in buffers [rows][P] of the compute
// type: P pixels side by side, a row for every channel, and more of them up to a multiple of
// kMixRows. Forward of pixels that are rows in memory leaves them rows: a row for every pixel, its
// channels side by side, up to a multiple of P. A matrix product keeps kMixRows x P sums in
// registers.
#pragma once

#include "arrays.inl"
#include "drivers.inl"
#include "special/mixing_formulas.h"
#include "vector_math.h"

namespace normcore::cpu::NORMCORE_ISA {
namespace {

#if defined(NORMCORE_X86) && defined(__AVX512F__)
constexpr int kMixRows = 12, kMixVectors = 2;  // 24 sums among 32 registers
#elif defined(NORMCORE_X86) && defined(__AVX2__)
constexpr int kMixRows = 4, kMixVectors = 3;  // 12 among 16
#elif defined(NORMCORE_NEON)
constexpr int kMixRows = 8, kMixVectors = 2;  // 16 among 32, as many as four units keep under way
#else
constexpr int kMixRows = 4, kMixVectors = 2;  // and products that are not fused
#endif
template <class C>
constexpr Index kPixels = kMixVectors * kLanes<C>;

// ---- between tiles and buffers

// A 4 x 4 block: rows become columns.
template <class C>
SI void transpose_block(const C* from, Index from_stride, C* to, Index to_stride) {
  using Quad = typename VecOf<C, 4>::reg;
  using QuadMem = typename VecOf<C, 4>::mem;
  Quad r[4];
  for (int i = 0; i < 4; ++i) r[i] = *(const QuadMem*)(from + i * from_stride);
  const Quad a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
  const Quad b = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
  const Quad c = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  const Quad d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  *(QuadMem*)(to) = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  *(QuadMem*)(to + to_stride) = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  *(QuadMem*)(to + 2 * to_stride) = __builtin_shufflevector(c, d, 0, 1, 4, 5);
  *(QuadMem*)(to + 3 * to_stride) = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

// Reads a tile into a buffer, filled up with `pad`: its rows are channels, or (kCols) pixels, which
// pass four at a time through `scratch`, four rows of `channels`.
template <class T, Orientation O>
void load_pixels(In x, Index channels, Index n, Compute<T> pad, Compute<T>* buffer, Index stride,
                 [[maybe_unused]] Compute<T>* scratch) {
  using C = Compute<T>;
  constexpr Index P = kPixels<C>;
  const Index full = (n + P - 1) / P * P;
  if constexpr (O == kRows) {
    for (Index c = 0; c < channels; ++c) {
      const Rows<T, 1> from(x, c);
      C* to = buffer + c * stride;
      sweep_from_start<C>(n, [&](Index i, auto tag) __attribute__((always_inline)) {
        store(to + i, from.load(0, i, tag), tag);
      });
      for (Index i = n; i < full; ++i) to[i] = pad;
    }
  } else {
    const Index wide = (channels + 3) / 4 * 4;
    for (Index p = 0; p < full; p += 4) {
      for (int k = 0; k < 4; ++k) {
        C* to = scratch + k * wide;
        if (p + k < n) {
          load_array<T>(row<T>(x, p + k), to, channels);
        } else {
          for (Index c = 0; c < channels; ++c) to[c] = pad;
        }
        for (Index c = channels; c < wide; ++c) to[c] = pad;
      }
      for (Index c = 0; c < wide; c += 4) {
        transpose_block(scratch + c, wide, buffer + c * stride + p, stride);
      }
    }
  }
}
template <class T, Orientation O>
void store_pixels(const Compute<T>* buffer, Index stride, Out y, Index channels, Index n,
                  [[maybe_unused]] Compute<T>* scratch) {
  using C = Compute<T>;
  if constexpr (O == kRows) {
    sweep_tile<1, T>(y, channels, n, [&]<int R>(Index r, auto run) __attribute__((always_inline)) {
      const C* from = buffer + r * stride;
      run([=](Index i, auto tag)
              __attribute__((always_inline)) { return one(load(from + i, tag)); });
    });
  } else {
    const Index wide = (channels + 3) / 4 * 4;
    for (Index p = 0; p < n; p += 4) {
      for (Index c = 0; c < wide; c += 4) {
        transpose_block(buffer + c * stride + p, stride, scratch + c, wide);
      }
      const Index last = n - p < 4 ? n - p : 4;
      sweep_tile<1, T>({row<T>(y, p), y.stride, y.stream}, last, channels,
                       [&]<int R>(Index r, auto run) __attribute__((always_inline)) {
                         const C* from = scratch + r * wide;
                         run([=](Index i, auto tag) __attribute__((always_inline)) {
                           return one(load(from + i, tag));
                         });
                       });
    }
  }
}

// ---- matrix products

// sum += a b, for a(k, i) of kMixRows rows i, and b[k][p] of P columns.
template <class C, class A>
SI void multiply_block(A a, const C* b, Index depth, Vec<C> (&sum)[kMixRows][kMixVectors]) {
  constexpr Index N = kLanes<C>, P = kPixels<C>;
  for (Index k = 0; k < depth; ++k, b += P) {
    Vec<C> v[kMixVectors];
    for (int j = 0; j < kMixVectors; ++j) v[j] = load(b + j * N, Full{});
    for (int i = 0; i < kMixRows; ++i) {
      const Vec<C> w = splat(a(k, i));
      for (int j = 0; j < kMixVectors; ++j) sum[i][j] = fma<C>(w, v[j], sum[i][j]);
    }
  }
}
// a[k][i], packed.
template <class C>
SI auto packed_rows(const C* a) {
  return [=](Index k, int i) __attribute__((always_inline)) { return a[k * kMixRows + i]; };
}
// a[i][k], in rows that are `stride` apart: of three of them two are a multiple of it behind the
// first, so that a pointer for each three is enough.
template <class C>
SI auto rows_apart(const C* a, Index stride) {
  constexpr int kPointers = (kMixRows + 2) / 3;
  struct {
    const C* of_three[kPointers];
  } at;
  for (int i = 0; i < kPointers; ++i) at.of_three[i] = a + 3 * i * stride;
  return [=](Index k, int i)
             __attribute__((always_inline)) { return at.of_three[i / 3][i % 3 * stride + k]; };
}

// A block of D, out [kMixRows][P]. Of channels that are rows W is a, packed, and u is b; of pixels
// that are rows u is a, its rows `stride` apart, and W is b. Not inlined: all registers are for the
// sums, and compilers would keep what surrounds a product in some.
template <class C, Orientation O>
[[gnu::noinline]] void mix_block(const C* a, Index stride, const C* start, const C* b, Index depth,
                                 C* out) {
  constexpr Index N = kLanes<C>, P = kPixels<C>;
  Vec<C> sum[kMixRows][kMixVectors];
  for (int i = 0; i < kMixRows; ++i) {
    for (int j = 0; j < kMixVectors; ++j) {
      sum[i][j] = !start ? Vec<C>{} : O == kRows ? splat(start[i]) : load(start + j * N, Full{});
    }
  }
  if constexpr (O == kRows) {
    multiply_block<C>(packed_rows(a), b, depth, sum);
  } else {
    multiply_block<C>(rows_apart(a, stride), b, depth, sum);
  }
  for (int i = 0; i < kMixRows; ++i) {
    for (int j = 0; j < kMixVectors; ++j) store(out + i * P + j * N, sum[i][j], Full{});
  }
}

// out [rows][P] = start + W in, for W packed by blocks of kMixRows of its rows:
// [block][depth][kMixRows].
template <class C>
void mix(const C* packed, const C* start, Index rows, Index depth, const C* in, C* out) {
  for (Index i = 0; i < rows; i += kMixRows, packed += depth * kMixRows) {
    mix_block<C, kRows>(packed, 0, start ? start + i : nullptr, in, depth, out + i * kPixels<C>);
  }
}

// Both transposed: t in [block of rows][pixel][kMixRows], then u in [block of columns][pixel][P].
template <class C>
void turn(const C* t, const C* u, Index rows, C* turned) {
  constexpr Index P = kPixels<C>;
  C *left = turned, *right = turned + rows * P;
  for (Index i = 0; i < (rows + P - 1) / P * P; i += 4) {
    C* to_right = right + i / P * (P * P) + i % P;
    C* to_left = left + i / kMixRows * (P * kMixRows) + i % kMixRows;
    for (Index p = 0; p < P; p += 4) {
      if (i < rows) {
        transpose_block(t + i * P + p, P, to_left + p * kMixRows, kMixRows);
        transpose_block(u + i * P + p, P, to_right + p * P, P);
      } else {
        for (Index k = 0; k < 16; ++k) to_right[(p + k / 4) * P + k % 4] = 0;
      }
    }
  }
}
// dw += t u^T, summed over the pixels, in blocks [block of rows][block of columns][kMixRows][P].
template <class C>
void outer_product(const C* turned, Index rows, Index first, Index last, C* dw) {
  constexpr Index N = kLanes<C>, P = kPixels<C>;
  const Index columns = (rows + P - 1) / P;
  const C *left = turned, *right = turned + rows * P;
  dw += first * columns * P;
  for (Index i = first; i < last; i += kMixRows) {
    for (Index j = 0; j < columns; ++j, dw += kMixRows * P) {
      Vec<C> sum[kMixRows][kMixVectors];
      for (int r = 0; r < kMixRows; ++r) {
        for (int v = 0; v < kMixVectors; ++v) sum[r][v] = load(dw + r * P + v * N, Full{});
      }
      multiply_block<C>(packed_rows(left + i * P), right + j * (P * P), P, sum);
      for (int r = 0; r < kMixRows; ++r) {
        for (int v = 0; v < kMixVectors; ++v) store(dw + r * P + v * N, sum[r][v], Full{});
      }
    }
  }
}

// ---- what happens to an element

// The least and the greatest of some sizes, lane by lane. NaN is passed over: of it comes NaN,
// whatever the type.
struct Ends {
  F32 low = splat(__builtin_inff()), high{};
};
enum class Zeros { kCount, kDoNot };
template <Zeros Z>
SI void extend(Ends* ends, F32 size) {
  F32 low = size;
  if constexpr (Z == Zeros::kDoNot) low = size > 0 ? size : splat(__builtin_inff());
  ends->low = low < ends->low ? low : ends->low;
  ends->high = size > ends->high ? size : ends->high;
}
SI void extend(Ends* ends, const Ends& more) {
  ends->low = more.low < ends->low ? more.low : ends->low;
  ends->high = more.high > ends->high ? more.high : ends->high;
}
// Of the numbers of all channels, a vector of pixels of each.
template <Zeros Z>
SI Ends ends_of(const float* rows, Index channels, Index stride) {
  Ends ends;
  for (Index r = 0; r < channels; ++r) {
    extend<Z>(&ends, abs_of<float>(load(rows + r * stride, Full{})));
  }
  return ends;
}

// A range of logarithms, and the sums and multiples of such.
struct Span {
  F32 low, high;
};
SI Span operator+(Span a, Span b) { return {a.low + b.low, a.high + b.high}; }
SI Span operator*(float f, Span a) {
  const Span b{f * a.low, f * a.high};
  return f < 0 ? Span{b.high, b.low} : b;
}
SI Span span(float low, float high) { return {splat(low), splat(high)}; }
// The logarithm to base 2 of v > 0, to a tenth. Beyond all others for infinities.
SI F32 log2_about(F32 v) {
  using Integers = VecOf<std::int32_t, kLanes<float>>::reg;
  return __builtin_convertvector(bitcast<Integers>(v), F32) * 0x1p-23f - 127;
}
SI Span logarithms(const Ends& ends) {
  const F32 low = log2_about(ends.low), high = log2_about(ends.high), zero{};
  return {ends.high > 0 ? low : zero, ends.high > 0 ? high : zero};
}
SI Words<float> leaves(Span s, float limit) {
  return ~(bitcast<Words<float>>(s.low > -limit) & bitcast<Words<float>>(s.high < limit));
}

// Whether a product on the way to the gradients of a pixel may leave the range of float, from those
// of |x|, |dy| and D.
SI Words<float> gradients_leave(const Mixture<float>& f, Span x, Span dy, Span d) {
  const Span gain = span(f.range.least_gain, f.range.most_gain), factor = -f.e * d;
  const Span direct = dy + gain + factor, of_x = f.p * x, dy_y = dy + of_x + factor;
  const Span t = dy_y + gain + -1.0f * d, slope = (f.p - 1) * x;
  const Span weighted = t + span(f.range.most_weight, f.range.most_weight);
  // Of powers that vanished nothing is left for dW.
  Words<float> any = bitcast<Words<float>>(f.a * x.low < -125) & bitcast<Words<float>>(t.high > 0);
  const Span all[] = {dy, dy + gain, direct, direct + slope, dy_y, dy_y + gain, t, weighted};
  for (const Span& s : all) any |= leaves(s, 100);
  return any | leaves(of_x + factor, 120);
}

SI Words<float> outside_range(const MixingRange& range, const Ends& x, const Ends& d) {
  return bitcast<Words<float>>(x.low <= range.least_x) |
         bitcast<Words<float>>(x.high >= range.most_x) |
         bitcast<Words<float>>(d.low <= range.least_d) |
         bitcast<Words<float>>(d.high >= range.most_d);
}
SI bool any_of(Words<float> words) {
  bool any = false;
  for (Index l = 0; l < kLanes<float>; ++l) any |= words[l] != 0;
  return any;
}

// Which pixels have values that may have overflowed, or lost terms to underflow; whether any has.
SI bool find_outside(const Mixture<float>& f, const Ends (&x)[kMixVectors], const float* dy,
                     const float* d, bool* outside) {
  constexpr Index N = kLanes<float>, P = kPixels<float>;
  Words<float> any{};
  for (Index p = 0; p < P; p += N) {
    const Ends& x_ends = x[p / N];
    const Ends d_ends = ends_of<Zeros::kCount>(d + p, f.channels, P);
    Words<float> found = outside_range(f.range, x_ends, d_ends);
    if (dy) {
      const Ends dy_ends = ends_of<Zeros::kDoNot>(dy + p, f.channels, f.stride);
      const Words<float> leave =
          gradients_leave(f, logarithms(x_ends), logarithms(dy_ends), logarithms(d_ends));
      found |= leave & bitcast<Words<float>>(dy_ends.high > 0);  // of no dy there is no gradient
    }
    for (Index l = 0; l < N; ++l) outside[p + l] = found[l] != 0;
    any |= found;
  }
  return any_of(any);
}

template <class C>
bool denominators(const Mixture<C>& f, const C* x, const C* dy, C* u, C* d, bool* outside) {
  constexpr Index N = kLanes<C>, P = kPixels<C>;
  [[maybe_unused]] Ends ends[kMixVectors];
  for (Index r = 0; r < f.rows; ++r) {
    for (Index i = 0; i < P; i += N) {
      const Vec<C> size = abs_of<C>(load(x + r * f.stride + i, Full{}));
      if constexpr (sizeof(C) == 4) {
        if (r < f.channels) extend<Zeros::kDoNot>(&ends[i / N], size);
      }
      store(u + r * P + i, power<C>(size, f.a), Full{});
    }
  }
  mix<C>(f.weights, f.offset, f.rows, f.channels, u, d);
  if constexpr (sizeof(C) == 4) {
    return find_outside(f, ends, dy, d, outside);
  } else {
    return false;  // no power of a number of the other types leaves the range of double
  }
}

// Rows [first, end) of the next tile: read, their powers, and the ends of their sizes. A row has
// `count` elements, and is filled up with 1 to `width`.
template <class T>
SI void bring_rows(Compute<T> a, In x, Index first, Index end, Index count, Index width,
                   const MixingTile<Compute<T>>& tile) {
  using C = Compute<T>;
  constexpr Index N = kLanes<C>;
  [[maybe_unused]] Ends ends;
  if constexpr (sizeof(C) == 4) {
    ends = {load(tile.ends, Full{}), load(tile.ends + N, Full{})};
  }
  for (Index i = 0; i < width; i += N) {
    [[maybe_unused]] Ends here;  // its own, so that vectors need not wait for each other
    auto bring = [&](auto read) __attribute__((always_inline)) {
      for (Index r = first; r < end; ++r) {
        const Vec<C> v = read(row<T>(x, r) + i), size = abs_of<C>(v);
        store(tile.x + r * width + i, v, Full{});
        store(tile.u + r * width + i, power<C>(size, a), Full{});
        if constexpr (sizeof(C) == 4) extend<Zeros::kDoNot>(&here, size);
      }
    };
    if (i + N <= count) {
      bring([](const T* from) __attribute__((always_inline)) { return load(from, Full{}); });
    } else if (i < count) {
      const Part part{int(count - i)};
      Words<C> holds{};
      for (int l = 0; l < part.lanes; ++l) holds[l] = -1;
      bring([=](const T* from) __attribute__((always_inline)) {
        const Vec<C> v = load(from, part), one = splat(C(1));
        return holds ? v : one;
      });
    } else {
      bring([](const T*) __attribute__((always_inline)) { return splat(C(1)); });
    }
    if constexpr (sizeof(C) == 4) extend(&ends, here);
  }
  if constexpr (sizeof(C) == 4) {
    store(tile.ends, ends.low, Full{});
    store(tile.ends + N, ends.high, Full{});
  }
}
// Asks for as many rows as were brought last, that many behind `end`; of the tile behind this one
// in the end, which is further along the rows or below them.
template <class T>
SI void ask_for_rows(In x, Index end, Index many, Index rows, Index count) {
  for (Index r = end + many; r < end + 2 * many; ++r) {
    const bool wraps = x.ahead != 0 && r >= rows;
    const Index here = wraps ? r - rows : r;
    if (wraps && here >= rows) break;
    const T* line = row<T>(x, here) + (wraps ? x.ahead : 0);
    for (Index i = 0; i < count; i += 64 / Index(sizeof(T))) prefetch(line + i);
    prefetch(line + count - 1);
  }
}

// Writes a block of kMixRows x P, of which n rows and `count` columns are there.
template <class T>
SI void store_block(const Compute<T>* block, Out y, Index n, Index count) {
  using C = Compute<T>;
  constexpr Index N = kLanes<C>, P = kPixels<C>;
  if (count == P) {  // tails and heads that are not there cost up to a twentieth
    auto store_rows = [&](auto tag) __attribute__((always_inline)) {
      for (Index i = 0; i < n; ++i) {
        const C* from = block + i * P;
        int j = 0;
        for (; j + 2 <= kMixVectors; j += 2) {
          store_pair(row<T>(y, i) + j * N, load(from + j * N, Full{}),
                     load(from + (j + 1) * N, Full{}), tag);
        }
        if (j < kMixVectors) store(row<T>(y, i) + j * N, load(from + j * N, Full{}), Full{});
      }
    };
    // Of half a line the other half would come later, and write all of it again.
    constexpr bool kLines = P * Index(sizeof(T)) % 64 == 0;
    if (kLines && streams<T>(y, P)) {
      store_rows(Stream{});
    } else {
      store_rows(Full{});
    }
  } else {
    sweep_tile<1, T>(y, n, count, [&]<int R>(Index r, auto run) __attribute__((always_inline)) {
      const C* from = block + r * P;
      run([=](Index i, auto tag)
              __attribute__((always_inline)) { return one(load(from + i, tag)); });
    });
  }
}

// `kUsual`: the exponents are those of GDN as it is meant, known when this is compiled: 0.96 to
// 0.99 of the time.
template <class T, Orientation O, bool kUsual>
bool mix_tile_of(const Mixture<Compute<T>>& f, const MixingTile<Compute<T>>& tile, Out y,
                 const MixingTile<Compute<T>>& next, In x) {
  using C = Compute<T>;
  const C a = kUsual ? C(2) : f.a, p = kUsual ? C(1) : f.p, e = kUsual ? C(0.5) : f.e;
  constexpr Index N = kLanes<C>, P = kPixels<C>;
  // Of the tile, of the next one, and of their buffers.
  const Index rows = O == kRows ? f.channels : tile.count;
  const Index columns = O == kRows ? tile.count : f.channels;
  const Index next_rows = O == kRows ? f.channels : next.count;
  const Index next_columns = O == kRows ? next.count : f.channels;
  const Index width = O == kRows ? P : f.rows;
  const Index most = rows > next_rows ? rows : next_rows;
  const Index down = (most + kMixRows - 1) / kMixRows * kMixRows;
  if constexpr (sizeof(C) == 4) {
    const Ends none;
    if (next.count > 0) {
      store(next.ends, none.low, Full{});
      store(next.ends + N, none.high, Full{});
    }
  }
  [[maybe_unused]] Ends d_ends[kMixVectors];
  alignas(64) C room[kMixRows * P];
  // The next tile comes in as many steps as there are products.
  const Index steps = down / kMixRows * (width / P), each = (next_rows + steps - 1) / steps;
  Index brought = 0;
  for (Index j0 = 0; j0 < width; j0 += P) {
    for (Index i0 = 0; i0 < down; i0 += kMixRows) {
      if (next.count > 0 && brought < next_rows) {
        const Index end = brought + each < next_rows ? brought + each : next_rows;
        ask_for_rows<T>(x, end, each, next_rows, O == kRows ? P : next_columns);
        bring_rows<T>(a, x, brought, end, next_columns, width, next);
        brought = end;
      }
      if (tile.count == 0 || i0 >= rows) continue;
      const Index n = i0 + kMixRows < rows ? kMixRows : rows - i0;
      const C* gain = f.gain + (O == kRows ? i0 : j0);
      const C* start = f.offset + (O == kRows ? i0 : j0);
      if constexpr (O == kRows) {
        mix_block<C, O>(f.weights + i0 * f.channels, 0, start, tile.u, f.channels, room);
      } else {
        mix_block<C, O>(tile.u + i0 * width, width, start, f.weights + j0 * f.channels, f.channels,
                        room);
      }
      for (Index i = 0; i < n; ++i) {
        for (int j = 0; j < kMixVectors; ++j) {
          C* d = room + i * P + j * N;
          const Vec<C> v = load(tile.x + (i0 + i) * width + j0 + j * N, Full{});
          const Vec<C> den = load(d, Full{});
          const Vec<C> g = O == kRows ? splat(gain[i]) : load(gain + j * N, Full{});
          store(d, mixing::y<VectorMath<C>>(v, den, g, p, e), Full{});
          if constexpr (sizeof(C) == 4) extend<Zeros::kCount>(&d_ends[j], abs_of<float>(den));
        }
      }
      store_block<T>(room, {row<T>(y, i0) + j0, y.stride, y.stream}, n,
                     j0 + P < columns ? P : columns - j0);
    }
  }
  if constexpr (sizeof(C) == 4) {
    if (tile.count == 0) return false;
    const Ends x_ends{load(tile.ends, Full{}), load(tile.ends + N, Full{})};
    for (int j = 1; j < kMixVectors; ++j) extend(&d_ends[0], d_ends[j]);
    return any_of(outside_range(f.range, x_ends, d_ends[0]));
  } else {
    return false;
  }
}

template <class T, Orientation O>
bool mix_tile(const Mixture<Compute<T>>& f, const MixingTile<Compute<T>>& tile, Out y,
              const MixingTile<Compute<T>>& next, In x) {
  const bool usual = f.a == 2 && f.p == 1 && f.e == Compute<T>(0.5);
  return usual ? mix_tile_of<T, O, true>(f, tile, y, next, x)
               : mix_tile_of<T, O, false>(f, tile, y, next, x);
}

template <class C>
void divide(const Mixture<C>& f, const C* d, C* x) {
  constexpr Index N = kLanes<C>, P = kPixels<C>;
  for (Index r = 0; r < f.rows; ++r) {
    const Vec<C> gain = splat(f.gain[r]);
    C* xr = x + r * f.stride;
    for (Index i = 0; i < P; i += N) {
      const Vec<C> v = load(xr + i, Full{});
      const Vec<C> den = load(d + r * P + i, Full{});
      store(xr + i, mixing::y<VectorMath<C>>(v, den, gain, f.p, f.e), Full{});
    }
  }
}

// With t = dL/dD = -e g dy n D^(-e) / D and n = sgn(x) |x|^p:
//   dx = g dy p |x|^(p-1) D^(-e) + a |x|^(a-1) sgn(x) (W^T t)
// d becomes t and dy becomes dx.
template <class C>
void mixed_gradient(const Mixture<C>& f, const C* x, const C* u, C* d, C* dy, C* scratch,
                    const MixingSums<C>& sums) {
  using M = VectorMath<C>;
  constexpr Index N = kLanes<C>, P = kPixels<C>;
  for (Index r = 0; r < f.rows; ++r) {
    const Vec<C> gain = splat(f.gain[r]);
    Vec<C> offset_sum{}, gain_sum{}, e_sum{};
    const C* xr = x + r * f.stride;
    C *dyr = dy + r * f.stride, *dr = d + r * P;
    for (Index i = 0; i < P; i += N) {
      const Vec<C> v = load(xr + i, Full{}), den = load(dr + i, Full{}), g = load(dyr + i, Full{});
      const mixing::Terms<M> terms(g, v, den, gain, f.p, f.e);
      store(dr + i, terms.d, Full{});
      store(dyr + i, terms.x, Full{});
      offset_sum += terms.d;
      gain_sum += terms.gain;
      if (sums.e) e_sum += terms.e();
    }
    auto add = [&](C* to, Vec<C> v) __attribute__((always_inline)) {
      if (to) store(to + r * N, load(to + r * N, Full{}) + v, Full{});
    };
    add(sums.offset, offset_sum);
    add(sums.gain, gain_sum);
    add(sums.e, e_sum);
  }
  mix<C>(f.transposed, nullptr, f.rows, f.channels, d, scratch);
  for (Index r = 0; r < f.rows; ++r) {
    const C *xr = x + r * f.stride, *ur = u + r * P, *sr = scratch + r * P;
    C* dyr = dy + r * f.stride;
    Vec<C> a_sum{};
    for (Index i = 0; i < P; i += N) {
      const Vec<C> v = load(xr + i, Full{}), s = load(sr + i, Full{}), size = load(ur + i, Full{});
      store(dyr + i, fma<C>(mixing::slope<M>(v, size, f.a), s, load(dyr + i, Full{})), Full{});
      if (sums.a) a_sum = fma<C>(s, mixing::slope_of_exponent<M>(v, size), a_sum);
    }
    if (sums.a) store(sums.a + r * N, load(sums.a + r * N, Full{}) + a_sum, Full{});
  }
}

template <class C>
constexpr MixingKernels<C> kMixing = {kMixRows,  kLanes<C>,         kPixels<C>, denominators<C>,
                                      divide<C>, mixed_gradient<C>, turn<C>,    outer_product<C>};

}  // namespace
}  // namespace normcore::cpu::NORMCORE_ISA
